"""``open-clt attention``: it prints, writes and draws what the library explains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from open_clt.attribution.qk import explain_attention
from open_clt.cli import main
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.formats.native import save_transcoder
from tests.commands.mistakes import assert_mistake
from tests.random_transcoders import random_transcoder

TEXT = "The cat sat on the mat"
HEAD = ["--layer", "2", "--head", "1", "--key", "2"]


@pytest.fixture
def tiny(tiny_gpt2: LanguageModel, tiny_gpt2_folder: Path, tmp_path: Path) -> list[str]:
    checkpoint = save_transcoder(random_transcoder(tiny_gpt2), tmp_path / "transcoder")
    return ["attention", "--model", str(tiny_gpt2_folder), "--transcoder", str(checkpoint), "--prompt", TEXT]


@pytest.mark.slow
def test_the_largest_pairs_are_printed_written_and_drawn(
    tiny: list[str], tiny_gpt2: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, written, figure = (tmp_path / name for name in ("labels.json", "why.json", "why.svg"))
    settings = {"layer": 2, "head": 1, "query": -1, "key": 2, "versus": 4}
    explanation = explain_attention(tiny_gpt2, random_transcoder(tiny_gpt2), TEXT, **settings)
    feature = next(pair.key for pair in explanation.pairs(50, constants=False) if ":" in str(pair.key)[:2])
    labels.write_text(json.dumps({f"L{feature.layer}/{feature.index}": "furry animals"}))
    options = ["--versus", "4", "--top", "50", "--labels", str(labels), "--json", str(written), "--figure", str(figure)]
    assert main([*tiny, *HEAD, *options]) == 0
    printed = capsys.readouterr().out
    assert f"{explanation.score:.3f}" in printed
    assert f"| {feature} {explanation.token_strings[feature.position or 0]!r} furry animals" in printed
    assert "bias:" not in printed
    plain = json.loads(written.read_text())
    assert plain["score"] == pytest.approx(explanation.score, abs=1e-5)
    assert [entry["query"] for entry in plain["pairs"]] == [
        str(pair.query) for pair in explanation.pairs(50, constants=False)
    ]
    assert "Why head 2.1 looks from" in figure.read_text()


def test_constants_are_listed_where_they_are_asked_for(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*tiny, *HEAD, "--constants", "--top", "500"]) == 0
    assert "bias:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--layer", "9", "--head", "1", "--key", "2"], ["layer", 9, 2]),
        (["--layer", "2", "--head", "9", "--key", "2"], ["head", 9, 3]),
        (["--layer", "2", "--head", "1", "--key", "40"], ["key", 40]),
        ([*HEAD, "--query", "1"], ["position 1", "key 2"]),
        ([*HEAD, "--versus", "-99"], ["versus", -99]),
        ([*HEAD, "--figure", "why.txt"], ["why.txt", ".png"]),
        ([*HEAD, "--json", "."], ["directory"]),
        ([*HEAD, "--layer", "two"], ["--layer", "two"]),
        ([*HEAD, "--head", "-1"], ["--head", -1]),
        ([*HEAD, "--key", "x"], ["--key", "x"]),
        ([*HEAD, "--top", "0"], ["--top", 0]),
    ],
)
def test_mistakes_are_one_line(
    tiny: list[str], options: list[str], named: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert_mistake(capsys, [*tiny, *options], *named)
