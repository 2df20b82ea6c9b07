"""``practice_run.py``: it runs from start to finish and writes all its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import practice_run
from open_clt.visualization.suite import suite_paths

METRICS = {"fvu", "l0", "dead_share", "ce_original", "ce_replacement", "top1_agreement", "seconds"}


@pytest.fixture(autouse=True)
def allocator(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Records each request to change the allocator, instead of changing the allocator of the test process."""
    requests: list[bool] = []
    monkeypatch.setattr(practice_run, "keep_freed_memory", lambda: requests.append(True))
    return requests


@pytest.mark.slow
def test_without_a_network_the_run_uses_the_embedded_model(
    tmp_path: Path, allocator: list[bool], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run has one prompt and draws only its graph; the slow test below draws all figures."""
    prompts_for = practice_run.prompts_for
    monkeypatch.setattr(practice_run, "prompts_for", lambda clt: prompts_for(clt)[:1])
    monkeypatch.setattr(practice_run, "draw_features", lambda *arguments: None)
    arguments = ["--max-tokens", "6000", "--epochs", "1", "--num-features", "64", "--output-dir", str(tmp_path)]
    assert practice_run.main(arguments) == 0
    assert allocator == [True]
    printed = "".join(capsys.readouterr().out.split())  # lines are wrapped to the width of the terminal
    assert "gpt2" in printed
    assert f"{tmp_path}/" in printed
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics.keys() >= METRICS
    assert metrics["model"] == "embedded"
    assert 0 < metrics["fvu"] < 1
    assert metrics["ce_original"] < metrics["ce_ablated"]
    assert " Austin" in (tmp_path / "comparison.md").read_text()
    assert (tmp_path / "attribution_graph.png").stat().st_size > 5_000
    assert (tmp_path / "checkpoint" / "config.json").is_file()
    assert (tmp_path / "graph" / "graph.json").is_file()


def test_texts_that_are_too_short_to_measure_on_are_a_message_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.txt").write_text("hello")
    arguments = ["--model", "embedded", "--num-features", "32", "--texts", str(tmp_path / "short.txt")]
    assert practice_run.main([*arguments, "--output-dir", str(tmp_path / "results")]) == 2
    assert "too short" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model", "/nowhere/at/all"], "nowhere"),
        (["--model", "embedded", "--texts", "no_such_file.txt"], "no_such_file"),
        (["--model", "embedded", "--texts", ""], "''"),
    ],
)
def test_a_mistake_is_a_message_and_status_2(
    arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert practice_run.main([*arguments, "--output-dir", str(tmp_path)]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--num-features", "0"),
        ("--epochs", "0"),
        ("--max-tokens", "-5"),
        ("--seed", "-1"),
        ("--output-dir", ""),
        ("--bogus", "7"),
    ],
)
def test_a_mistake_in_the_options_is_one_line_before_anything_starts(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert practice_run.main([option, value]) == 2
    printed, error = capsys.readouterr()
    assert (printed, error.count("\n")) == ("", 1)
    assert option in error


@pytest.mark.slow
def test_a_whole_run_draws_the_gallery_and_reaches_the_documented_reconstruction(tmp_path: Path) -> None:
    assert practice_run.main(["--model", "embedded", "--output-dir", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["fvu"] <= 0.25
    for name in ("attribution_graph.png", "training_curves.png", "feature_heatmap.png", "embedding_tsne.png"):
        assert (tmp_path / name).stat().st_size > 5_000
    assert {path.name for path in suite_paths(tmp_path)} <= {path.name for path in tmp_path.iterdir()}
