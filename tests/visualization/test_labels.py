from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from open_clt.visualization.labels import fit_tick_labels, text_size, token_label, wrapped
from open_clt.visualization.style import figure_of, styled
from tests.visualization.boxes import overlapping


@pytest.mark.parametrize(
    ("token", "label"),
    [
        (" Dallas", "·Dallas"),
        ("ing", "ing"),
        ("  ", "··"),
        ("\n", "⏎"),
        ("\t", "⇥"),
        ("a b ", "a b·"),
        ("<|endoftext|>", "<eot>"),
        ("你", "\\u4f60"),
        ("\x07", "\\u0007"),
        ("\u200b", "\\u200b"),
        ("é", "é"),
        ("x" * 30, "x" * 13 + "…"),
    ],
)
def test_a_token_gets_a_readable_label(token: str, label: str) -> None:
    assert token_label(token) == label


def test_a_long_name_becomes_two_lines_with_an_ellipsis() -> None:
    assert wrapped("say a capital") == "say a capital"
    assert wrapped("names of capitals of countries in the south") == "names of\ncapitals of…"


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("the → cat", "the → cat"),
        ("the, a → cat, dog", "the, a\n→ cat, dog"),
        ("Gainesville, Springfield → Wiesbaden, Rome", "Gainesville …\n→ Wiesbaden …"),
        ("Donaudampfschifffahrt → to, in, at", "Donaudampfschif…\n→ to, in, at"),
        ("<|endoftext|> → the, a", "<eot> → the, a"),
    ],
)
def test_a_name_with_an_arrow_is_broken_at_the_arrow(label: str, shown: str) -> None:
    assert wrapped(label) == shown


@pytest.mark.parametrize("dpi", [72, 100, 300])
def test_measured_text_is_at_most_a_quarter_wider_than_drawn_text_and_never_narrower(dpi: int) -> None:
    figure = Figure(dpi=dpi)
    for words in ("containing Dallas", "1843", "·Austin 41%", "60 of 512 nodes between tokens and outputs; 160 edges"):
        drawn = figure.text(0.1, 0.5, words, fontsize=6.5).get_window_extent().width * 72 / dpi
        assert drawn <= text_size(words, 6.5)[0] <= 1.25 * drawn


@pytest.mark.parametrize("count", [3, 9, 20, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("width", [2.5, 6.0])
def test_tick_labels_never_overlap(count: int, width: float) -> None:
    """Labels are horizontal, slanted, upright or left out; they never overlap, and some are always shown."""
    with styled(None):
        ax = Figure(figsize=(width, 2), layout="constrained").add_subplot()
        ax.set_xlim(-0.5, count - 0.5)
        ax.set_ylim(-0.5, count - 0.5)
        fit_tick_labels(ax, [f"·token{tick}" for tick in range(count)], [f"L0/{tick}" for tick in range(count)])
    assert overlapping(figure_of(ax), ax.get_xticklabels()) == []
    assert overlapping(figure_of(ax), ax.get_yticklabels()) == []
    assert len(ax.get_xticklabels()) >= min(count, 3)


def test_tick_labels_are_horizontal_slanted_upright_or_left_out() -> None:
    arrangements: set[tuple[float, bool]] = set()
    for width in (9.0, 4.0, 2.0, 0.8):
        with styled(None):
            ax = Figure(figsize=(width, 2), layout="constrained").add_subplot()
            ax.set_xlim(-0.5, 9.5)
            fit_tick_labels(ax, [f"·token{tick}" for tick in range(10)])
        labels = ax.get_xticklabels()
        arrangements.add((labels[0].get_rotation(), len(labels) == 10))
        middles = [label.get_window_extent().x0 / 2 + label.get_window_extent().x1 / 2 for label in labels]
        ticks = ax.transData.transform([(tick, 0) for tick in ax.get_xticks()])[:, 0]
        assert labels[0].get_rotation() == 45 or middles == pytest.approx(ticks.tolist(), abs=2)
    assert arrangements == {(0.0, True), (45.0, True), (90.0, True), (90.0, False)}


def test_the_check_of_these_tests_finds_overlapping_texts() -> None:
    """Two texts at almost the same place overlap, whether they are horizontal, slanted or upright."""
    figure = Figure()
    for rotation in (0, 45, 90):
        texts = [figure.text(x, 0.5, "some words", rotation=rotation, rotation_mode="anchor") for x in (0.5, 0.51)]
        assert overlapping(figure, texts) == [("some words", "some words")]
