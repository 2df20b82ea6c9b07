"""The writer of attribution graphs as JSON for circuit-tracer's viewer and Neuronpedia.

Each folder of graphs has a file ``graph-metadata.json``, which lists them. The viewers show features, errors, tokens
and logits. Positional embeddings, biases and MLP outputs are left out with their edges, and a target that is not a
token is written as a logit with a negative number. The scores in the metadata are those of the whole graph. A consensus
is written with its averages, and the description says so; the format has no place for frequencies.

Ids are in circuit-tracer's notation, with the position last: ``2_417_5`` is a feature, ``2_-1_5`` an error, ``E_330_5``
a token, and ``7_1234_5`` a logit of a model with six layers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from open_clt import files
from open_clt.config.arguments import checked_arguments
from open_clt.errors import CheckpointError
from open_clt.graphs.formats.circuit_tracer_attention import qk_tracing
from open_clt.graphs.formats.circuit_tracer_schema import (
    METADATA_FILE,
    SCHEMA_VERSION,
    FeatureType,
    GraphCard,
    GraphView,
    cantor_pair,
    read_object,
)
from open_clt.graphs.graph import AttributionGraph, log_missing
from open_clt.graphs.influence import cumulative_influence
from open_clt.graphs.info import GraphSettings
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.operations import node_numbers
from open_clt.graphs.targets import SalientLogits
from open_clt.transcoders.feature import Feature

_GENERATOR = "OpenCLT"
_TYPES = {
    NodeKind.FEATURE: FeatureType.FEATURE,
    NodeKind.ERROR: FeatureType.ERROR,
    NodeKind.EMBEDDING: FeatureType.EMBEDDING,
    NodeKind.LOGIT: FeatureType.LOGIT,
    NodeKind.TARGET: FeatureType.LOGIT,
}


def circuit_tracer_json(graph: AttributionGraph, card: GraphCard, view: GraphView | None = None) -> dict[str, Any]:
    """Return the graph as the viewers' JSON; raises AttributionError if the view names a node that the graph lacks."""
    with_edges = set(torch.cat([graph.edges.rows, graph.edges.source]).tolist())
    # As in circuit-tracer, features and errors without edges are not shown.
    shown = {
        row: _viewer_id(graph, row)
        for row, kind in enumerate(map(NodeKind, graph.nodes.kind.tolist()))
        if kind in _TYPES and (row in with_edges or kind not in (NodeKind.FEATURE, NodeKind.ERROR))
    }
    edges = zip(*(column.tolist() for column in graph.edges), strict=True)
    ids = graph.nodes.ids()
    tracing = qk_tracing(graph, {ids[row]: viewer_id for row, viewer_id in shown.items()})
    results = {row: tracing.results[ids[row]] for row in shown if ids[row] in tracing.results}
    return {
        "metadata": _metadata(graph, card),
        "qParams": _view_json(graph, view or GraphView(), shown),
        "nodes": [
            {**node, "qk_tracing_results": results[row]} if row in results else node
            for row, node in zip(shown, _nodes_json(graph, shown), strict=True)
        ],
        "links": [
            {"source": shown[source], "target": shown[target], "weight": weight}
            for target, source, weight in edges
            if source in shown and target in shown
        ],
        **({"qk_only_nodes": tracing.only_nodes} if tracing.only_nodes else {}),
    }


@checked_arguments
def write_circuit_tracer(
    graph: AttributionGraph, directory: str | Path, card: GraphCard, view: GraphView | None = None
) -> Path:
    """Write ``<slug>.json``, list it in the directory's ``graph-metadata.json``, and return its path.

    A former graph that OpenCLT wrote is replaced; raises ConfigError if another program wrote ``<slug>.json``.
    """
    content = circuit_tracer_json(graph, card, view)
    log_missing(graph)
    directory = Path(directory)
    check_place(directory, [card.slug])
    entries = [entry for entry in _listed(directory) if entry.get("slug") != card.slug]
    with files.saving(directory) as stage:
        files.write_json(stage(f"{card.slug}.json"), content, strict=True)
        files.write_json(stage(METADATA_FILE), {"graphs": [*entries, content["metadata"]]}, strict=True)
    return directory / f"{card.slug}.json"


def check_place(directory: Path, slugs: Iterable[str]) -> None:
    """Raise an OpenCLTError if graphs of these slugs cannot be written, because they would replace other files."""
    files.check_directory(directory)
    _listed(directory)
    for slug in slugs:
        path = directory / f"{slug}.json"
        if os.path.lexists(path) and not _is_ours(path):
            raise files.foreign(path)


def _listed(directory: Path) -> list[dict[str, Any]]:
    """The entries of a directory's ``graph-metadata.json``; none if it does not exist."""
    index = files.saved(directory, METADATA_FILE)(METADATA_FILE)
    listed = read_object(index, "graphs")["graphs"] if index.exists() else []
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in cast(list[Any], listed)):
        raise CheckpointError(f"{index} does not hold a list of graphs; repair it, or give another directory.")
    return cast(list[dict[str, Any]], listed)


def _is_ours(path: Path) -> bool:
    """Whether the file of a graph states that OpenCLT wrote it."""
    try:
        metadata = read_object(path, "metadata")["metadata"]
    except CheckpointError:
        return False
    match metadata:
        case {"info": {"generator": {"name": name}}}:
            return name == _GENERATOR
        case _:
            return False


def _viewer_id(graph: AttributionGraph, row: int) -> str:
    """Return a node's id in circuit-tracer's notation."""
    layer, position, index = _layer_position_index(graph, row)
    match _type(graph, row):
        case FeatureType.FEATURE | FeatureType.ERROR:
            return f"{layer}_{index}_{position}"
        case FeatureType.EMBEDDING:
            return f"E_{index}_{position}"
        case FeatureType.LOGIT:
            return f"{graph.info.n_layers + 1}_{_output_number(graph, row)}_{position}"


def _output_number(graph: AttributionGraph, row: int) -> int:
    """Return the token's id of an output, or a negative number if the output is not a token."""
    index = int(graph.nodes.index[row])
    return index if int(graph.nodes.kind[row]) == NodeKind.LOGIT else -1 - index


def _metadata(graph: AttributionGraph, card: GraphCard) -> dict[str, Any]:
    """Return the ``metadata`` of a file: the prompt, the models, settings and scores."""
    info, scores = graph.info, graph.scores()
    generation, pruning = _generation(info.settings), _pruning(info.settings)
    # Every graph of this format lacks what a compatible graph lacks, so the description does not mention it.
    missing = "" if info.compatible else graph.missing()
    averages = graph.consensus.summary() if graph.consensus else ""
    about = {
        "description": " ".join(filter(None, (card.description, averages, missing))) or None,
        "creator_name": card.creator,
        "creator_url": card.creator_url,
        "source_urls": list(card.source_urls),
        "generator": _without_nulls({"name": _GENERATOR, "version": info.versions.get("open-clt")}),
        "create_time_ms": card.created and int(card.created.timestamp() * 1000),
    }
    details = _without_nulls({"feature_json_base_url": card.feature_url, "neuronpedia_source_set": card.source_set})
    metadata = {
        "slug": card.slug,
        "scan": card.scan or re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(info.model).name) or "unknown",
        "transcoder_list": [],
        "prompt_tokens": list(info.token_strings),
        "prompt": info.prompt,
        "node_threshold": pruning.get("node_threshold"),
        "schema_version": SCHEMA_VERSION,
        "info": _without_nulls(about),
        "generation_settings": generation or None,
        "pruning_settings": pruning or None,
        "replacement_score": scores.replacement,
        "completeness_score": scores.completeness,
        "faithfulness": info.faithfulness,
        "feature_details": details or None,
    }
    return _without_nulls(metadata)


def _generation(settings: GraphSettings) -> dict[str, Any]:
    """Return the settings that the graph was computed with, under the schema's names."""
    salient = next((target for target in settings.targets if isinstance(target, SalientLogits)), None)
    values = {
        "max_n_logits": salient and salient.max_count,
        "desired_logit_prob": salient and salient.probability,
        "batch_size": settings.batch_size,
        "max_feature_nodes": settings.max_feature_nodes,
    }
    return _without_nulls(values)


def _pruning(settings: GraphSettings) -> dict[str, Any]:
    """Return the thresholds that the graph was pruned with."""
    pruning = settings.pruning
    if pruning is None:
        return {}
    return _without_nulls({"node_threshold": pruning.node_threshold, "edge_threshold": pruning.edge_threshold})


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that are not None, since the schema does not allow nulls in these objects."""
    return {key: value for key, value in values.items() if value is not None}


def _view_json(graph: AttributionGraph, view: GraphView, shown: Mapping[int, str]) -> dict[str, Any]:
    """Return a view as ``qParams``, with the viewers' ids; nodes that are not shown are left out."""

    def viewer_ids(ids: Sequence[str]) -> list[str]:
        return [shown[row] for row in node_numbers(graph, ids).tolist() if row in shown]

    groups = [[supernode.label, *viewer_ids(supernode.members)] for supernode in view.supernodes]
    content = {
        "pinnedIds": viewer_ids(view.pinned),
        "supernodes": [labelled_group for labelled_group in groups if len(labelled_group) > 1],
        "linkType": view.link_type,
        "clickedId": "".join(viewer_ids([view.clicked] if view.clicked else [])),
        "sg_pos": view.positions,
        "pruningThreshold": view.pruning_threshold,
        "clerps": _clerps(graph, shown),
    }
    return _without_nulls(content)


def _clerps(graph: AttributionGraph, shown: Mapping[int, str]) -> str | None:
    """Return labels under the keys of both viewers.

    Circuit-tracer's key is the feature's number; Neuronpedia's key also has the layer and the position.
    """
    circuit_tracer: dict[str, str] = {}
    neuronpedia: dict[str, str] = {}
    for row in shown:
        layer, position, index = _layer_position_index(graph, row)
        feature = Feature(layer, index)
        label = graph.labels.get(feature)
        if int(graph.nodes.kind[row]) == NodeKind.FEATURE and label:
            circuit_tracer[f"{cantor_pair(feature)}"] = label
            neuronpedia[f"{layer}_{cantor_pair(feature)}_{position}"] = label
    clerps = [[key, label] for key, label in {**circuit_tracer, **neuronpedia}.items()]
    return json.dumps(clerps, ensure_ascii=False) if clerps else None


def _layer_position_index(graph: AttributionGraph, row: int) -> tuple[int, int, int]:
    nodes = graph.nodes
    return int(nodes.layer[row]), int(nodes.position[row]), int(nodes.index[row])


def _nodes_json(graph: AttributionGraph, shown: Mapping[int, str]) -> Iterator[dict[str, Any]]:
    """Yield the shown nodes as the viewers' JSON objects."""
    cumulative = graph.nodes.cumulative
    if bool(cumulative.isnan().all()):
        cumulative = cumulative_influence(graph.influence())
    first_output = min((row for row in shown if _type(graph, row) is FeatureType.LOGIT), default=-1)
    for row, viewer_id in shown.items():
        kind = _type(graph, row)
        node = {
            "node_id": viewer_id,
            "feature": -1,
            "layer": "",
            "ctx_idx": int(graph.nodes.position[row]),
            "feature_type": kind.value,
            "token_prob": 0.0,
            "is_target_logit": row == first_output,
            "run_idx": 0,
            "reverse_ctx_idx": 0,
            "jsNodeId": "",
            "clerp": "",
            "influence": None if kind is FeatureType.LOGIT else float(cumulative[row]),
            "activation": None,
        }
        yield {**node, **_entries_of_kind(graph, row, kind)}


def _type(graph: AttributionGraph, row: int) -> FeatureType:
    return _TYPES[NodeKind(int(graph.nodes.kind[row]))]


def _entries_of_kind(graph: AttributionGraph, row: int, kind: FeatureType) -> dict[str, Any]:
    """Return the entries of a node's JSON object that depend on its kind."""
    layer, position, index = _layer_position_index(graph, row)
    match kind:
        case FeatureType.FEATURE:
            feature = Feature(layer, index)
            label, activation = graph.labels.get(feature, ""), float(graph.nodes.value[row])
            entries = {"feature": cantor_pair(feature), "clerp": label, "activation": activation}
            return {**entries, "layer": str(layer), "jsNodeId": f"{layer}_{index}-0"}
        case FeatureType.ERROR:
            return {"layer": str(layer), "jsNodeId": f"{layer}_-1-{position}"}
        case FeatureType.EMBEDDING:
            return {"feature": position, "layer": "E", "jsNodeId": f"E_{index}-{position}"}
        case FeatureType.LOGIT:
            is_token = int(graph.nodes.kind[row]) == NodeKind.LOGIT
            probability, name = float(graph.nodes.weight[row]), graph.info.target_names[row - graph.n_nodes]
            entries = {"token_prob": probability, "layer": str(graph.info.n_layers + 1)}
            entries["feature"] = _output_number(graph, row)
            entries["clerp"] = f'Output "{name}" (p={probability:.3f})' if is_token else name
            return {**entries, "jsNodeId": f"L_{entries['feature']}-{position}"}
