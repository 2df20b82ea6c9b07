"""The faithfulness report of a graph: predicted and measured effects, their statistics, as text and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt.html_repr import html_repr
from open_clt.short_repr import short_repr

_SMALLEST = 1e-12
"""Smallest influence and divergence of which a logarithm is taken; smaller values are raised to it."""


@final
@dataclass(frozen=True, eq=False)
class Effects:
    """The predicted and measured effects of ablations on the totals of a graph's rows."""

    predicted: Float[Tensor, "pair"]
    """Change that the graph predicts for each pair of an ablation and a row."""
    measured: Float[Tensor, "pair"]
    """Change that the ablation makes."""

    @property
    def spearman(self) -> float:
        """Rank correlation of the predicted and the measured effects."""
        return spearman(self.predicted, self.measured)

    @property
    def slope(self) -> float:
        """Slope of the least-squares line through the origin: 1 if effects are as large as predicted."""
        predicted, measured = self.predicted.double(), self.measured.double()
        return float((predicted @ measured) / (predicted @ predicted).clamp(min=1e-30))

    def report(self) -> dict[str, Any]:
        """The statistics, ready for JSON."""
        return {"spearman": self.spearman, "slope": self.slope, "pairs": len(self.predicted)}

    __repr__ = short_repr


@final
@dataclass(frozen=True, eq=False)
class InfluenceCheck:
    """The influence of the ablated features, and the effects of the ablations on the prediction."""

    influence: Float[Tensor, "feature"]
    """Influence of each ablated feature in the graph."""
    kl_divergence: Float[Tensor, "feature"]
    """KL(before || after each ablation) of the predictions at the targets' positions, in nats."""

    @property
    def pearson(self) -> float:
        """Correlation of the logarithms of influence and KL divergence."""
        return pearson(*(column.clamp(min=_SMALLEST).log() for column in (self.influence, self.kl_divergence)))

    @property
    def spearman(self) -> float:
        """Rank correlation of influence and KL divergence."""
        return spearman(self.influence, self.kl_divergence)

    def report(self) -> dict[str, Any]:
        """The statistics and all pairs, ready for JSON."""
        scatter = {"influence": self.influence.tolist(), "kl_divergence": self.kl_divergence.tolist()}
        return {"pearson_of_logarithms": self.pearson, "spearman": self.spearman, **scatter}

    __repr__ = short_repr


class Perturbation(NamedTuple):
    """The similarity between the changes of the residual stream in the local replacement model and in the model."""

    distance: int
    """Number of blocks from the ablated feature's block to the block after which the streams are compared."""
    cosine: float
    """Mean cosine similarity of the two changes."""
    normalised_mse: float
    """Mean of the squared difference of the two changes over the squared norm of the model's change."""
    features: int
    """Number of ablations that the means are taken over."""

    @property
    def words(self) -> str:
        """The distance in words, such as "1 layer later"."""
        return f"{self.distance} {'layer' if self.distance == 1 else 'layers'} later"


class Agreement(NamedTuple):
    """The agreement of the replacement model with the model on the graph's prompt."""

    kl_divergence: float
    """KL(model || replacement) of the next token after the prompt, in nats."""
    same_top: bool
    """True if both predict the same token after the prompt."""
    top1_agreement: float
    """Share of the positions at which both predict the same token, without a first position that is not used."""


@final
@dataclass(frozen=True, eq=False)
class Faithfulness:
    """The comparison of a graph's predictions with interventions."""

    features: tuple[str, ...]
    """Ids of the ablated nodes, most influential first."""
    direct: Effects
    """Effects while MLP outputs are frozen, compared with edges."""
    total: Effects
    """Effects while nothing is frozen, compared with paths."""
    influence: InfluenceCheck
    """Effects on the prediction, compared with influence."""
    perturbations: tuple[Perturbation, ...]
    """Changes of the residual stream, one row for each distance."""
    agreement: Agreement
    """Agreement of the replacement model with the model."""

    def summary(self) -> str:
        """The report as text."""
        agreement = self.agreement
        lines = [
            f"{len(self.features)} features ablated one at a time",
            f"direct effects   Spearman {self.direct.spearman:.3f}, slope {self.direct.slope:.3f}",
            f"total effects    Spearman {self.total.spearman:.3f}, slope {self.total.slope:.3f}",
            f"influence        Pearson of log influence and log KL {self.influence.pearson:.3f}",
            f"replacement      KL {agreement.kl_divergence:.3f} nats, {'same' if agreement.same_top else 'different'} "
            f"top token; top-1 agreement over the prompt {agreement.top1_agreement:.0%}",
        ]
        lines += [
            f"{row.words:<17}cosine {row.cosine:.3f}, normalised MSE {row.normalised_mse:.3f}"
            for row in self.perturbations
        ]
        return "\n".join(lines)

    def report(self) -> dict[str, Any]:
        """The report without the pairs of effects, ready for JSON, as a graph keeps it in ``info.faithfulness``."""
        return {
            "features": list(self.features),
            "direct": self.direct.report(),
            "total": self.total.report(),
            "influence": self.influence.report(),
            "perturbations": [row._asdict() for row in self.perturbations],
            "agreement": self.agreement._asdict(),
        }

    __repr__ = short_repr
    _repr_html_ = html_repr


def pearson(first: Float[Tensor, "pair"], second: Float[Tensor, "pair"]) -> float:
    """Linear correlation; 0 if one of the two is constant or empty."""
    if any(len(column.unique()) < 2 for column in (first, second)):
        return 0.0
    first, second = (column.double() - column.double().mean() for column in (first, second))
    return float((first / first.norm()) @ (second / second.norm()))


def spearman(first: Float[Tensor, "pair"], second: Float[Tensor, "pair"]) -> float:
    """Correlation of the ranks, where ties share a rank; 0 if one of the two is constant or empty."""
    return pearson(_ranks(first), _ranks(second))


def _ranks(values: Float[Tensor, "pair"]) -> Float[Tensor, "pair"]:
    """The rank of each value from 1; equal values have the mean of their ranks."""
    _, group, sizes = torch.unique(values, return_inverse=True, return_counts=True)
    last = sizes.cumsum(0).double()
    return (last - (sizes - 1) / 2)[group]
