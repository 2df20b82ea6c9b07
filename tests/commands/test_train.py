"""``open-clt train``: one command from a settings file to a transcoder with its figures and numbers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from open_clt.cli import main
from open_clt.data.contexts import pack_contexts
from open_clt.evaluation.report import report
from open_clt.evaluation.report_file import load_report
from open_clt.language.language_model import load_language_model
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import read_record
from tests.tiny_models import TEXTS, write_gpt2, write_llama

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
FAST = ("embedded-clt",)
SMALL = {
    "default": ["--transcoder.n_features", "64"],
    "gpt2-clt-topk": ["--transcoder.n_features", "64", "--transcoder.nonlinearity.initial_k", "32"],
    "gpt2-matryoshka": ["--transcoder.n_features", "64", "--transcoder.prefixes", "[16, 32]"],
    "gpt2-molt": ["--transcoder.counts", "[2, 2, 2, 2, 2]"],
    "embedded-clt": ["--data.texts.init_args.number", "40"],
}


@pytest.fixture(autouse=True)
def allocator(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the process's allocator was to be changed; that of the tests' process stays as it is."""
    asked: list[bool] = []
    monkeypatch.setattr("open_clt.training.flags.command_line.keep_freed_memory", lambda: asked.append(True))
    return asked


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of the architectures of GPT-2 and SmolLM2, their weights random; those that were asked for are made."""
    return {"": tmp_path_factory.mktemp("models")}


def folder_of(architecture: str, folders: dict[str, Path]) -> Path:
    if architecture not in folders:
        folder = folders[""] / architecture
        if architecture == "gpt2":
            write_gpt2(folder, n_layer=12, n_embd=768, n_head=12, n_positions=1024)
        else:
            shape = {"num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536}
            write_llama(folder, **shape, num_attention_heads=9, num_key_value_heads=3)
        folders[architecture] = folder
    return folders[architecture]


def flags_for(name: str, tmp_path: Path, folders: dict[str, Path]) -> list[str]:
    """What makes three steps of a ready configuration small."""
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS * 40), encoding="utf-8")
    flags = ["--config", str(CONFIGS / f"{name}.yaml"), "--output", str(tmp_path / "out")]
    flags += SMALL.get(name, SMALL["default"])
    flags += ["--trainer.max_steps", "3", "--trainer.val_check_interval", "2", "--trainer.accelerator", "cpu"]
    flags += ["--data.batch_size", "32", "--data.texts.held_out_contexts", "2", "--data.harvest_batch_size", "4"]
    flags += ["--report.graphs", "1", "--report.max_feature_nodes", "64"]
    if name != "embedded-clt":
        model = folder_of("gpt2" if name.startswith("gpt2") else "smollm2", folders)
        flags += ["--data.language_model", str(model), "--data.texts.source", str(texts), "--data.dtype", "float32"]
        flags += ["--data.context_length", "16", "--data.memory_limit", "0.01"]
    return flags


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.stem, marks=[] if path.stem in FAST else [pytest.mark.slow])
        for path in sorted(CONFIGS.glob("*.yaml"))
    ],
)
def test_a_ready_configuration_trains_and_writes_everything(
    name: str, tmp_path: Path, folders: dict[str, Path], allocator: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *flags_for(name, tmp_path, folders)]) == 0
    assert allocator == [True], "on a CPU, freed memory is kept"
    output = tmp_path / "out"
    described = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["transcoder"]
    transcoder = load_transcoder(output)
    assert transcoder.config.kind == described.get("kind", "cross_layer")
    assert transcoder.config.nonlinearity.kind == described["nonlinearity"]["kind"]
    assert transcoder.config.n_layers == {"gpt2": 12, "smol": 30, "embe": 5}[name[:4]]
    assert read_record(output)["steps"] == 3
    with (output / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    found = load_report(output)
    assert found.row()["ce_replacement"] > 0
    assert len(found.graphs) == (0 if name in ("gpt2-molt", "gpt2-sae") else 1)
    assert yaml.safe_load((output / "config.yaml").read_text())["trainer"]["max_steps"] == 3
    assert (output / "curves.png").stat().st_size > 1000
    assert (output / "checkpoints" / "last" / "state.json").is_file()
    said = capsys.readouterr().out
    assert "3 steps, 96 tokens" in said
    assert "time was waiting for it" in said


def tiny_flags(folder: Path, tmp_path: Path, name: str, *more: str) -> list[str]:
    """Three steps on the tiny model, written to a directory of some name."""
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS * 40), encoding="utf-8")
    flags = ["--data.language_model", str(folder), "--data.texts.source", str(texts), "--trainer.max_steps", "3"]
    flags += ["--transcoder.nonlinearity.k", "4", "--transcoder.n_features", "40", "--data.context_length", "16"]
    flags += ["--data.batch_size", "32", "--data.texts.held_out_contexts", "4", "--trainer.accelerator", "cpu"]
    return ["train", *flags, "--output", str(tmp_path / name), *more]


def hooks(reads: str, writes: str) -> list[str]:
    return ["--transcoder.reach", "1", "--transcoder.input_hook", reads, "--transcoder.target_hook", writes]


def test_the_report_of_a_training_is_that_of_evaluate_and_compare_reads_it(
    tmp_path: Path, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one two three\nfour five six\n")
    asked = ["--report.prompts", str(prompts), "--report.graphs", "1", "--report.max_feature_nodes", "5"]
    autoencoder = hooks("hook_resid_pre", "hook_resid_pre")
    held_out = ["--data.texts.held_out_contexts", "2"]
    for name, flags in {"clt": [], "asked": asked, "without": ["--report.graphs", "0"], "sae": autoencoder}.items():
        assert main(tiny_flags(tiny_gpt2_folder, tmp_path, name, *held_out, *flags)) == 0
    said = capsys.readouterr().out
    reports = {name: load_report(tmp_path / name) for name in ("clt", "asked", "without", "sae")}
    assert [len(found.graphs) for found in reports.values()] == [2, 1, 0, 0]  # of eight by default, but two contexts
    assert reports["asked"].graphs[0].prompt == "one two three"
    assert reports["without"] == reports["clt"]._replace(name="without", graphs=())
    contexts, model = reports["clt"].evaluation.reconstruction.tokens // 15, load_language_model(tiny_gpt2_folder)
    assert contexts == 2
    again = report(
        ReplacementModel(model, tmp_path / "clt"),
        pack_contexts([(tmp_path / "texts.txt").read_text()], model, 16, max_contexts=2),
        name="clt",
        prompts=[graph.prompt for graph in reports["clt"].graphs],
    )
    assert again.row() == pytest.approx(reports["clt"].row())
    assert "predictions were not measured" not in said
    everything = [str(tmp_path / name) for name in reports]
    assert main(["compare", *everything, "--output", str(tmp_path / "compared")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == list(reports)


def test_without_a_report_the_numbers_of_reconstruction_are_kept_with_the_reason(
    tmp_path: Path, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backwards = hooks("hook_mlp_out", "hook_resid_mid")
    assert main(tiny_flags(tiny_gpt2_folder, tmp_path, "backwards", *backwards)) == 0
    said = capsys.readouterr().out
    assert "predictions were not measured. The model computes 'hook_resid_mid' before 'hook_mlp_out'" in said
    kept = json.loads((tmp_path / "backwards" / "evaluation.json").read_text())
    assert kept["fvu"] > 0
    assert kept["l0"] == pytest.approx(4.0)
    assert main(["compare", str(tmp_path / "backwards" / "evaluation.json")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "says only how well the transcoder reconstructs. The model computes" in error


def test_there_are_the_configurations_that_the_readme_names() -> None:
    names = "gpt2-clt-topk gpt2-clt-jumprelu gpt2-plt gpt2-matryoshka gpt2-molt gpt2-sae embedded-clt smollm2-clt"
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(names.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--transcoder.n_featurs", "3"], "did you mean 'transcoder.n_features'"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--trainer.precision", "7"], "trainer.precision"),
        (["--output"], "output"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
