"""Labels that a user gives, in records and in graphs: they replace automatic labels and are never replaced by them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from open_clt import files
from open_clt.config.arguments import checked_arguments
from open_clt.errors import ConfigError
from open_clt.features.labelling.automatic import label_record
from open_clt.features.records import FeatureLabel, FeatureRecord
from open_clt.graphs.graph import AttributionGraph
from open_clt.transcoders.feature import Feature, check_labels
from open_clt.transcoders.feature import read_labels as labels_of_json


@checked_arguments
def read_labels(path: str | Path) -> dict[Feature, str]:
    """Read labels of features from a JSON file, ``{"L2/417": "Texas"}``, or from a CSV file.

    A CSV file has the columns ``feature`` and ``label``; others are ignored, and a feature with an empty label has
    none. Raises CheckpointError if the file is missing or damaged, and ConfigError if it holds anything else.
    """
    path = Path(path)
    if path.suffix.lower() not in (".json", ".csv"):
        raise ConfigError(f"{path} is not a file of labels; its name must end in .json or .csv.")
    try:
        if path.suffix.lower() == ".json":
            return labels_of_json(files.read_json(path))
        return _labels_of_rows(files.read_rows(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _labels_of_rows(rows: Sequence[Mapping[str, str]]) -> dict[Feature, str]:
    """The labels of a table's rows; raises ConfigError if it lacks a column or names a feature twice."""
    labels: dict[Feature, str] = {}
    for row in rows:
        if missing := {"feature", "label"} - row.keys():
            raise ConfigError(f"the table has no column {min(missing)!r}; it needs the columns 'feature' and 'label'.")
        feature = Feature.parse(row["feature"].strip())
        if labels.get(feature, row["label"]) != row["label"]:
            raise ConfigError(f"the feature {feature} has two labels, {labels[feature]!r} and {row['label']!r}.")
        if row["label"].strip():
            labels[feature] = row["label"]
    return labels


@checked_arguments
def with_labels(records: Iterable[FeatureRecord], labels: Mapping[Feature, str]) -> Iterator[FeatureRecord]:
    """Yield each record with the label that the user gives its feature, if there is one."""
    check_labels(labels)
    for record in records:
        text = labels.get(record.feature)
        yield record if text is None else replace(record, label=FeatureLabel(text))


@checked_arguments
def label_features(graph: AttributionGraph, records: Iterable[FeatureRecord]) -> AttributionGraph:
    """A copy of the graph with the labels of the records; labels of the graph are kept.

    A record without a label gives the tokens on which its feature peaks, and those that the feature raises.
    """
    labels = {record.feature: record.label or label_record(record) for record in records}
    texts = {feature: label.text for feature, label in labels.items() if label is not None}
    return graph.with_labels({**texts, **graph.labels})
