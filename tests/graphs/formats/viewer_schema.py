"""The rules of the viewers' schema, version 1, and a validator of its files that is independent of our writer."""

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
    "faithfulness": dict,  # our addition: the schema allows more keys
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
    "qk_tracing_results": dict,
}
QK_TRACING = {"pair_wise_contributors": 2, "top_q_marginal_contributors": 1, "top_k_marginal_contributors": 1}
"""The lists of ``qk_tracing_results`` (Neuronpedia's ``CLTGraphNode``), with the number of ids in an entry."""


def broken_rules(content: dict[str, Any]) -> list[str]:
    """Describe the rules that a file breaks; the list is empty for a file that the viewers accept."""
    keys = set(content) - {"qk_only_nodes"}  # Neuronpedia's ``CLTGraph`` has it if attention is explained
    mistakes = [f"top: {keys}"] if keys != {"metadata", "qParams", "nodes", "links"} else []
    mistakes += _attention_mistakes(content)
    mistakes += _metadata_mistakes(content["metadata"])
    ids = [node["node_id"] for node in content["nodes"]]
    mistakes += [f"two nodes are {node_id}" for node_id in ids if ids.count(node_id) > 1]
    known_ids = set(ids)
    mistakes += _view_mistakes(content["qParams"], known_ids)
    n_tokens = len(content["metadata"]["prompt_tokens"])
    for node in content["nodes"]:
        mistakes += _type_mistakes(node, NODE_REQUIRED, NODE_OPTIONAL, node["node_id"])
        mistakes += _node_mistakes(node, n_tokens)
    outputs = [node["is_target_logit"] for node in content["nodes"] if node["feature_type"] == "logit"]
    mistakes += [] if outputs == [True] + [False] * (len(outputs) - 1) else [f"target logits: {outputs}"]
    for link in content["links"]:
        mistakes += _type_mistakes(link, {"source": str, "target": str, "weight": (int, float)}, {}, "link")
        mistakes += [f"no node {link[end]}" for end in ("source", "target") if link[end] not in known_ids]
    return mistakes


def _attention_mistakes(content: dict[str, Any]) -> list[str]:
    shown, others = {node["node_id"] for node in content["nodes"]}, content.get("qk_only_nodes", {})
    mistakes = [f"{name} is {node}" for name, node in others.items() if node["node_id"] != name or name in shown]
    mistakes += [f"{name} lacks {key}" for name, node in others.items() for key in NODE_REQUIRED if key not in node]
    for node in content["nodes"]:
        results = node.get("qk_tracing_results", dict.fromkeys(QK_TRACING, ()))
        mistakes += [] if set(results) == set(QK_TRACING) else [f"results: {set(results)}"]
        for name, count in QK_TRACING.items():
            for *ids, weight in results.get(name, ()):
                known = all(each in shown or each in others for each in ids)
                mistakes += [] if len(ids) == count and known and isinstance(weight, float) else [f"{name}: {ids}"]
    return mistakes


def _metadata_mistakes(metadata: dict[str, Any]) -> list[str]:
    mistakes = _type_mistakes(metadata, METADATA_REQUIRED, METADATA_OPTIONAL, "metadata")
    mistakes += [] if re.fullmatch(r"[A-Za-z0-9_.-]+", metadata["slug"]) else ["slug"]
    mistakes += [] if re.fullmatch(r"(\./)?[A-Za-z0-9_.-]+", metadata["scan"]) else ["scan"]
    mistakes += [] if metadata.get("schema_version", 1) == 1 else ["schema_version"]
    for key, allowed in INNER.items():
        mistakes += [f"{key}.{name}" for name in set(metadata.get(key, {})) - allowed]
    return mistakes


def _view_mistakes(params: dict[str, Any], known_ids: set[str]) -> list[str]:
    required = {key: kind for key, kind in PARAMS.items() if key not in ("pruningThreshold", "clerps")}
    mistakes = _type_mistakes(params, required, {key: PARAMS[key] for key in PARAMS if key not in required}, "q")
    mistakes += [] if params["linkType"] in ("both", "either") else ["linkType"]
    members = [node_id for _, *group in params["supernodes"] for node_id in group]
    clicked = [params["clickedId"]] if params["clickedId"] else []
    viewed = [*params["pinnedIds"], *members, *clicked]
    mistakes += [f"view of {node_id}" for node_id in viewed if node_id not in known_ids]
    pairs = json.loads(params.get("clerps", "[]"))
    return mistakes + [f"clerp {pair}" for pair in pairs if list(map(type, pair)) != [str, str]]


def _node_mistakes(node: dict[str, Any], n_tokens: int) -> list[str]:
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


def _type_mistakes(values: dict[str, Any], required: dict[str, Any], optional: dict[str, Any], name: str) -> list[str]:
    """Describe missing keys, unknown keys and values of wrong types in the object that is called ``name``."""
    mistakes = [f"{name} lacks {key}" for key in required if key not in values]
    mistakes += [f"{name} has {key}" for key in values if key not in required and key not in optional]
    types = {**required, **optional}
    return mistakes + [
        f"{name}.{key} is {value!r}"
        for key, value in values.items()
        if key in types and not isinstance(value, types[key])
    ]
