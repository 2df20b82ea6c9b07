"""``open-clt train``: one command from a settings file to a transcoder with its figures and numbers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from open_clt.analysis.report import load_report
from open_clt.cli import main
from open_clt.models.checkpoint import load_transcoder, read_record
from tests.tiny_models import TEXTS, write_gpt2, write_llama

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
FAST = ("embedded-clt", "gpt2-clt-topk")
SMALL = {
    "default": ["--transcoder.n_features", "64"],
    "gpt2-clt-topk": ["--transcoder.n_features", "64", "--transcoder.nonlinearity.initial_k", "32"],
    "gpt2-matryoshka": ["--transcoder.n_features", "64", "--transcoder.prefixes", "[16, 32]"],
    "gpt2-molt": ["--transcoder.counts", "[2, 2, 2, 2, 2]"],
    "embedded-clt": ["--data.texts.init_args.number", "40"],
}


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
    name: str, tmp_path: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *flags_for(name, tmp_path, folders)]) == 0
    output = tmp_path / "out"
    described = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["transcoder"]
    transcoder = load_transcoder(output)
    assert transcoder.config.kind == described.get("kind", "cross_layer")
    assert transcoder.config.nonlinearity.kind == described["nonlinearity"]["kind"]
    assert transcoder.config.n_layers == {"gpt2": 12, "smol": 30, "embe": 5}[name[:4]]
    assert read_record(output)["steps"] == 3
    with (output / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    assert json.loads((output / "evaluation.json").read_text())["l0"] > 0
    if name != "gpt2-sae":  # an autoencoder stands in for no MLP
        assert load_report(output).ce_replacement > 0
    assert yaml.safe_load((output / "config.yaml").read_text())["trainer"]["max_steps"] == 3
    assert (output / "curves.png").stat().st_size > 1000
    assert (output / "checkpoints" / "last" / "state.json").is_file()
    said = capsys.readouterr().out
    assert "3 steps, 96 tokens" in said
    assert "time was waiting for it" in said


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
