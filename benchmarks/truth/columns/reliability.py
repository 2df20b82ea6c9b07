"""The columns of calibration: how often the effect of an ablation is as predicted, and is this known beforehand?

A regression is fitted on ablations of some tasks and measured on others (``calibration.py`` is the whole benchmark).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from calibration import FITTED
from columns.shares import DRAWS, Share, interval
from jaxtyping import Bool, Float, Int
from torch import Tensor

from open_clt.errors import ConfigError
from open_clt.evaluation.calibration import fit_calibration, probabilities, reliability
from open_clt.evaluation.trials import Trial
from open_clt.transcoders.transcoder import Transcoder

BINS = 10
"""Bins of probability, as in ``reliability``."""


def calibration_shares(
    trials: Mapping[str, Sequence[Trial]], transcoder: Transcoder, generator: torch.Generator
) -> dict[str, dict[str, float] | None]:
    """The share of ablations that turn out as predicted, and the expected calibration error of a regression.

    Intervals are of ablations drawn again; the regression stays the same. Raises ConfigError if there are too few
    trials for a regression, or none to measure it on.
    """
    fitted, measured = (
        [trial for task, made in trials.items() if (task in FITTED) is chosen for trial in made]
        for chosen in (True, False)
    )
    if not measured:
        raise ConfigError("There are no ablations of tasks that the regression is not fitted on.")
    probability = probabilities(fit_calibration(fitted, transcoder), measured, "node")
    outcome = [trial.as_predicted for trial in measured]
    drawn = torch.randint(len(measured), (DRAWS, len(measured)), generator=generator)
    draws = errors(torch.from_numpy(probability), torch.tensor(outcome), drawn).tolist()
    ece = reliability(probability.tolist(), outcome).ece
    everything = [float(trial.as_predicted) for made in trials.values() for trial in made]
    as_predicted = Share.of(everything, generator)
    return {
        "as_predicted": None if as_predicted is None else as_predicted.rounded(),
        "ece": Share(ece, *interval(draws), len(measured)).rounded(),
    }


def errors(
    probability: Float[Tensor, "trial"], outcome: Bool[Tensor, "trial"], drawn: Int[Tensor, "draw chosen"]
) -> Float[Tensor, "draw"]:
    """The expected calibration error of each draw of trials: that of ``reliability``, for thousands of draws."""
    of_bin = (probability * BINS).long().clamp(max=BINS - 1)
    sums = torch.zeros(len(drawn), BINS, dtype=probability.dtype)
    sums.scatter_add_(1, of_bin[drawn], (probability - outcome.to(probability.dtype))[drawn])
    return sums.abs().sum(1) / drawn.shape[1]
