from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

from open_clt.errors import ConfigError
from open_clt.evaluation.evaluate import Evaluation
from open_clt.evaluation.measured_on import MeasuredOn
from open_clt.evaluation.report import GraphReport, Report
from open_clt.replacement.comparison import LogitComparison
from open_clt.transcoders.metrics import DENSITY_EDGES, LayerMetrics, TranscoderMetrics
from open_clt.visualization.report_figures import visualize_comparison, visualize_report
from tests.refusals import refuses
from tests.visualization.boxes import overlapping


def report(name: str = "one", *, l0: float = 16.0, fvu: float = 0.1, ce_replacement: float = 3.1) -> Report:
    """A report on a transcoder with 12 equal layers."""
    layers = (LayerMetrics(fvu=fvu, l0=l0, dead_share=0.1, dense_share=0.01),) * 12
    return Report(
        name=name,
        model="gpt2",
        settings={},
        parameters=10**6,
        measured_on=MeasuredOn("", 10, 101, ""),
        evaluation=Evaluation(
            reconstruction=TranscoderMetrics(1000, layers, (3,) * (len(DENSITY_EDGES) - 1)),
            logits=LogitComparison(2.5, ce_replacement, 0.2, 0.8),
            cross_entropy_ablated=6.0,
            alone=(LogitComparison(2.5, 3.0, 0.1, 0.9),) * 12,
        ),
        decoder_norms=((0.1, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0),) * 12,
        graphs=(GraphReport("a b", 0.4, 0.8),),
    )


@pytest.mark.slow
@pytest.mark.parametrize("graphs", [report().graphs, ()])
def test_titles_of_a_report_do_not_overlap(graphs: tuple[GraphReport, ...], tmp_path: Path) -> None:
    figure = visualize_report(report()._replace(graphs=graphs), save_path=tmp_path / "report.png")
    assert len(figure.axes) == 6
    titles = [text for text in figure.findobj(Text) if float(text.get_fontsize()) > 9]
    assert len(titles) >= 11
    assert overlapping(figure, titles) == []
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_comparison_draws_a_line_through_the_pareto_front() -> None:
    reports = [
        report(),
        report("sparser", l0=8.0, fvu=0.2, ce_replacement=3.4),
        report("dominated", l0=20.0, fvu=0.3, ce_replacement=3.5),
    ]
    figure = visualize_comparison(reports)
    front = figure.axes[0].lines[0]
    assert np.asarray(front.get_xdata()).tolist() == [8.0, 16.0]
    assert np.asarray(front.get_ydata()).tolist() == pytest.approx([0.2, 0.1])
    with refuses(ConfigError):
        visualize_comparison([])


def test_a_comparison_draws_fvu_the_increase_in_cross_entropy_and_the_divergence() -> None:
    """The second transcoder has better predictions and a worse reconstruction, so the fronts differ."""
    reports = [
        report(l0=8.0, fvu=0.1, ce_replacement=3.5),
        report(l0=16.0, fvu=0.2, ce_replacement=2.75),
    ]
    left, right, last = visualize_comparison(reports).axes
    for ax, heights in ((left, [0.1, 0.2]), (right, [1.0, 0.25]), (last, [0.2, 0.2])):
        coordinates = np.concatenate([np.asarray(points.get_offsets()) for points in ax.collections])
        assert coordinates.flatten().tolist() == pytest.approx([8.0, heights[0], 16.0, heights[1]])
    assert np.asarray(left.lines[0].get_ydata()).tolist() == pytest.approx([0.1])
    assert np.asarray(right.lines[0].get_ydata()).tolist() == [1.0, 0.25]
    assert "FVU" in left.get_title(loc="left")
    assert "cross-entropy" in right.get_title(loc="left")
    assert "KL" in last.get_title(loc="left")
