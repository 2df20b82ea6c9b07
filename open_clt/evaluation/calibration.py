"""Calibration: the probability that ablating a node, or cutting an edge, changes the answer as the graph predicts.

Logistic regressions on trials (``trials.py``) give the probability from the logarithms of the predicted change (the
weight of all paths to the answer) and of the influence, and, in a consensus, from the frequency. There are four: for
nodes and for edges, of graphs that stand alone and of a consensus. ``reliability`` compares probabilities with what
happened: the expected calibration error (ECE, Naeini et al., 2015) is the mean distance between the two over bins of
probability. ``with_confidence`` gives every feature of a graph its probability, which is then stored and shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from open_clt import files
from open_clt.config.arguments import Count, checked_arguments
from open_clt.config.json import CheckedConfig, from_dict, to_dict
from open_clt.errors import CheckpointError, ConfigError
from open_clt.evaluation.trials import FACTOR, Predictions, Trial, edge_predictions, node_predictions
from open_clt.features.places import directories_of
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.short_repr import short_repr
from open_clt.transcoders.formats.fingerprint import fingerprint
from open_clt.transcoders.transcoder import Transcoder

FORMAT = files.FileFormat("open-clt-calibration", newest=1)
FILE = "calibration.json"
"""Name of the file of a calibration, beside the transcoder."""
Group: TypeAlias = Literal["node", "edge", "consensus_node", "consensus_edge"]
"""What a regression is about."""
GROUPS: tuple[Group, ...] = ("node", "edge", "consensus_node", "consensus_edge")
_FEWEST = 20
"""Fewest trials that a regression is fitted on."""
_LEAST = 1e-8
"""Least change and influence of which the logarithm is taken."""


@final
@dataclass(frozen=True, kw_only=True)
class Logistic(CheckedConfig):
    """A logistic regression: the probability is the sigmoid of the intercept plus the weighted columns."""

    intercept: float
    """Log odds where all columns are 0."""
    weights: tuple[float, ...]
    """Weights of log10 of the predicted change, of log10 of the influence, and in a consensus of the frequency."""
    trials: int
    """Number of trials that the regression was fitted on."""
    share: float
    """Share of these trials that turned out as predicted."""


@final
@dataclass(frozen=True, kw_only=True)
class Calibration(CheckedConfig):
    """The regressions of one transcoder; one is None if there were too few trials, or only one outcome."""

    transcoder_hash: str
    """Fingerprint of the transcoder."""
    factor: float = FACTOR
    """Largest ratio of predicted and measured changes that counts as predicted."""
    node: Logistic | None = None
    """For nodes of graphs that stand alone."""
    edge: Logistic | None = None
    """For edges of graphs that stand alone."""
    consensus_node: Logistic | None = None
    """For nodes of a consensus."""
    consensus_edge: Logistic | None = None
    """For edges of a consensus."""


class Bin(NamedTuple):
    """The trials whose probabilities lie in one interval."""

    trials: int
    """Number of trials."""
    probability: float
    """Mean probability."""
    share: float
    """Share of the trials that turned out as predicted."""


class Reliability(NamedTuple):
    """How well probabilities agree with outcomes."""

    bins: tuple[Bin, ...]
    """The bins that hold trials, the least probable first."""
    ece: float
    """Expected calibration error: the mean of abs(probability - share) over bins, weighted by their counts."""
    brier: float
    """Brier score: the mean squared difference between probability and outcome."""

    __repr__ = short_repr


def group_of(trial: Trial) -> Group:
    """Return which regression a trial belongs to."""
    if trial.frequency is None:
        return "edge" if trial.is_edge else "node"
    return "consensus_edge" if trial.is_edge else "consensus_node"


@checked_arguments
def fit_calibration(trials: Iterable[Trial], transcoder: Transcoder) -> Calibration:
    """Fit a regression for each group of trials; raises ConfigError if the trials are too few for any."""
    by_group: dict[Group, list[Trial]] = {group: [] for group in GROUPS}
    for trial in trials:
        by_group[group_of(trial)].append(trial)
    node, edge, consensus_node, consensus_edge = (_fit(by_group[group]) for group in GROUPS)
    if not (node or edge or consensus_node or consensus_edge):
        raise ConfigError(
            f"No calibration can be fitted: each needs at least {_FEWEST} trials, some as predicted and some not."
        )
    return Calibration(
        transcoder_hash=fingerprint(transcoder),
        node=node,
        edge=edge,
        consensus_node=consensus_node,
        consensus_edge=consensus_edge,
    )


def probabilities(calibration: Calibration, trials: Sequence[Trial], group: Group) -> npt.NDArray[np.float64]:
    """Return the probability of each trial, all of one group; raises ConfigError if the group has no regression."""
    regression: Logistic | None = getattr(calibration, group)
    if regression is None:
        raise ConfigError(f"The calibration has no regression for {group.replace('_', ' ')}s.")
    return _probability(regression, _columns(trials))


@checked_arguments
def reliability(probability: Sequence[float], outcome: Sequence[bool], *, bins: Count = 10) -> Reliability:
    """Compare probabilities with outcomes, in bins of equal width; raises ConfigError if there are none."""
    if not len(probability) or len(probability) != len(outcome):
        counts = f"{len(probability)} probabilities and {len(outcome)} outcomes"
        raise ConfigError(f"There are {counts}; give as many of both, and at least one.")
    expected, happened = np.asarray(probability, dtype=float), np.asarray(outcome, dtype=float)
    of_bin = np.minimum((expected * bins).astype(int), bins - 1)
    filled = [
        Bin(int(mask.sum()), float(expected[mask].mean()), float(happened[mask].mean()))
        for mask in (of_bin == number for number in range(bins))
        if mask.any()
    ]
    ece = sum(each.trials * abs(each.probability - each.share) for each in filled) / len(expected)
    return Reliability(tuple(filled), ece, float(np.square(expected - happened).mean()))


@checked_arguments
def with_confidence(graph: AttributionGraph, calibration: Calibration) -> AttributionGraph:
    """Return the graph with the confidence of its features, in ``nodes.confidence`` and ``node(...).confidence``.

    Give whole graphs, whose parts keep the confidence. Raises ConfigError if the calibration is another transcoder's.
    """
    known = graph.info.transcoder_hash
    if known is not None and known != calibration.transcoder_hash:
        raise ConfigError("The calibration is that of another transcoder; fit one with the graph's transcoder.")
    regression = calibration.node if graph.consensus is None else calibration.consensus_node
    if regression is None:
        return graph
    frequency = None if graph.consensus is None else graph.consensus.frequency
    confidence = _of_predictions(regression, node_predictions(graph), frequency)
    confidence = confidence.where(graph.of_kind(NodeKind.FEATURE), torch.nan)
    return replace(graph, nodes=replace(graph.nodes, confidence=confidence))


@checked_arguments
def edge_confidence(graph: AttributionGraph, calibration: Calibration) -> Float[Tensor, "edge"]:
    """Return the probability that cutting each edge changes the answer as predicted; NaN if it is not known."""
    regression = calibration.edge if graph.consensus is None else calibration.consensus_edge
    if regression is None:
        return torch.full((graph.n_edges,), torch.nan)
    frequency = None if graph.consensus is None else graph.consensus.edge_frequency
    return _of_predictions(regression, edge_predictions(graph), frequency)


@checked_arguments
def with_stored_confidence(
    graph: AttributionGraph, transcoder: Transcoder, source: str | Path | None = None
) -> AttributionGraph:
    """Return the graph with the confidence of its features, if there is a calibration of its transcoder.

    ``source`` is the directory or name of the transcoder; None stands for the one that ships with the package. Raises
    CheckpointError if a calibration is damaged.
    """
    calibration = find_calibration(source, transcoder)
    return graph if calibration is None else with_confidence(graph, calibration)


@checked_arguments
def save_calibration(calibration: Calibration, directory: str | Path) -> Path:
    """Write a calibration into a directory, and return the file's path; a former calibration is replaced.

    Raises ConfigError if the file of another program has this name.
    """
    directory = Path(directory)
    files.check_artefact(directory, (FILE,), FORMAT)
    with files.saving(directory) as stage:
        files.write_json(stage(FILE), {**FORMAT.header(), **to_dict(calibration)}, finite=True)
    return directory / FILE


@checked_arguments
def load_calibration(directory: str | Path) -> Calibration:
    """Read a calibration that ``save_calibration`` wrote; raises CheckpointError on anything else."""
    directory = Path(directory)
    content = files.read_saved(directory, FILE, lambda saved: FORMAT.read(saved(FILE), finite=True))
    values: dict[str, Any] = {key: value for key, value in content.items() if key not in FORMAT.header()}
    try:
        calibration = from_dict(Calibration, values)
        lengths = {group: 3 if group.startswith("consensus") else 2 for group in GROUPS}
        for group, length in lengths.items():
            regression: Logistic | None = getattr(calibration, group)
            if regression is not None and len(regression.weights) != length:
                raise ConfigError(f"{group}.weights has {len(regression.weights)} numbers; it must have {length}")
    except ConfigError as error:
        raise CheckpointError(f"{directory / FILE} does not hold a calibration: {error}") from error
    return calibration


def find_calibration(source: str | Path | None, transcoder: Transcoder) -> Calibration | None:
    """The calibration of a transcoder: from its own directory, else from the cache, else from the package; or None."""
    mark = fingerprint(transcoder)
    for directory in directories_of(source, mark):
        if (directory / FILE).is_file() and (found := load_calibration(directory)).transcoder_hash == mark:
            return found
    return None


def _fit(trials: Sequence[Trial]) -> Logistic | None:
    """Fit one regression on standardised columns, and return its weights for the columns as they are."""
    from sklearn.linear_model import LogisticRegression

    outcome = np.array([trial.as_predicted for trial in trials])
    if len(trials) < _FEWEST or len(set(outcome.tolist())) < 2:
        return None
    columns = _columns(trials)
    mean, scale = columns.mean(0), np.maximum(columns.std(0), 1e-6)
    model = LogisticRegression().fit((columns - mean) / scale, outcome)
    weights = model.coef_[0] / scale
    return Logistic(
        intercept=float(model.intercept_[0] - weights @ mean),
        weights=tuple(map(float, weights)),
        trials=len(trials),
        share=float(outcome.mean()),
    )


def _columns(trials: Sequence[Trial]) -> npt.NDArray[np.float64]:
    """The columns of a regression, with the trials as rows."""
    logs = [[_log(abs(trial.predicted)), _log(trial.influence)] for trial in trials]
    frequencies = [[] if trial.frequency is None else [trial.frequency] for trial in trials]
    return np.array([[*row, *frequency] for row, frequency in zip(logs, frequencies, strict=True)], dtype=float)


def _log(value: float) -> float:
    return float(np.log10(max(value, _LEAST)))


def _probability(regression: Logistic, columns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    odds = regression.intercept + columns @ np.array(regression.weights)
    return 1 / (1 + np.exp(-np.clip(odds, -500, 500)))


def _of_predictions(
    regression: Logistic, predictions: Predictions, frequency: Float[Tensor, "some"] | None
) -> Float[Tensor, "some"]:
    """The probability of each prediction of a graph."""
    logs = [predictions.change.abs(), predictions.influence]
    columns = [column.double().clamp(min=_LEAST).log10() for column in logs]
    columns += [] if frequency is None else [frequency.double()]
    return torch.from_numpy(_probability(regression, torch.stack(columns, dim=1).numpy())).float()
