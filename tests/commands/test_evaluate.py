"""``open-clt evaluate`` and ``open-clt compare``: the same text and seed give the same report."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from open_clt.cli import main
from open_clt.evaluation.report_file import load_report, save_reconstruction
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.formats.native import save_transcoder
from tests.commands.in_processes import run_in_processes
from tests.commands.mistakes import assert_mistake
from tests.random_transcoders import architecture, random_architecture, random_transcoder
from tests.tiny_models import TEXTS


@pytest.fixture
def tiny(tiny_gpt2: LanguageModel, tiny_gpt2_folder: Path, tmp_path: Path) -> Path:
    """A folder with the transcoders ``clt`` and ``plt`` and a text."""
    for name, reach in (("clt", None), ("plt", 1)):
        save_transcoder(random_transcoder(tiny_gpt2, reach=reach), tmp_path / name)
    (tmp_path / "text.txt").write_text("\n".join(TEXTS * 3))
    return tmp_path


def options(folder: Path, model: Path, *more: str) -> list[str]:
    text = ["--text", str(folder / "text.txt"), "--context-length", "12", "--max-tokens", "60", "--graphs", "2"]
    return ["--model", str(model), *text, *more]


@pytest.mark.slow
def test_evaluate_prints_and_saves_the_same_numbers_every_time(
    tiny: Path, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--transcoder", str(tiny / "clt"), *options(tiny, tiny_gpt2_folder)]
    outputs: list[str] = []
    for name in ("one", "two"):
        assert main([*command, "--output", str(tiny / name)]) == 0
        outputs.append(capsys.readouterr().out.replace(str(tiny / name), ""))
    assert outputs[0] == outputs[1]
    report = load_report(tiny / "one")
    assert report == load_report(tiny / "two")
    assert len(report.graphs) == 2
    assert f"{report.row()['ce_replacement']:.3f}" in outputs[0]
    assert (tiny / "one" / "evaluation.png").is_file()
    assert main([*command, "--seed", "1", "--output", str(tiny / "three")]) == 0
    assert load_report(tiny / "three") != report


@pytest.mark.slow
def test_compare_measures_transcoders_and_reads_reports(
    tiny: Path, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = options(tiny, tiny_gpt2_folder)
    assert main(["evaluate", "--transcoder", str(tiny / "clt"), *shared, "--output", str(tiny / "report")]) == 0
    paths = [str(tiny / "report"), str(tiny / "plt")]
    assert main(["compare", *paths, *shared, "--output", str(tiny / "compared")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"report", "plt"} <= {line.split()[0] for line in lines if line}
    with (tiny / "compared" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["report", "plt"]
    assert float(rows[0]["fvu"]) == load_report(tiny / "report").row()["fvu"]
    assert (tiny / "compared" / "comparison.png").is_file()


def compared(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The FVU of each transcoder, by name, from the table that was printed."""
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    return {line[0]: line[1] for line in lines[1:] if len(line) == 14}


@pytest.fixture
def other_text(tiny: Path) -> Path:
    """A text that differs from the text of ``tiny``."""
    (tiny / "other.txt").write_text("\n".join(text.upper() for text in TEXTS * 3))
    return tiny / "other.txt"


@pytest.fixture
def with_reports(
    tiny: Path, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Directories of both transcoders of ``tiny`` with reports on the same text; slow pictures are not drawn."""
    for name in ("visualize_report", "visualize_comparison"):
        monkeypatch.setattr(f"open_clt.visualization.report_figures.{name}", lambda *_, **__: None)
    directories = [str(tiny / name) for name in ("clt", "plt")]
    for directory in directories:
        command = ["evaluate", "--transcoder", directory, *options(tiny, tiny_gpt2_folder)]
        assert main([*command, "--output", directory]) == 0
    capsys.readouterr()
    return directories


def test_stored_reports_are_used_if_no_option_selects_a_text(
    with_reports: list[str], tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("open_clt.commands.compare.make_report", None)  # nothing is measured
    for model in ([], ["--model", str(tiny_gpt2_folder)]):
        assert main(["compare", *with_reports, *model]) == 0
        stored = {Path(directory).name: load_report(directory).row() for directory in with_reports}
        assert compared(capsys) == {name: f"{row['fvu']:.4f}" for name, row in stored.items()}
    assert_mistake(capsys, ["compare", *with_reports, "--model", "embedded"], "clt", "--model", "embedded")


@pytest.mark.parametrize(
    "flags",
    [
        ["--max-tokens", "40"],
        *(pytest.param(flags, marks=pytest.mark.slow) for flags in (["--seed", "1"], ["--context-length", "8"])),
        *(pytest.param(flags, marks=pytest.mark.slow) for flags in (["--graphs", "0"], ["--text", "other.txt"])),
    ],
)
def test_an_option_of_the_measurement_overrides_stored_reports(
    with_reports: list[str], other_text: Path, tiny_gpt2_folder: Path, tmp_path: Path, flags: list[str]
) -> None:
    flags = [flag.replace("other.txt", str(other_text)) for flag in flags]
    settings = [*options(other_text.parent, tiny_gpt2_folder), *flags]
    assert main(["compare", *with_reports, *settings, "--output", str(tmp_path / "compared")]) == 0
    assert main(["evaluate", "--transcoder", with_reports[1], *settings, "--output", str(tmp_path / "again")]) == 0
    measured, evaluated = load_report(tmp_path / "compared" / "plt"), load_report(tmp_path / "again")
    assert measured == evaluated._replace(name="plt")
    assert measured != load_report(with_reports[1])


@pytest.mark.slow
def test_reports_on_different_texts_cannot_be_compared(
    with_reports: list[str],
    other_text: Path,
    tiny: Path,
    tiny_gpt2_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clt, plt = with_reports
    settings, report = [*options(tiny, tiny_gpt2_folder), "--text", str(other_text)], str(tiny / "report")
    assert main(["evaluate", "--transcoder", plt, *settings, "--output", plt]) == 0
    assert main(["evaluate", "--transcoder", plt, *settings, "--output", report]) == 0
    assert_mistake(capsys, ["compare", clt, plt], "clt", "text.txt", "plt", "other.txt", "--text")
    assert main(["compare", clt, plt, *settings]) == 0  # this is what the error recommends
    assert compared(capsys)["plt"] == f"{load_report(plt).row()['fvu']:.4f}"
    assert main(["compare", clt, report, *settings]) == 0  # a report on the same text is used
    monkeypatch.setattr("open_clt.commands.compare.make_report", None)  # the mistake is found before any measurement
    assert_mistake(capsys, ["compare", clt, report, *options(tiny, tiny_gpt2_folder)], "clt", "report")
    assert_mistake(capsys, ["compare", report, "--graphs", "0"], "report")


@pytest.mark.slow
def test_if_one_report_is_missing_all_transcoders_are_measured_again(
    tiny: Path, tiny_gpt2_folder: Path, with_reports: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    clt, plt = with_reports
    (Path(plt) / "evaluation.json").unlink()
    assert_mistake(capsys, ["compare", clt, plt], "'embedded'")  # the default model, which does not fit
    assert_mistake(capsys, ["compare", clt, plt, "--model", str(tiny_gpt2_folder)], "--text")


def test_names_that_repeat_get_their_parents_names(
    tiny: Path, tiny_gpt2: LanguageModel, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directories = [tiny / "clt", tiny / "a" / "last" / "t", tiny / "b" / "last" / "t"]
    for directory in directories[1:]:
        save_transcoder(random_transcoder(tiny_gpt2), directory)
    assert main(["compare", *map(str, directories), *options(tiny, tiny_gpt2_folder), "--graphs", "0"]) == 0
    assert list(compared(capsys)) == ["clt", "a-last-t", "b-last-t"]


@pytest.mark.slow
def test_embedded_is_the_name_of_the_transcoder_that_ships(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--max-tokens", "80", "--graphs", "0"]
    for flags in ([], ["--transcoder", "embedded"]):
        assert main(["evaluate", *flags, *few, "--output", "own" if flags else "default"]) == 0
    assert load_report("own") == load_report("default")
    assert load_report("own").name == "embedded"
    capsys.readouterr()
    assert main(["compare", "embedded", "own", *few]) == 0
    expected = f"{load_report('own').row()['fvu']:.4f}"
    assert compared(capsys) == dict.fromkeys(("embedded", "own"), expected)
    Path("runs").mkdir()
    Path("own").rename("runs/embedded")
    assert main(["compare", "runs/embedded", "embedded", *few]) == 0
    assert list(compared(capsys)) == ["runs-embedded", "embedded"]


@pytest.mark.slow
def test_an_autoencoder_is_evaluated_and_compared_like_a_transcoder(
    tiny: Path, tiny_gpt2: LanguageModel, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = architecture("sae", n_layers=tiny_gpt2.n_layers, d_model=tiny_gpt2.d_model)
    save_transcoder(random_architecture(config), tiny / "sae")
    shared = options(tiny, tiny_gpt2_folder)
    assert main(["evaluate", "--transcoder", str(tiny / "sae"), *shared, "--output", str(tiny / "report")]) == 0
    report = load_report(tiny / "report")
    assert report.graphs == ()
    assert report.settings["target_hook"] == report.settings["input_hook"] == "hook_resid_post"
    assert main(["compare", str(tiny / "sae"), str(tiny / "plt"), *shared, "--output", str(tiny / "compared")]) == 0
    assert load_report(tiny / "compared" / "sae") == report._replace(name="sae")
    assert {"sae", "plt"} <= {line.split()[0] for line in capsys.readouterr().out.splitlines() if line}


def test_a_transcoder_that_cannot_replace_anything_is_named_with_the_reason(
    tiny: Path, tiny_gpt2: LanguageModel, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hooks = {"input_hook": "hook_mlp_out", "target_hook": "hook_resid_mid"}
    config = architecture("per layer", n_layers=tiny_gpt2.n_layers, d_model=tiny_gpt2.d_model, **hooks)
    save_transcoder(random_architecture(config), tiny / "backwards")
    save_reconstruction({"fvu": 1.0}, tiny / "backwards", reason="It reads last.")  # as a training run does
    command = ["compare", str(tiny / "clt"), str(tiny / "backwards"), *options(tiny, tiny_gpt2_folder)]
    assert_mistake(capsys, command, tiny / "backwards", "hook_resid_mid", "hook_mlp_out")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--text", "missing.txt"], ["missing.txt"]),
        (["--max-tokens", "2"], ["--max-tokens", 2]),
        (["--max-tokens", "9" * 23], ["--max-tokens", "9" * 23]),
        (["--context-length", "0"], ["--context-length", 0]),
        (["--seed=-1"], ["--seed", -1]),
        (["--seed", "9" * 23], ["--seed", "9" * 23]),
        (["--text", ""], ["source", "''"]),
        (["--output", ""], ["--output"]),
        (["--graphs=-1"], ["graphs", -1]),
        (["--graphs", "0", "--prompts", "prompts.txt"], ["--prompts", "--graphs"]),
        (["--graphs", "0", "--max-feature-nodes", "1024"], ["--max-feature-nodes", "--graphs"]),
        (["--split", "train"], ["--split", "'train'", "text.txt"]),
        (["--column", "body"], ["--column", "'body'", "text.txt"]),
        (["--transcoder", "nowhere"], ["nowhere"]),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    tiny: Path, tiny_gpt2_folder: Path, flags: list[str], named: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--transcoder", str(tiny / "clt"), *options(tiny, tiny_gpt2_folder), *flags]
    assert_mistake(capsys, command, *named)


def test_every_model_but_the_embedded_one_needs_a_text(
    tiny: Path, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--model", str(tiny_gpt2_folder), "--transcoder", str(tiny / "clt")]
    assert_mistake(capsys, command, "--text")


@pytest.mark.parametrize("option", ["--column", "--split"])
def test_a_place_in_a_text_needs_a_text(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_mistake(capsys, ["evaluate", option, "story"], option, "story", "--text")


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(tiny: Path, tiny_gpt2_folder: Path) -> None:
    (tiny / "text.txt").write_text("\n".join(TEXTS * 20))
    command = ["evaluate", "--transcoder", str(tiny / "clt"), *options(tiny, tiny_gpt2_folder), "--max-tokens", "500"]
    printed: list[str] = []
    for launcher in ([], ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]):
        output = ["--output", str(tiny / f"out{len(printed)}")]
        printed.append(run_in_processes([*launcher, "-m", "open_clt", *command, *output]))
    single, shared = (load_report(tiny / f"out{number}") for number in range(2))
    assert shared.graphs == single.graphs
    assert [text.count("written:") for text in printed] == [1, 1]
    flat = [flatten(report.evaluation.as_dict()) for report in (single, shared)]
    assert flat[1] == pytest.approx(flat[0], rel=1e-9)


def flatten(values: dict[str, Any]) -> list[float]:
    columns = [value if isinstance(value, list) else [value] for value in values.values()]
    return [float(number) for column in columns for number in column if number is not None]
