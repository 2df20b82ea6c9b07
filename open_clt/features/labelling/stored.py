"""Labels of a graph's features, from the records of its transcoder: nothing is measured."""

from __future__ import annotations

from pathlib import Path

from open_clt.config.arguments import checked_arguments
from open_clt.features.labelling.given import label_features
from open_clt.features.places import find_records
from open_clt.graphs.graph import AttributionGraph
from open_clt.transcoders.transcoder import Transcoder


@checked_arguments
def with_stored_labels(
    graph: AttributionGraph, transcoder: Transcoder, source: str | Path | None = None
) -> AttributionGraph:
    """A copy of the graph with the labels of the transcoder's records, if there are any; labels of the graph are kept.

    ``source`` is the directory or name of the transcoder; None stands for the one that ships with the package. Raises
    CheckpointError if the records are damaged.
    """
    records = find_records(source, transcoder)
    return graph if records is None else label_features(graph, records.records(graph.nodes.features()))
