"""``open-clt evaluate`` and ``compare``: the library's numbers, saved; the same text and seed give the same ones."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from open_clt.activations.language_model import LanguageModel
from open_clt.analysis.report import load_report
from open_clt.cli import main
from open_clt.models.checkpoint import save_transcoder
from tests.tiny_models import TEXTS, random_transcoder


@pytest.fixture
def tiny(tiny_gpt2: LanguageModel, tiny_gpt2_folder: Path, tmp_path: Path) -> Path:
    """A folder with two transcoders and a text."""
    for name, reach in (("clt", None), ("plt", 1)):
        save_transcoder(random_transcoder(tiny_gpt2, reach=reach), tmp_path / name)
    (tmp_path / "text.txt").write_text("\n".join(TEXTS * 3))
    return tmp_path


def options(folder: Path, model: Path, *more: str) -> list[str]:
    text = ["--text", str(folder / "text.txt"), "--context-length", "12", "--max-tokens", "60", "--graphs", "2"]
    return ["--model", str(model), *text, *more]


def test_evaluate_writes_what_it_prints_and_repeats_it(
    tiny: Path, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--transcoder", str(tiny / "clt"), *options(tiny, tiny_gpt2_folder)]
    outputs: list[str] = []
    for name in ("one", "two"):
        assert main([*command, "--output", str(tiny / name)]) == 0
        outputs.append(capsys.readouterr().out.replace(str(tiny / name), ""))
    assert outputs[0] == outputs[1]
    found = load_report(tiny / "one")
    assert found == load_report(tiny / "two")
    assert len(found.graphs) == 2
    assert f"{found.ce_replacement:.3f}" in outputs[0]
    assert (tiny / "one" / "evaluation.png").is_file()
    assert main([*command, "--seed", "1", "--output", str(tiny / "three")]) == 0
    assert load_report(tiny / "three") != found


def test_compare_measures_transcoders_and_reads_reports(
    tiny: Path, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = options(tiny, tiny_gpt2_folder)
    assert main(["evaluate", "--transcoder", str(tiny / "clt"), *shared, "--output", str(tiny / "report")]) == 0
    both = [str(tiny / "report"), str(tiny / "plt")]
    assert main(["compare", *both, *shared, "--output", str(tiny / "compared")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"report", "plt"} <= {line.split()[0] for line in lines if line}
    with (tiny / "compared" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["report", "plt"]
    assert float(rows[0]["fvu"]) == load_report(tiny / "report").fvu
    assert (tiny / "compared" / "comparison.png").is_file()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--text", "missing.txt"], "missing.txt"),
        (["--max-tokens", "2"], "--max-tokens is 2"),
        (["--transcoder", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    tiny: Path, tiny_gpt2_folder: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--transcoder", str(tiny / "clt"), *options(tiny, tiny_gpt2_folder), *more]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_a_model_without_text_of_its_own_needs_one(
    tiny: Path, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--model", str(tiny_gpt2_folder), "--transcoder", str(tiny / "clt")]) == 2
    assert "--text" in capsys.readouterr().err
