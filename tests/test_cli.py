"""The commands do what they say, and bad input is one line with status 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from open_clt.cli import main

PROMPT = "The capital of the state containing Dallas is"


def test_evaluate_prints_a_row_for_every_task_and_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embedded", "evaluate", "--limit", "30"]) == 0
    printed = capsys.readouterr().out
    for task in ("capitals", "two_hop", "induction", "indirect_object"):
        assert task in printed


def test_evaluate_fails_when_a_row_is_below_its_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from open_clt.embedded import evaluation

    monkeypatch.setitem(evaluation.BARS, "capitals", 1.01)
    assert main(["embedded", "evaluate", "--limit", "5"]) == 1
    assert "NO" in capsys.readouterr().out


def test_attribute_writes_a_graph_and_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure, output = tmp_path / "graph.svg", tmp_path / "graph"
    assert main(["attribute", "--prompt", PROMPT, "--figure", str(figure), "--output", str(output)]) == 0
    assert figure.stat().st_size > 1000
    from open_clt.attribution.graph import AttributionGraph

    assert AttributionGraph.load(output).info.prompt == PROMPT
    assert "replacement score" in capsys.readouterr().out


def test_generate_shows_both_continuations(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "The capital of France is", "--max-new-tokens", "3"]) == 0
    printed = capsys.readouterr().out
    assert "original" in printed
    assert "replacement" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attribute", "--prompt", ""], "empty"),
        (["attribute", "--prompt", "word " * 500], "tokens"),
        (["attribute", "--prompt", PROMPT, "--transcoder", "/nowhere"], "config.json"),
        (["attribute", "--prompt", PROMPT, "--figure", "graph.bmp"], "bmp"),
        (["attribute", "--prompt", PROMPT, "--threshold", "2"], "node_threshold"),
        (["attribute", "--prompt", PROMPT, "--max-feature-nodes", "0"], "max_feature_nodes"),
        (["generate", "--prompt", "The", "--model", "/nowhere"], "nowhere"),
        (["generate", "--prompt", "The", "--temperature", "-1"], "temperature"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
