"""The main job runs start to finish and writes what it promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import practice_run

PROMISED = {"fvu", "l0", "dead_share", "ce_original", "ce_replacement", "top1_agreement", "seconds"}


@pytest.fixture(autouse=True)
def allocator(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the process's allocator was to be changed; that of the tests' process stays as it is."""
    asked: list[bool] = []
    monkeypatch.setattr(practice_run, "keep_freed_memory", lambda: asked.append(True))
    return asked


def test_without_a_hub_the_story_goes_on_with_the_embedded_model(
    tmp_path: Path, allocator: list[bool], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One prompt, and no pictures but that of its graph: the slow test below draws them all."""
    prompts_for = practice_run.prompts_for
    monkeypatch.setattr(practice_run, "prompts_for", lambda clt: prompts_for(clt)[:1])
    monkeypatch.setattr(practice_run, "draw_features", lambda *arguments: None)
    arguments = ["--max-tokens", "6000", "--epochs", "1", "--num-features", "64", "--output-dir", str(tmp_path)]
    assert practice_run.main(arguments) == 0
    assert allocator == [True]
    printed = " ".join(capsys.readouterr().out.split())  # lines are wrapped to the terminal
    assert "hub does not answer" in printed
    assert "Everything is in" in printed
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics.keys() >= PROMISED
    assert metrics["model"] == "embedded"
    assert 0 < metrics["fvu"] < 1
    assert metrics["ce_original"] < metrics["ce_ablated"]
    assert " Austin" in (tmp_path / "comparison.md").read_text()
    assert (tmp_path / "attribution_graph.png").stat().st_size > 5_000
    assert (tmp_path / "checkpoint" / "config.json").is_file()
    assert (tmp_path / "graph" / "graph.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/nowhere/at/all"], "nowhere"),
        (["--model", "embedded", "--texts", "no_such_file.txt"], "no_such_file"),
        (["--model", "embedded", "--num-features", "0"], "must be at least 1"),
    ],
)
def test_bad_input_is_one_message_and_status_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert practice_run.main([*arguments, "--output-dir", str(tmp_path)]) == 2
    assert message in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_the_whole_story_draws_the_gallery_and_reaches_the_promised_reconstruction(tmp_path: Path) -> None:
    assert practice_run.main(["--model", "embedded", "--output-dir", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["fvu"] <= 0.25
    for name in ("attribution_graph.png", "training_curves.png", "feature_heatmap.png", "embedding_tsne.png"):
        assert (tmp_path / name).stat().st_size > 5_000
    gallery = Path(practice_run.__file__).parent / "visualizations" / "gallery"
    assert {path.name for path in gallery.iterdir()} <= {path.name for path in tmp_path.iterdir()}
