"""Attribution graphs as the JSON that circuit-tracer's viewer and Neuronpedia show.

Beside the files of a folder stands ``graph-metadata.json``, which lists them. The viewers know features, errors,
tokens and logits: positional embeddings, biases and MLP outputs are left out with their edges, and a target that is
no token is written as a logit with a negative number. The metadata's scores are those of the whole graph.

Ids, in circuit-tracer's notation (position last): ``2_417_5`` a feature, ``2_-1_5`` an error, ``E_330_5`` a token, and
``7_1234_5`` a logit of a model with six layers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from open_clt import files
from open_clt.graphs.formats.circuit_tracer_schema import (
    METADATA_FILE,
    SCHEMA_VERSION,
    FeatureType,
    GraphCard,
    GraphView,
    cantor_pair,
    read_object,
)
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.influence import cumulative_influence
from open_clt.graphs.info import GraphSettings
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.operations import node_numbers
from open_clt.graphs.targets import SalientLogits
from open_clt.transcoders.feature import Feature

_TYPES = {
    NodeKind.FEATURE: FeatureType.FEATURE,
    NodeKind.ERROR: FeatureType.ERROR,
    NodeKind.EMBEDDING: FeatureType.EMBEDDING,
    NodeKind.LOGIT: FeatureType.LOGIT,
    NodeKind.TARGET: FeatureType.LOGIT,
}


def circuit_tracer_json(graph: AttributionGraph, card: GraphCard, view: GraphView | None = None) -> dict[str, Any]:
    """The graph as the viewers' JSON; raises AttributionError if the view names nodes that the graph does not have."""
    linked = set(torch.cat([*graph.edges[:2]]).tolist())
    # As circuit-tracer does: of nodes without edges, only tokens and outputs are shown.
    shown = {
        number: _viewer_id(graph, number)
        for number, kind in enumerate(map(NodeKind, graph.nodes.kind.tolist()))
        if kind in _TYPES and (number in linked or kind not in (NodeKind.FEATURE, NodeKind.ERROR))
    }
    columns = zip(*(column.tolist() for column in graph.edges), strict=True)
    return {
        "metadata": _metadata(graph, card),
        "qParams": _view_json(graph, view or GraphView(), shown),
        "nodes": list(_nodes_json(graph, shown)),
        "links": [
            {"source": shown[source], "target": shown[target], "weight": weight}
            for target, source, weight in columns
            if source in shown and target in shown
        ],
    }


def write_circuit_tracer(
    graph: AttributionGraph, directory: str | Path, card: GraphCard, view: GraphView | None = None
) -> Path:
    """Write ``<slug>.json``, enter it in the directory's ``graph-metadata.json``, and return its path."""
    content = circuit_tracer_json(graph, card, view)
    graph.report_missing()
    directory = Path(directory)
    index = files.kept(directory / METADATA_FILE)
    known = cast(list[dict[str, Any]], read_object(index, "graphs")["graphs"]) if index.exists() else []
    entries = [entry for entry in known if entry.get("slug") != card.slug]
    with files.saving(directory) as stage:
        files.write_json(stage(f"{card.slug}.json"), content, strict=True)
        files.write_json(stage(METADATA_FILE), {"graphs": [*entries, content["metadata"]]}, strict=True)
    return directory / f"{card.slug}.json"


def _viewer_id(graph: AttributionGraph, number: int) -> str:
    """A node's id as the viewers know it."""
    layer, position, index = _place(graph, number)
    match _type(graph, number):
        case FeatureType.FEATURE | FeatureType.ERROR:
            return f"{layer}_{index}_{position}"
        case FeatureType.EMBEDDING:
            return f"E_{index}_{position}"
        case FeatureType.LOGIT:
            return f"{graph.info.n_layers + 1}_{_output_number(graph, number)}_{position}"


def _output_number(graph: AttributionGraph, number: int) -> int:
    """A token's id; a target that is not a token has a negative number, which no token has."""
    index = int(graph.nodes.index[number])
    return index if int(graph.nodes.kind[number]) == NodeKind.LOGIT else -1 - index


def _metadata(graph: AttributionGraph, card: GraphCard) -> dict[str, Any]:
    info, scores = graph.info, graph.scores()
    generation, pruning = _generation(info.settings), _pruning(info.settings)
    # A compatible graph leaves out what every graph of this format does: no news to its readers.
    missing = "" if info.compatible else graph.missing()
    about = {
        "description": " ".join(filter(None, (card.description, missing))) or None,
        "creator_name": card.creator,
        "creator_url": card.creator_url,
        "source_urls": list(card.source_urls),
        "generator": _known({"name": "OpenCLT", "version": info.versions.get("open-clt")}),
        "create_time_ms": card.created and int(card.created.timestamp() * 1000),
    }
    details = _known({"feature_json_base_url": card.feature_url, "neuronpedia_source_set": card.source_set})
    metadata = {
        "slug": card.slug,
        "scan": card.scan or re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(info.model).name) or "unknown",
        "transcoder_list": [],
        "prompt_tokens": list(info.token_strings),
        "prompt": info.prompt,
        "node_threshold": pruning.get("node_threshold"),
        "schema_version": SCHEMA_VERSION,
        "info": _known(about),
        "generation_settings": generation or None,
        "pruning_settings": pruning or None,
        "replacement_score": scores.replacement,
        "completeness_score": scores.completeness,
        "faithfulness": info.faithfulness,
        "feature_details": details or None,
    }
    return _known(metadata)


def _generation(settings: GraphSettings) -> dict[str, Any]:
    """What the graph was computed with, in the schema's words."""
    salient = next((target for target in settings.targets if isinstance(target, SalientLogits)), None)
    values = {
        "max_n_logits": salient and salient.max_count,
        "desired_logit_prob": salient and salient.probability,
        "batch_size": settings.batch_size,
        "max_feature_nodes": settings.max_feature_nodes,
    }
    return _known(values)


def _pruning(settings: GraphSettings) -> dict[str, Any]:
    pruning = settings.pruning
    if pruning is None:
        return {}
    return _known({"node_threshold": pruning.node_threshold, "edge_threshold": pruning.edge_threshold})


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are not None: the schema has no nulls there."""
    return {key: value for key, value in values.items() if value is not None}


def _view_json(graph: AttributionGraph, view: GraphView, shown: Mapping[int, str]) -> dict[str, Any]:
    def names(wanted: Sequence[str]) -> list[str]:
        return [shown[number] for number in node_numbers(graph, wanted).tolist() if number in shown]

    groups = [[joined.label, *names(joined.members)] for joined in view.supernodes]
    content = {
        "pinnedIds": names(view.pinned),
        "supernodes": [members for members in groups if len(members) > 1],
        "linkType": view.link_type,
        "clickedId": "".join(names([view.clicked] if view.clicked else [])),
        "sg_pos": view.positions,
        "pruningThreshold": view.pruning_threshold,
        "clerps": _clerps(graph, shown),
    }
    return _known(content)


def _clerps(graph: AttributionGraph, shown: Mapping[int, str]) -> str | None:
    """Labels by both keys: circuit-tracer's is the feature's number, Neuronpedia's has its layer and position too."""
    by_feature: dict[str, str] = {}
    by_place: dict[str, str] = {}
    for number in shown:
        layer, position, index = _place(graph, number)
        feature = Feature(layer, index)
        label = graph.labels.get(feature)
        if int(graph.nodes.kind[number]) == NodeKind.FEATURE and label:
            by_feature[f"{cantor_pair(feature)}"] = label
            by_place[f"{layer}_{cantor_pair(feature)}_{position}"] = label
    clerps = [[key, label] for key, label in {**by_feature, **by_place}.items()]
    return json.dumps(clerps, ensure_ascii=False) if clerps else None


def _place(graph: AttributionGraph, number: int) -> tuple[int, int, int]:
    nodes = graph.nodes
    return int(nodes.layer[number]), int(nodes.position[number]), int(nodes.index[number])


def _nodes_json(graph: AttributionGraph, shown: Mapping[int, str]) -> Iterator[dict[str, Any]]:
    cumulative = graph.nodes.cumulative
    if bool(cumulative.isnan().all()):
        cumulative = cumulative_influence(graph.influence())
    first_output = min((number for number in shown if _type(graph, number) is FeatureType.LOGIT), default=-1)
    for number, name in shown.items():
        kind = _type(graph, number)
        node = {
            "node_id": name,
            "feature": -1,
            "layer": "",
            "ctx_idx": int(graph.nodes.position[number]),
            "feature_type": kind.value,
            "token_prob": 0.0,
            "is_target_logit": number == first_output,
            "run_idx": 0,
            "reverse_ctx_idx": 0,
            "jsNodeId": "",
            "clerp": "",
            "influence": None if kind is FeatureType.LOGIT else float(cumulative[number]),
            "activation": None,
        }
        yield {**node, **_own_json(graph, number, kind)}


def _type(graph: AttributionGraph, number: int) -> FeatureType:
    return _TYPES[NodeKind(int(graph.nodes.kind[number]))]


def _own_json(graph: AttributionGraph, number: int, kind: FeatureType) -> dict[str, Any]:
    """What nodes of one kind say in a way of their own."""
    layer, position, index = _place(graph, number)
    match kind:
        case FeatureType.FEATURE:
            feature = Feature(layer, index)
            label, activation = graph.labels.get(feature, ""), float(graph.nodes.value[number])
            own = {"feature": cantor_pair(feature), "clerp": label, "activation": activation}
            return {**own, "layer": str(layer), "jsNodeId": f"{layer}_{index}-0"}
        case FeatureType.ERROR:
            return {"layer": str(layer), "jsNodeId": f"{layer}_-1-{position}"}
        case FeatureType.EMBEDDING:
            return {"feature": position, "layer": "E", "jsNodeId": f"E_{index}-{position}"}
        case FeatureType.LOGIT:
            is_token = int(graph.nodes.kind[number]) == NodeKind.LOGIT
            probability, name = (
                float(graph.nodes.weight[number]),
                graph.info.target_names[number - graph.n_nodes],
            )
            own = {"token_prob": probability, "layer": str(graph.info.n_layers + 1)}
            own["feature"] = _output_number(graph, number)
            own["clerp"] = f'Output "{name}" (p={probability:.3f})' if is_token else name
            return {**own, "jsNodeId": f"L_{own['feature']}-{position}"}
