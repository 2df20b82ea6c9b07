"""Graph information: a graph's prompt and models, and the settings that it was computed and pruned with.

``info_json`` turns the information into JSON values, and ``read_info`` turns them back. The vectors of ``Direction``
targets are stored separately, as tensors. Files of format version 1 are translated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast, final

from torch import Tensor

from open_clt.config.json import CheckedConfig, from_dict, to_dict
from open_clt.graphs.targets import Direction, Target
from open_clt.short_repr import short_repr

_PRUNING = ("node_threshold", "edge_threshold", "keep_errors")


@final
@dataclass(frozen=True, kw_only=True)
class PruningSettings(CheckedConfig):
    """The settings that a graph was pruned with; a setting is None if the file of another program lacks it."""

    node_threshold: float | None = None
    """Share of the nodes' influence that the remaining nodes hold."""
    edge_threshold: float | None = None
    """Share of the edges' influence that the remaining edges hold."""
    keep_errors: bool | None = None
    """Whether error nodes stay as long as one of their edges stays."""


@final
@dataclass(frozen=True, kw_only=True)
class GraphSettings(CheckedConfig):
    """The settings that a graph was computed with."""

    targets: tuple[Target | None, ...] = ()
    """Targets that the graph explains, with token ids and positions from the prompt's start; empty if not known.

    None is a direction in a file of format version 1, which does not store the direction's vector.
    """
    max_feature_nodes: int | None = None
    """Largest number of features that were attributed; None is all."""
    use_first_position: bool = False
    """Whether features are used at the first position."""
    batch_size: int | None = None
    """Number of rows that were computed at a time; None if not known."""
    pruning: PruningSettings | None = None
    """Settings of the pruning; None if the graph is not pruned."""

    def target(self, index: int) -> Target | None:
        """Return the target with this number; None if it is not known."""
        return self.targets[index] if 0 <= index < len(self.targets) else None


@final
@dataclass(frozen=True, kw_only=True)
class GraphInfo(CheckedConfig):
    """The models, prompt and settings of a graph, and the names of its tokens and targets."""

    model: str
    """Name of the language model."""
    transcoder: str | None
    """Name of the language model that the transcoder was trained for, from the transcoder's config."""
    prompt: str
    """Text of the prompt."""
    tokens: tuple[int, ...]
    """Token ids of the prompt."""
    token_strings: tuple[str, ...]
    """Text of each token of the prompt."""
    target_names: tuple[str, ...]
    """Names of the outputs, in the order of their nodes: a token's text, or the name of another target."""
    n_layers: int
    """Number of layers of the language model."""
    n_active_features: int
    """Number of features that are active on the prompt, with those that ``max_feature_nodes`` left out."""
    compatible: bool
    """Whether positional embeddings, biases and MLP outputs are left out, as circuit-tracer does."""
    settings: GraphSettings = field(default_factory=GraphSettings)
    """Settings that the graph was computed with."""
    versions: dict[str, str] = field(default_factory=dict[str, str])
    """Versions of the packages that computed the graph."""
    faithfulness: dict[str, Any] | None = None
    """Numbers of the test against interventions (``evaluation.faithfulness``); None if it was not run."""
    influence_left_out: float | None = None
    """Share of the influence that ends at features that the budget left out; None if the graph's file lacks it."""
    transcoder_hash: str | None = None
    """Fingerprint of the transcoder, which tells transcoders apart; None if it is not known."""

    def left_out(self) -> str:
        """Return a sentence on the features that the budget left out, or an empty text if it left out none."""
        budget, active = self.settings.max_feature_nodes, self.n_active_features
        if budget is None or budget >= active:
            return ""
        share = "" if self.influence_left_out is None else f", with {self.influence_left_out:.2g} of the influence"
        return (
            f"The budget of {budget:,} left out {active - budget:,} of {active:,} active features{share}; "
            "they count as errors."
        )

    __repr__ = short_repr


class InfoJson(NamedTuple):
    """A graph's information in the form that files store."""

    facts: dict[str, Any]
    """The information as plain values, without the vectors."""
    vectors: dict[str, Tensor]
    """Vectors of the targets that are directions, by the target's number."""

    __repr__ = short_repr


def info_json(info: GraphInfo) -> InfoJson:
    """Return the information as plain values, and the vectors of its targets."""
    facts, vectors = to_dict(info), dict[str, Tensor]()
    for index, target in enumerate(info.settings.targets):
        if isinstance(target, Direction):
            vectors[str(index)] = facts["settings"]["targets"][index].pop("vector")
    return InfoJson(facts, vectors)


def read_info(facts: Mapping[str, Any], vectors: Mapping[str, Tensor], format_version: int) -> GraphInfo:
    """Read what ``info_json`` returned; raises ConfigError on missing or unknown entries."""
    facts = dict(facts)
    if format_version == 1:
        facts["settings"] = _settings_of_version_1(facts.get("settings", {}))
    targets = list(facts["settings"].get("targets", ()))
    for index, vector in vectors.items():
        targets[int(index)] = {**targets[int(index)], "vector": vector}
    return from_dict(GraphInfo, {**facts, "settings": {**facts["settings"], "targets": targets}})


def _settings_of_version_1(former: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the settings of version 1, which stored them in one flat object, without the vectors of directions."""
    complete_kinds = ("salient_logits", "token_logits", "logit_difference", "feature")
    targets = [
        target if isinstance(target, dict) and cast(dict[str, Any], target).get("kind") in complete_kinds else None
        for target in former.get("targets", ())
    ]
    return {
        "targets": targets,
        "max_feature_nodes": former.get("max_feature_nodes"),
        "use_first_position": not former.get("skip_first_position", True),
        "batch_size": former.get("batch_size"),
        "pruning": {name: former[name] for name in _PRUNING if name in former} or None,
    }
