from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

from open_clt.analysis.measured_on import MeasuredOn
from open_clt.analysis.report import DENSITY_EDGES, GraphReport, LayerReport, Report
from open_clt.errors import ConfigError
from open_clt.visualization.report_figures import visualize_comparison, visualize_report
from tests.visualization.boxes import overlapping

LAYERS = tuple(
    LayerReport(layer, 0.1 * layer, 16.0, 0.0, 0.1, (0.1, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0), 3.0, 0.1, 0.9)
    for layer in range(12)
)
REPORT = Report(
    name="one", model="gpt2", settings={}, parameters=10**6, measured_on=MeasuredOn("", 10, 101, ""), tokens=1000,
    fvu=0.1, worst_fvu=0.3, worst_layer=2,
    l0=16.0, l0_total=48.0, dead_share=0.1, dense_share=0.01, density_histogram=(3,) * (len(DENSITY_EDGES) - 1),
    ce_original=2.5, ce_replacement=3.1, ce_ablated=6.0, ce_recovered=0.8, kl=0.2, top1_agreement=0.8,
    layers=LAYERS, graphs=(GraphReport("a b", 0.4, 0.8),),
)  # fmt: skip


@pytest.mark.parametrize("graphs", [REPORT.graphs, ()])
def test_one_page_shows_a_report_without_collisions(graphs: tuple[GraphReport, ...], tmp_path: Path) -> None:
    figure = visualize_report(REPORT._replace(graphs=graphs), save_path=tmp_path / "report.png")
    assert len(figure.axes) == 6
    titles = [text for text in figure.findobj(Text) if float(text.get_fontsize()) > 9]
    assert len(titles) >= 11
    assert overlapping(figure, titles) == []
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_comparison_joins_what_no_other_beats() -> None:
    reports = [
        REPORT,
        REPORT._replace(name="sparser", l0=8.0, fvu=0.2, ce_replacement=3.4),
        REPORT._replace(name="beaten", l0=20.0, fvu=0.3, ce_replacement=3.5),
    ]
    figure = visualize_comparison(reports)
    front = figure.axes[0].lines[0]
    assert np.asarray(front.get_xdata()).tolist() == [8.0, 16.0]
    assert np.asarray(front.get_ydata()).tolist() == [0.2, 0.1]
    with pytest.raises(ConfigError, match="no transcoder"):
        visualize_comparison([])


def test_a_comparison_draws_fvu_on_the_left_and_the_lost_cross_entropy_on_the_right() -> None:
    """Of the two, the second is better in predictions and worse in reconstruction: the fronts differ."""
    reports = [
        REPORT._replace(l0=8.0, fvu=0.1, ce_original=2.5, ce_replacement=3.5),
        REPORT._replace(l0=16.0, fvu=0.2, ce_original=2.5, ce_replacement=2.75),
    ]
    left, right = visualize_comparison(reports).axes
    for ax, heights in ((left, [0.1, 0.2]), (right, [1.0, 0.25])):
        points = np.concatenate([np.asarray(drawn.get_offsets()) for drawn in ax.collections])
        assert points.tolist() == [[8.0, heights[0]], [16.0, heights[1]]]
    assert np.asarray(left.lines[0].get_ydata()).tolist() == [0.1]
    assert np.asarray(right.lines[0].get_ydata()).tolist() == [1.0, 0.25]
    assert "FVU" in left.get_title(loc="left")
    assert "cross-entropy" in right.get_title(loc="left")
