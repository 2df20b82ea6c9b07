"""``open-clt train``: one command makes a transcoder with figures and metrics from a settings file."""

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
from tests.commands.mistakes import assert_mistake
from tests.tiny_models import TEXTS, write_gpt2, write_llama

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
SMALL = {
    "default": ["--transcoder.n_features", "64"],
    "gpt2-clt-topk": ["--transcoder.n_features", "64", "--transcoder.nonlinearity.initial_k", "32"],
    "gpt2-matryoshka": ["--transcoder.n_features", "64", "--transcoder.prefixes", "[16, 32]"],
    "gpt2-molt": ["--transcoder.counts", "[2, 2, 2, 2, 2]"],
    "embedded-clt": ["--data.texts.init_args.number", "40"],
}


@pytest.fixture(autouse=True)
def allocator(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Records each request to change the allocator, instead of changing the allocator of the test process."""
    requests: list[bool] = []
    monkeypatch.setattr("open_clt.training.flags.command_line.keep_freed_memory", lambda: requests.append(True))
    return requests


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of models with the shapes of GPT-2 and SmolLM2 and random weights; ``folder_of`` adds them as needed."""
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
    """Flags that make a ready configuration small and stop it after three steps."""
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


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_a_ready_configuration_trains_and_writes_all_files(
    name: str, tmp_path: Path, folders: dict[str, Path], allocator: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *flags_for(name, tmp_path, folders)]) == 0
    assert allocator == [True], "on a CPU, the allocator keeps freed memory"
    output = tmp_path / "out"
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["transcoder"]
    transcoder = load_transcoder(output)
    assert transcoder.config.kind == settings.get("kind", "cross_layer")
    assert transcoder.config.nonlinearity.kind == settings["nonlinearity"]["kind"]
    assert transcoder.config.n_layers == {"gpt2": 12, "smol": 30, "embe": 5}[name[:4]]
    assert read_record(output)["steps"] == 3
    with (output / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    saved_report = load_report(output)
    assert saved_report.row()["ce_replacement"] > 0
    assert len(saved_report.graphs) == (0 if name in ("gpt2-molt", "gpt2-sae") else 1)
    assert yaml.safe_load((output / "config.yaml").read_text())["trainer"]["max_steps"] == 3
    assert (output / "curves.png").stat().st_size > 1000
    assert (output / "checkpoints" / "last" / "state.json").is_file()
    assert "3 steps, 96 tokens" in capsys.readouterr().out


def tiny_command(folder: Path, tmp_path: Path, name: str, *more: str) -> list[str]:
    """A command that trains on the tiny model for three steps and writes to the directory ``name``."""
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS * 40), encoding="utf-8")
    flags = ["--data.language_model", str(folder), "--data.texts.source", str(texts), "--trainer.max_steps", "3"]
    flags += ["--transcoder.nonlinearity.k", "4", "--transcoder.n_features", "40", "--data.context_length", "16"]
    flags += ["--data.batch_size", "32", "--data.texts.held_out_contexts", "4", "--trainer.accelerator", "cpu"]
    return ["train", *flags, "--output", str(tmp_path / name), *more]


def hooks(source: str, target: str) -> list[str]:
    """Flags of a per-layer transcoder from one hook to another."""
    return ["--transcoder.reach", "1", "--transcoder.input_hook", source, "--transcoder.target_hook", target]


@pytest.mark.slow
def test_train_writes_the_report_of_evaluate_and_compare_reads_it(
    tmp_path: Path, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one two three\nfour five six\n")
    own_prompts = ["--report.prompts", str(prompts), "--report.graphs", "1", "--report.max_feature_nodes", "5"]
    autoencoder = hooks("hook_resid_pre", "hook_resid_pre")
    held_out = ["--data.texts.held_out_contexts", "2"]
    for name, flags in {
        "clt": [],
        "prompts": own_prompts,
        "without": ["--report.graphs", "0"],
        "sae": autoencoder,
    }.items():
        assert main(tiny_command(tiny_gpt2_folder, tmp_path, name, *held_out, *flags)) == 0
    reports = {name: load_report(tmp_path / name) for name in ("clt", "prompts", "without", "sae")}
    # By default there are eight graphs, but there are only two contexts.
    assert [len(saved.graphs) for saved in reports.values()] == [2, 1, 0, 0]
    assert reports["prompts"].graphs[0].prompt == "one two three"
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
    capsys.readouterr()
    directories = [str(tmp_path / name) for name in reports]
    assert main(["compare", *directories, "--output", str(tmp_path / "compared")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == list(reports)


@pytest.mark.slow
def test_a_transcoder_that_cannot_replace_anything_gets_reconstruction_metrics_and_a_reason(
    tmp_path: Path, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backwards = hooks("hook_mlp_out", "hook_resid_mid")
    assert main(tiny_command(tiny_gpt2_folder, tmp_path, "backwards", *backwards)) == 0
    printed = capsys.readouterr().out
    assert "'hook_resid_mid'" in printed
    assert "'hook_mlp_out'" in printed
    saved = json.loads((tmp_path / "backwards" / "evaluation.json").read_text())
    assert saved["fvu"] > 0
    assert saved["l0"] == pytest.approx(4.0)
    command = ["compare", str(tmp_path / "backwards" / "evaluation.json")]
    assert_mistake(capsys, command, "evaluation.json", "'hook_resid_mid'", "'hook_mlp_out'")


def test_the_configurations_that_the_readme_names_exist() -> None:
    names = "gpt2-clt-topk gpt2-clt-jumprelu gpt2-plt gpt2-matryoshka gpt2-molt gpt2-sae embedded-clt smollm2-clt"
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(names.split())


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--transcoder.n_featurs", "3"], "'transcoder.n_features'"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--trainer.precision", "7"], "trainer.precision"),
        (["--output"], "output"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(flags: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_mistake(capsys, ["train", *flags], named)


@pytest.mark.slow
def test_mistakes_with_a_dataset_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    for path, named in (
        (tmp_path / "nowhere", tmp_path / "nowhere"),
        (tmp_path / "empty", "manifest.json"),
        ("http://127.0.0.1:1/name/", "http://127.0.0.1:1/name/"),
        ("http://", "http://"),
    ):
        assert_mistake(capsys, ["train", "--data.path", str(path), "--output", str(output)], named)
    assert not output.exists()
