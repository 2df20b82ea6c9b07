"""What a graph tells about itself: its prompt, and the settings that it was computed and pruned with.

``info_json`` and ``read_info`` carry it to JSON and back; the vectors of ``Direction`` targets travel beside it, as
tensors. Files of format version 1 are translated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast, final

from torch import Tensor

from open_clt.config.json import from_dict, to_dict
from open_clt.graphs.targets import Direction, Target

_PRUNING = ("node_threshold", "edge_threshold", "keep_errors")


@final
@dataclass(frozen=True, kw_only=True)
class PruningSettings:
    """What a graph was pruned with; None where the file of another program does not tell."""

    node_threshold: float | None = None
    """Share of the influence that the nodes hold."""
    edge_threshold: float | None = None
    """Share of the edges' influence that the edges hold."""
    keep_errors: bool | None = None
    """Whether errors are measured by their edges alone."""


@final
@dataclass(frozen=True, kw_only=True)
class GraphSettings:
    """What a graph was computed with."""

    targets: tuple[Target | None, ...] = ()
    """What was explained, with token ids and positions from the prompt's start; empty where a file does not tell.

    None stands for a target that a file of format version 1 does not hold: a direction.
    """
    max_feature_nodes: int | None = None
    """How many features were attributed at most; None is all."""
    use_first_position: bool = False
    """Whether features are used at the first position."""
    batch_size: int | None = None
    """Rows that were computed at a time; None where a file does not tell."""
    pruning: PruningSettings | None = None
    """None where the graph is not pruned."""

    def target(self, index: int) -> Target | None:
        """The target with this number; None if the graph does not know it."""
        return self.targets[index] if 0 <= index < len(self.targets) else None


@final
@dataclass(frozen=True, kw_only=True)
class GraphInfo:
    """Where a graph comes from, and the words it needs."""

    model: str
    """Name of the language model."""
    transcoder: str | None
    """Name of the model that the transcoder was trained for, as the transcoder tells it."""
    prompt: str
    tokens: tuple[int, ...]
    token_strings: tuple[str, ...]
    target_names: tuple[str, ...]
    """Names of the outputs, in their order: a token's text, or what was asked for."""
    n_layers: int
    n_active_features: int
    """Features active on the prompt, whether or not the budget allowed to attribute them."""
    compatible: bool
    """Whether positional embeddings, biases and MLP outputs were left out, as circuit-tracer does."""
    settings: GraphSettings = field(default_factory=GraphSettings)
    versions: dict[str, str] = field(default_factory=dict[str, str])
    """Versions of the packages that computed the graph."""
    faithfulness: dict[str, Any] | None = None
    """How far the graph's predictions hold in the model, if that was measured (``analysis.faithfulness``)."""


class InfoJson(NamedTuple):
    """A graph's info as a file holds it."""

    facts: dict[str, Any]
    """Plain values."""
    vectors: dict[str, Tensor]
    """Vectors of the targets that are directions, by the target's number."""


def info_json(info: GraphInfo) -> InfoJson:
    """The info as plain values, and the vectors that are in it."""
    facts, vectors = to_dict(info), dict[str, Tensor]()
    for number, target in enumerate(info.settings.targets):
        if isinstance(target, Direction):
            vectors[str(number)] = facts["settings"]["targets"][number].pop("vector")
    return InfoJson(facts, vectors)


def read_info(facts: Mapping[str, Any], vectors: Mapping[str, Tensor], format_version: int) -> GraphInfo:
    """What ``info_json`` made plain; raises ConfigError on missing or unknown entries."""
    facts = dict(facts)
    if format_version == 1:
        facts["settings"] = _settings_of_version_1(facts.get("settings", {}))
    targets = list(facts["settings"].get("targets", ()))
    for number, vector in vectors.items():
        targets[int(number)] = {**targets[int(number)], "vector": vector}
    return from_dict(GraphInfo, {**facts, "settings": {**facts["settings"], "targets": targets}})


def _settings_of_version_1(former: Mapping[str, Any]) -> dict[str, Any]:
    """Version 1 kept all settings in one flat object, without the vectors of directions."""
    known = ("salient_logits", "token_logits", "logit_difference", "feature")
    targets = [
        target if isinstance(target, dict) and cast(dict[str, Any], target).get("kind") in known else None
        for target in former.get("targets", ())
    ]
    return {
        "targets": targets,
        "max_feature_nodes": former.get("max_feature_nodes"),
        "use_first_position": not former.get("skip_first_position", True),
        "batch_size": former.get("batch_size"),
        "pruning": {name: former[name] for name in _PRUNING if name in former} or None,
    }
