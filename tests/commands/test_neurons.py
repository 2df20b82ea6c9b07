"""``--transcoder neurons``: every command that can use the model's own neurons does, and the others refuse them."""

from __future__ import annotations

from pathlib import Path

import pytest

from open_clt.cli import main
from open_clt.graphs.graph import AttributionGraph
from tests.tiny_models import TEXTS


@pytest.fixture
def options(tiny_gpt2_folder: Path) -> list[str]:
    return ["--model", str(tiny_gpt2_folder), "--transcoder", "neurons"]


def test_attribute_writes_a_complete_graph(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path / "graph"), "--no-faithfulness"]
    assert main(["attribute", *options, "--prompt", "The cat sat", *output, "--max-feature-nodes", "9999"]) == 0
    printed = capsys.readouterr().out
    assert "replacement score 1.000, completeness 1.000" in printed
    graph = AttributionGraph.load(tmp_path / "graph")
    assert graph.info.n_active_features > 1000
    assert main(["attribute", *options, "--prompt", "The cat sat", *output, "--max-feature-nodes", "30"]) == 0
    assert "The budget of 30 left out" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["attention", "--prompt", "The cat sat", "--layer", "1", "--head", "2", "--key", "1"],
        ["intervene", "--prompt", "The cat sat", "--ablate", "1:-1:17"],
        ["generate", "--prompt", "The cat sat", "--max-new-tokens", "3"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_use_neurons(options: list[str], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([arguments[0], *options, *arguments[1:]]) == 0
    assert capsys.readouterr().out


@pytest.mark.slow
def test_compare_has_a_row_of_neurons(
    tiny_gpt2_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("\n".join(TEXTS * 6))
    text = ["--text", str(tmp_path / "text.txt"), "--context-length", "12", "--max-tokens", "100"]
    assert main(["compare", "neurons", "--model", str(tiny_gpt2_folder), *text]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("neurons")]
    assert "0.0000" in row
    assert "100.0%" in row


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "neurons"],
        ["convert", "--transcoder", "neurons", "--output", "unused"],
        ["features", "--transcoder", "neurons", "--output", "unused"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_that_need_a_stored_transcoder_refuse_neurons(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed, error = capsys.readouterr()
    assert printed == ""
    assert "neuron" in error
    assert error.count("\n") == 1
