"""What ``faithfulness`` found: predictions and measurements, numbers of them, in words and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from jaxtyping import Float
from scipy import stats
from torch import Tensor

_SMALLEST = 1e-12
"""Influences and divergences below this count as this: a logarithm needs something."""


@final
@dataclass(frozen=True, eq=False)
class Effects:
    """Effects of ablations on the totals of a graph's rows: the scatter, and two numbers of it."""

    predicted: Float[Tensor, "pair"]
    measured: Float[Tensor, "pair"]

    @property
    def spearman(self) -> float:
        """Rank correlation."""
        return spearman(self.predicted, self.measured)

    @property
    def slope(self) -> float:
        """Least squares through the origin: 1 where effects are as large as predicted."""
        predicted, measured = self.predicted.double(), self.measured.double()
        return float((predicted @ measured) / (predicted @ predicted).clamp(min=1e-30))

    def report(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        return {"spearman": self.spearman, "slope": self.slope, "pairs": len(self.predicted)}


@final
@dataclass(frozen=True, eq=False)
class InfluenceCheck:
    """Influence of the ablated features, and what the ablations do to the prediction."""

    influence: Float[Tensor, "feature"]
    kl_divergence: Float[Tensor, "feature"]
    """KL(as it was || ablated) of the next token where the targets stand, nats."""

    @property
    def pearson(self) -> float:
        """Correlation of the logarithms."""
        return pearson(*(column.clamp(min=_SMALLEST).log() for column in (self.influence, self.kl_divergence)))

    @property
    def spearman(self) -> float:
        """Rank correlation."""
        return spearman(self.influence, self.kl_divergence)

    def report(self) -> dict[str, Any]:
        """The numbers and the scatter, for JSON."""
        scatter = {"influence": self.influence.tolist(), "kl_divergence": self.kl_divergence.tolist()}
        return {"pearson_of_logarithms": self.pearson, "spearman": self.spearman, **scatter}


class Perturbation(NamedTuple):
    """How the stream's change in the local replacement model resembles the model's, some layers after the ablation."""

    distance: int
    """Blocks after the ablated feature's own."""
    cosine: float
    normalised_mse: float
    """Squared difference over the squared norm of the model's own change."""
    features: int
    """Ablations that the means are over."""


class Agreement(NamedTuple):
    """The model whose MLPs are the transcoder, against the model, on the graph's prompt."""

    kl_divergence: float
    """KL(model || replacement) of the next token after the prompt, nats."""
    same_top: bool
    """Whether both hold the same next token likeliest."""
    top1_agreement: float
    """Share of all positions where they do, the first left out."""


@final
@dataclass(frozen=True, eq=False)
class Faithfulness:
    """How far a graph's predictions hold."""

    features: tuple[str, ...]
    """Nodes that were ablated, most influential first."""
    direct: Effects
    total: Effects
    influence: InfluenceCheck
    perturbations: tuple[Perturbation, ...]
    agreement: Agreement

    def summary(self) -> str:
        """All of it in a few lines, for reading."""
        agreement = self.agreement
        lines = [
            f"{len(self.features)} features ablated one at a time",
            f"direct effects   Spearman {self.direct.spearman:.3f}, slope {self.direct.slope:.3f}",
            f"total effects    Spearman {self.total.spearman:.3f}, slope {self.total.slope:.3f}",
            f"influence        Pearson of log influence and log KL {self.influence.pearson:.3f}",
            f"replacement      KL {agreement.kl_divergence:.3f} nats, {'same' if agreement.same_top else 'another'} "
            f"top token; top-1 agreement over the prompt {agreement.top1_agreement:.0%}",
        ]
        lines += [
            f"{row.distance} layers later   cosine {row.cosine:.3f}, normalised MSE {row.normalised_mse:.3f}"
            for row in self.perturbations
        ]
        return "\n".join(lines)

    def report(self) -> dict[str, Any]:
        """All of it but the scatter of effects, for JSON: what a graph keeps in ``info.faithfulness``."""
        return {
            "features": list(self.features),
            "direct": self.direct.report(),
            "total": self.total.report(),
            "influence": self.influence.report(),
            "perturbations": [row._asdict() for row in self.perturbations],
            "agreement": self.agreement._asdict(),
        }


def pearson(first: Float[Tensor, "pair"], second: Float[Tensor, "pair"]) -> float:
    """Linear correlation; 0 where one of the two is constant, or empty."""
    return _correlation(stats.pearsonr, first, second)


def spearman(first: Float[Tensor, "pair"], second: Float[Tensor, "pair"]) -> float:
    """Correlation of the ranks, ties sharing theirs; 0 where one of the two is constant, or empty."""
    return _correlation(stats.spearmanr, first, second)


def _correlation(measure: Callable[..., Any], *columns: Float[Tensor, "pair"]) -> float:
    if any(len(column.unique()) < 2 for column in columns):
        return 0.0
    return float(measure(*(column.double().numpy() for column in columns)).statistic)
