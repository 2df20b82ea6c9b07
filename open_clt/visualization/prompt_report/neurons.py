"""The comparison of a report's graph with a graph of the model's own neurons, which needs no trained transcoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from open_clt.errors import ConfigError
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.influence import GraphScores
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.operations import sizes_at_replacement
from open_clt.graphs.targets import FeaturePreactivation, Target
from open_clt.short_repr import short_repr
from open_clt.transcoders.neurons.source import NEURONS
from open_clt.transcoders.neurons.transcoder import NeuronTranscoder
from open_clt.transcoders.transcoder import Transcoder

SHARES = (0.2, 0.3, 0.4, 0.5)
"""Replacement scores whose sizes are compared."""


class Explained(NamedTuple):
    """How much of an answer a graph explains, and with how many features."""

    active: int
    """Number of active features."""
    rows: int
    """Number of features with rows."""
    scores: GraphScores
    """Scores of the whole graph."""
    sizes: dict[float, float]
    """Number of features that each share of ``SHARES`` takes; NaN for shares that the graph does not reach."""

    __repr__ = short_repr


class NeuronComparison(NamedTuple):
    """A graph of features and a graph of neurons of the same prompt and targets."""

    features: Explained
    neurons: Explained

    __repr__ = short_repr


def explained(graph: AttributionGraph) -> Explained:
    """Measure a graph that is not pruned."""
    rows = int(graph.of_kind(NodeKind.FEATURE).sum())
    return Explained(graph.info.n_active_features, rows, graph.scores(), sizes_at_replacement(graph, SHARES))


def check_comparable(transcoder: Transcoder, targets: Target | Sequence[Target] | None) -> None:
    """Raise ConfigError if the transcoder is the model's neurons, or if one of its features is to be explained."""
    if any(
        isinstance(each, FeaturePreactivation) for each in (targets if isinstance(targets, Sequence) else [targets])
    ):
        raise ConfigError(
            "A target is a feature of the transcoder, which neurons do not have, so their graphs cannot be compared; "
            "leave out the comparison (--neurons) or the target."
        )
    if isinstance(transcoder, NeuronTranscoder):
        raise ConfigError(
            f"The transcoder is {NEURONS!r}, so a comparison with the model's own neurons compares nothing; leave it "
            "out (--neurons)."
        )
