"""``open-clt evaluate`` and ``compare``: the library's numbers, saved; the same text and seed give the same ones."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from open_clt.cli import main
from open_clt.evaluation.report_file import load_report, save_reconstruction
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.formats.native import save_transcoder
from tests.random_transcoders import architecture, random_architecture, random_transcoder
from tests.tiny_models import TEXTS


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
    assert f"{found.row()['ce_replacement']:.3f}" in outputs[0]
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
    assert float(rows[0]["fvu"]) == load_report(tiny / "report").row()["fvu"]
    assert (tiny / "compared" / "comparison.png").is_file()


def compared(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The table that was printed: FVU by name."""
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    return {line[0]: line[1] for line in lines[1:] if len(line) == 14}


@pytest.fixture
def other_text(tiny: Path) -> Path:
    """Another text than that of ``tiny``."""
    (tiny / "other.txt").write_text("\n".join(text.upper() for text in TEXTS * 3))
    return tiny / "other.txt"


@pytest.fixture
def with_reports(
    tiny: Path, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Both transcoders of ``tiny``, a report on the same text in each; no pictures, for they take the most time."""
    for name in ("visualize_report", "visualize_comparison"):
        monkeypatch.setattr(f"open_clt.visualization.report_figures.{name}", lambda *_, **__: None)
    places = [str(tiny / name) for name in ("clt", "plt")]
    for place in places:
        assert main(["evaluate", "--transcoder", place, *options(tiny, tiny_gpt2_folder), "--output", place]) == 0
    capsys.readouterr()
    return places


def test_reports_that_are_there_are_taken_where_nothing_says_what_to_measure_on(
    with_reports: list[str], tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("open_clt.commands.compare.make_report", None)  # nothing is measured
    for model in ([], ["--model", str(tiny_gpt2_folder)]):
        assert main(["compare", *with_reports, *model]) == 0
        stored = {Path(place).name: load_report(place).row() for place in with_reports}
        assert compared(capsys) == {name: f"{row['fvu']:.4f}" for name, row in stored.items()}
    assert main(["compare", *with_reports, "--model", "embedded"]) == 2
    assert "clt was measured in" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [["--max-tokens", "40"], ["--seed", "1"], ["--context-length", "8"], ["--graphs", "0"], ["--text", "other.txt"]],
)
def test_a_flag_that_says_what_to_measure_on_is_never_ignored(
    with_reports: list[str], other_text: Path, tiny_gpt2_folder: Path, tmp_path: Path, flags: list[str]
) -> None:
    flags = [flag.replace("other.txt", str(other_text)) for flag in flags]
    typed = [*options(other_text.parent, tiny_gpt2_folder), *flags]
    assert main(["compare", *with_reports, *typed, "--output", str(tmp_path / "compared")]) == 0
    assert main(["evaluate", "--transcoder", with_reports[1], *typed, "--output", str(tmp_path / "again")]) == 0
    found, again = load_report(tmp_path / "compared" / "plt"), load_report(tmp_path / "again")
    assert found == again._replace(name="plt")
    assert found != load_report(with_reports[1])


def test_reports_on_different_text_do_not_stand_in_one_table(
    with_reports: list[str],
    other_text: Path,
    tiny: Path,
    tiny_gpt2_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clt, plt = with_reports
    typed = [*options(tiny, tiny_gpt2_folder), "--text", str(other_text)]
    assert main(["evaluate", "--transcoder", plt, *typed, "--output", plt]) == 0
    assert main(["evaluate", "--transcoder", plt, *typed, "--output", str(tiny / "report")]) == 0
    capsys.readouterr()
    assert main(["compare", clt, plt]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for said in ("clt on 5 contexts of 12 tokens of", "text.txt, seed 0; plt on 5", "other.txt, seed 0", "--text FILE"):
        assert said in error
    assert main(["compare", clt, plt, *typed]) == 0  # as the error says
    assert compared(capsys)["plt"] == f"{load_report(plt).row()['fvu']:.4f}"
    assert main(["compare", clt, str(tiny / "report"), *typed]) == 0  # a report alone is taken, if it fits
    monkeypatch.setattr("open_clt.commands.compare.make_report", None)  # that it does not is known before
    assert main(["compare", clt, str(tiny / "report"), *options(tiny, tiny_gpt2_folder)]) == 2
    capsys.readouterr()
    assert main(["compare", str(tiny / "report"), "--graphs", "0"]) == 2
    assert "report are reports without a transcoder to measure anew" in capsys.readouterr().err


def test_where_one_holds_no_report_all_are_measured_on_the_same_text(
    tiny: Path, tiny_gpt2_folder: Path, with_reports: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    clt, plt = with_reports
    (Path(plt) / "evaluation.json").unlink()
    assert main(["compare", clt, plt]) == 2
    assert "'embedded'" in capsys.readouterr().err  # the embedded model is what is measured in by default
    assert main(["compare", clt, plt, "--model", str(tiny_gpt2_folder)]) == 2
    assert "name a file or a data set with --text" in capsys.readouterr().err


def test_names_that_repeat_are_told_apart(
    tiny: Path, tiny_gpt2: LanguageModel, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [tiny / "clt", tiny / "a" / "last" / "t", tiny / "b" / "last" / "t"]
    for place in places[1:]:
        save_transcoder(random_transcoder(tiny_gpt2), place)
    assert main(["compare", *map(str, places), *options(tiny, tiny_gpt2_folder), "--graphs", "0"]) == 0
    assert list(compared(capsys)) == ["clt", "a-last-t", "b-last-t"]


def test_embedded_names_the_transcoder_that_ships(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--max-tokens", "80", "--graphs", "0"]
    for named in ([], ["--transcoder", "embedded"]):
        assert main(["evaluate", *named, *few, "--output", "own" if named else "default"]) == 0
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


def test_an_autoencoder_is_measured_and_compared_as_transcoders_are(
    tiny: Path, tiny_gpt2: LanguageModel, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = architecture("sae", n_layers=tiny_gpt2.n_layers, d_model=tiny_gpt2.d_model)
    save_transcoder(random_architecture(config), tiny / "sae")
    shared = options(tiny, tiny_gpt2_folder)
    assert main(["evaluate", "--transcoder", str(tiny / "sae"), *shared, "--output", str(tiny / "report")]) == 0
    found = load_report(tiny / "report")
    assert found.graphs == ()
    assert found.settings["target_hook"] == found.settings["input_hook"] == "hook_resid_post"
    assert main(["compare", str(tiny / "sae"), str(tiny / "plt"), *shared, "--output", str(tiny / "compared")]) == 0
    assert load_report(tiny / "compared" / "sae") == found._replace(name="sae")
    assert {"sae", "plt"} <= {line.split()[0] for line in capsys.readouterr().out.splitlines() if line}


def test_what_cannot_stand_in_is_named_with_the_reason(
    tiny: Path, tiny_gpt2: LanguageModel, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hooks = {"input_hook": "hook_mlp_out", "target_hook": "hook_resid_mid"}
    config = architecture("per layer", n_layers=tiny_gpt2.n_layers, d_model=tiny_gpt2.d_model, **hooks)
    save_transcoder(random_architecture(config), tiny / "backwards")
    save_reconstruction({"fvu": 1.0}, tiny / "backwards", reason="It reads last.")  # as its training left it
    assert main(["compare", str(tiny / "clt"), str(tiny / "backwards"), *options(tiny, tiny_gpt2_folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "backwards cannot be compared. The model computes 'hook_resid_mid' before 'hook_mlp_out'" in error


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--text", "missing.txt"], "missing.txt"),
        (["--max-tokens", "2"], "--max-tokens is 2"),
        (["--graphs=-1"], "graphs is -1"),
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
