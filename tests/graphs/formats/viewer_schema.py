"""The rules of the viewers' schema, version 1, and a validator of its files that knows nothing of our writer."""

from __future__ import annotations

import json
import re
from typing import Any

METADATA_REQUIRED = {"slug": str, "scan": str, "prompt_tokens": list, "prompt": str}
METADATA_OPTIONAL = {
    "transcoder_list": list,
    "node_threshold": (int, float),
    "schema_version": int,
    "info": dict,
    "generation_settings": dict,
    "pruning_settings": dict,
    "replacement_score": (int, float),
    "completeness_score": (int, float),
    "feature_details": dict,
    "faithfulness": dict,  # ours; the schema takes more keys
}
INNER = {
    "info": {"description", "creator_name", "creator_url", "source_urls", "generator", "create_time_ms"},
    "generation_settings": {"max_n_logits", "desired_logit_prob", "batch_size", "max_feature_nodes"},
    "pruning_settings": {"node_threshold", "edge_threshold"},
    "feature_details": {"feature_json_base_url", "neuronpedia_source_set"},
}
PARAMS = {
    "pinnedIds": list,
    "supernodes": list,
    "linkType": str,
    "clickedId": str,
    "sg_pos": str,
    "pruningThreshold": (int, float),
    "clerps": str,
}
NODE_REQUIRED = {
    "node_id": str,
    "feature": (int, type(None)),
    "layer": str,
    "ctx_idx": int,
    "feature_type": str,
    "jsNodeId": str,
    "clerp": str,
}
NODE_OPTIONAL = {
    "token_prob": (int, float),
    "is_target_logit": bool,
    "run_idx": int,
    "reverse_ctx_idx": int,
    "influence": (int, float, type(None)),
    "activation": (int, float, type(None)),
}


def broken_rules(content: dict[str, Any]) -> list[str]:
    """What a file breaks; empty for one that the viewers take."""
    found = [f"top: {set(content)}"] if set(content) != {"metadata", "qParams", "nodes", "links"} else []
    found += _metadata(content["metadata"])
    names = [node["node_id"] for node in content["nodes"]]
    found += [f"two nodes are {name}" for name in names if names.count(name) > 1]
    found += _view(content["qParams"], set(names))
    n_tokens = len(content["metadata"]["prompt_tokens"])
    for node in content["nodes"]:
        found += _typed(node, NODE_REQUIRED, NODE_OPTIONAL, node["node_id"])
        found += _node(node, n_tokens)
    outputs = [node["is_target_logit"] for node in content["nodes"] if node["feature_type"] == "logit"]
    found += [] if outputs == [True] + [False] * (len(outputs) - 1) else [f"target logits: {outputs}"]
    place = {name: number for number, name in enumerate(names)}
    for link in content["links"]:
        found += _typed(link, {"source": str, "target": str, "weight": (int, float)}, {}, "link")
        found += [f"no node {link[end]}" for end in ("source", "target") if link[end] not in place]
    return found


def _metadata(metadata: dict[str, Any]) -> list[str]:
    found = _typed(metadata, METADATA_REQUIRED, METADATA_OPTIONAL, "metadata")
    found += [] if re.fullmatch(r"[A-Za-z0-9_.-]+", metadata["slug"]) else ["slug"]
    found += [] if re.fullmatch(r"(\./)?[A-Za-z0-9_.-]+", metadata["scan"]) else ["scan"]
    found += [] if metadata.get("schema_version", 1) == 1 else ["schema_version"]
    for key, known in INNER.items():
        found += [f"{key}.{name}" for name in set(metadata.get(key, {})) - known]
    return found


def _view(params: dict[str, Any], names: set[str]) -> list[str]:
    required = {key: kind for key, kind in PARAMS.items() if key not in ("pruningThreshold", "clerps")}
    found = _typed(params, required, {key: PARAMS[key] for key in PARAMS if key not in required}, "q")
    found += [] if params["linkType"] in ("both", "either") else ["linkType"]
    members = [name for _, *ids in params["supernodes"] for name in ids]
    clicked = [params["clickedId"]] if params["clickedId"] else []
    found += [f"view of {name}" for name in [*params["pinnedIds"], *members, *clicked] if name not in names]
    pairs = json.loads(params.get("clerps", "[]"))
    return found + [f"clerp {pair}" for pair in pairs if list(map(type, pair)) != [str, str]]


def _node(node: dict[str, Any], n_tokens: int) -> list[str]:
    first, middle, position = node["node_id"].split("_")
    expected: dict[str, tuple[Any, ...]] = {
        "cross layer transcoder": (first, "number", f"{first}_{middle}-0"),
        "mlp reconstruction error": (first, -1, f"{first}_-1-{position}"),
        "embedding": ("E", int(position), f"E_{middle}-{position}"),
        "logit": (first, int(middle), f"L_{middle}-{position}"),
    }
    if node["feature_type"] not in expected:
        return [f"kind {node['feature_type']}"]
    layer, feature, script = expected[node["feature_type"]]
    if feature == "number":
        total = int(first) + int(middle)
        feature = total * (total + 1) // 2 + int(middle)
    same = (node["layer"], node["feature"], node["jsNodeId"]) == (layer, feature, script)
    inside = node["ctx_idx"] == int(position) < n_tokens
    return [] if same and inside else [f"{node['node_id']} disagrees with itself: {node}"]


def _typed(values: dict[str, Any], required: dict[str, Any], optional: dict[str, Any], where: str) -> list[str]:
    found = [f"{where} lacks {key}" for key in required if key not in values]
    found += [f"{where} has {key}" for key in values if key not in required and key not in optional]
    known = {**required, **optional}
    return found + [
        f"{where}.{key} is {value!r}"
        for key, value in values.items()
        if key in known and not isinstance(value, known[key])
    ]
