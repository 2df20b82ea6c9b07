"""Preparation of figures of evaluation reports: what they show of one or more reports, whichever library draws it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from open_clt.errors import ConfigError
from open_clt.evaluation.report import Report
from open_clt.replacement.comparison import LogitComparison
from open_clt.short_repr import short_repr
from open_clt.visualization.titles import title_of


class ComparisonPanel(NamedTuple):
    """One panel of a comparison: a quantity of each transcoder over its sparsity; lower is better."""

    title: str
    """Name of the quantity, with its unit."""
    heights: list[float]
    """The quantity of each transcoder."""
    is_share: bool
    """Whether the quantity is a share, which is written in percent."""
    front: list[int]
    """Indices of the transcoders on the Pareto front: no other one is as low in both coordinates, and lower in one."""

    @property
    def limits(self) -> tuple[float, float]:
        """Ends of the vertical axis."""
        return min(0.0, 1.1 * min(self.heights)), 1.1 * max(1e-6, *self.heights)


class Comparison(NamedTuple):
    """Several transcoders: how sparse they are, and how much they lose."""

    names: list[str]
    """Name of each transcoder."""
    sparsity: list[float]
    """Active features per token and layer (L0) of each transcoder."""
    panels: tuple[ComparisonPanel, ...]
    """The quantities that are compared."""
    title: str
    """Title that states the contexts and the language model, if all transcoders have the same."""

    __repr__ = short_repr


def compared(reports: Sequence[Report]) -> Comparison:
    """Prepare a comparison of FVU, increase in cross-entropy and KL divergence; raises ConfigError without reports."""
    if not reports:
        raise ConfigError("reports is empty; give at least one report.")
    sparsity = [report.evaluation.reconstruction.l0 for report in reports]
    logits = [report.evaluation.logits for report in reports]

    def panel(title: str, heights: list[float], *, is_share: bool = False) -> ComparisonPanel:
        return ComparisonPanel(title, heights, is_share, _pareto_front(sparsity, heights))

    return Comparison(
        names=[report.name for report in reports],
        sparsity=sparsity,
        panels=(
            panel(
                "variance unexplained (FVU)",
                [report.evaluation.reconstruction.fvu for report in reports],
                is_share=True,
            ),
            panel("increase in cross-entropy, nats", [cross_entropy_increase(of_report) for of_report in logits]),
            panel("KL divergence, nats", [of_report.kl_divergence for of_report in logits]),
        ),
        title=_title_of(reports),
    )


def report_title(report: Report) -> str:
    """Return the title of a report: the name of the transcoder, the contexts and the language model."""
    return title_of(f"Report of {report.name}", text=report.measured_on.description, model=report.model)


def cross_entropy_increase(logits: LogitComparison) -> float:
    """Return the cross-entropy of the replacement model minus that of the original model, in nats."""
    return logits.cross_entropy_replacement - logits.cross_entropy_original


def _pareto_front(sparsity: Sequence[float], heights: Sequence[float]) -> list[int]:
    """Return the points for which no other point is lower in both coordinates, the sparsest first."""
    order = sorted(range(len(heights)), key=lambda index: (sparsity[index], heights[index]))
    front = order[:1]
    for index in order[1:]:
        if heights[index] < heights[front[-1]]:
            front.append(index)
    return front


def _title_of(reports: Sequence[Report]) -> str:
    texts = {report.measured_on.description for report in reports}
    models = {report.model for report in reports}
    shared = [values.pop() if len(values) == 1 else "" for values in (texts, models)]
    what = "1 transcoder" if len(reports) == 1 else f"Comparison of {len(reports)} transcoders"
    return title_of(what, text=shared[0], model=shared[1])
