"""``--data``: commands that measure a transcoder on a dataset of activations, without a language model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from open_clt import open_cross_layer_transcoder as facade
from open_clt.cli import main
from open_clt.config import JumpReLUConfig, ThresholdConfig
from open_clt.data.dataset.manifest import MANIFEST
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.evaluation.conversion import convert_on_dataset
from open_clt.evaluation.reconstruction import measure_reconstruction
from open_clt.language import language_model
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from tests.commands.in_processes import run_in_processes
from tests.commands.mistakes import assert_mistake
from tests.data.dataset.remote import static_server
from tests.random_transcoders import architecture, random_architecture, random_transcoder
from tests.tiny_models import TEXTS


@pytest.fixture
def folder(
    tiny_gpt2: LanguageModel,
    tiny_gpt2_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The working directory: a ``dataset`` of 300 tokens of the tiny model, and a ``transcoder``."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n".join(TEXTS * 20))
    sizes = ["--tokens", "300", "--shard-tokens", "64", "--context-length", "12", "--dtype", "float32"]
    assert main(["harvest", "--model", str(tiny_gpt2_folder), "--text", "text.txt", *sizes, "--output", "dataset"]) == 0
    save_transcoder(random_transcoder(tiny_gpt2), tmp_path / "transcoder")
    capsys.readouterr()
    return tmp_path


@pytest.fixture
def no_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No language model can be loaded."""
    for module in (language_model, facade):
        monkeypatch.setattr(module, "load_language_model", None)


def evaluate(*more: str) -> list[str]:
    return ["evaluate", "--transcoder", "transcoder", "--data", "dataset", *more]


def stored(output: str) -> dict[str, Any]:
    return json.loads(Path(output, "evaluation.json").read_text())


@pytest.mark.usefixtures("no_model")
def test_evaluate_prints_and_saves_the_numbers_of_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(evaluate("--output", "out")) == 0
    printed = capsys.readouterr().out
    measured = measure_reconstruction(
        load_transcoder("transcoder"), ActivationDataset("dataset"), name="transcoder", max_tokens=16_384
    )
    assert measured.tables() in printed
    assert measured.text == "text.txt"
    content = stored("out")
    assert {name: content[name] for name in ("fvu", "l0", "dead_share", "tokens")} == {
        name: measured.metrics.totals()[name] for name in ("fvu", "l0", "dead_share", "tokens")
    }
    assert "without the language model" in content["reason"]
    assert [path.name for path in Path("out").iterdir() if not path.name.startswith(".")] == ["evaluation.json"]
    assert main(evaluate("--max-tokens", "100", "--output", "out")) == 0
    assert stored("out")["tokens"] < 100 < content["tokens"]
    assert_mistake(capsys, ["compare", "out/evaluation.json"], "out/evaluation.json", "reconstructs")


@pytest.mark.usefixtures("folder")
def test_the_files_of_a_former_report_do_not_stay(
    tiny_gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(*_: Any, save_path: Path) -> None:
        save_path.write_bytes(b"a figure")

    monkeypatch.setattr("open_clt.visualization.report_figures.visualize_report", draw)
    text = ["--text", "text.txt", "--max-tokens", "60", "--context-length", "12", "--graphs", "0"]
    command = ["evaluate", "--transcoder", "transcoder", "--model", str(tiny_gpt2_folder), *text, "--output", "out"]
    assert main(command) == 0
    assert Path("out/evaluation.png").is_file()
    assert main(evaluate("--output", "out")) == 0
    assert [path.name for path in Path("out").iterdir() if not path.name.startswith(".")] == ["evaluation.json"]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["--data", "nowhere"], ["nowhere"]),
        (["--data", ""], ["--data"]),
        (["--data", "transcoder"], ["transcoder"]),
        (["--data", "text.txt"], ["text.txt"]),
        (["--text", "text.txt"], ["--text", "--data"]),
        (["--seed", "0"], ["--seed", "--data"]),
        (["--graphs", "1"], ["--graphs", "--data"]),
        (["--model", "gpt2"], ["--model", "--data"]),
        (["--max-tokens", "0"], ["--max-tokens"]),
        (["--transcoder", "nowhere"], ["nowhere"]),
        (["--transcoder", ""], ["transcoder"]),
        (["--transcoder", "embedded"], ["dataset", "'embedded'"]),
        (["--transcoder", "hooks"], ["dataset", "'mlp.hook_in'", "'hook_resid_mid'"]),
        (["--transcoder", "layers"], ["dataset", "n_layers = 2", "n_layers = 3"]),
        (["--output", "text.txt"], ["text.txt"]),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    wrong: list[str],
    named: list[str],
    folder: Path,
    tiny_gpt2: LanguageModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_transcoder(random_transcoder(tiny_gpt2, input_hook="mlp.hook_in"), folder / "hooks")
    save_transcoder(random_architecture(architecture("clt", n_layers=2, d_model=32)), folder / "layers")
    assert_mistake(capsys, evaluate(*wrong), *named)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("old", "new"), [('"dtype": "float32"', '"dtype": "bfloat16"'), ('"d_model": 32', '"d_model": 16')]
)
def test_shards_of_another_type_or_width_than_the_manifest_states_are_refused(
    old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Path("dataset", MANIFEST)
    assert old in manifest.read_text()
    manifest.write_text(manifest.read_text().replace(old, new))
    width = re.findall(r"\d+|bfloat16", new)[-1]
    assert_mistake(capsys, evaluate(), "dataset", width)


@pytest.mark.usefixtures("folder")
def test_an_unfinished_dataset_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("dataset", MANIFEST).rename("manifest.json")
    Path("dataset", "unfinished.json").write_text("{}")
    assert_mistake(capsys, evaluate(), "dataset", "complete")


def convert(*more: str) -> list[str]:
    return ["convert", "--transcoder", "transcoder", "--data", "dataset", "--output", "converted", *more]


@pytest.mark.usefixtures("no_model")
def test_convert_fits_thresholds_to_the_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(convert("--default-threshold", "0.5", "--scale-factor", "1.5", "--max-tokens", "250")) == 0
    printed = capsys.readouterr().out
    record = convert_on_dataset(
        load_transcoder("transcoder"),
        ActivationDataset("dataset"),
        thresholds=ThresholdConfig(scale_factor=1.5, default_threshold=0.5),
        max_tokens=250,
    )
    assert record.summary() in printed
    assert record.conversion.threshold_table() in record.summary()
    stored, made = (transcoder.state_dict() for transcoder in (load_transcoder("converted"), record.transcoder))
    torch.testing.assert_close(stored["nonlinearity.log_threshold"], made["nonlinearity.log_threshold"])
    assert isinstance(load_transcoder("converted").config.nonlinearity, JumpReLUConfig)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["--data", "nowhere"], ["nowhere"]),
        (["--text", "text.txt"], ["--text", "--data"]),
        (["--scale-factor", "0"], ["scale_factor", "0"]),
        (["--default-threshold", "nan"], ["default_threshold", "nan"]),
        (["--default-threshold", "low"], ["--default-threshold", "'low'"]),
        (["--max-tokens", "3"], ["--max-tokens"]),
        (["--keep-nonlinearity", "--to", "circuit-tracer-layers"], ["--data"]),
        (["--transcoder", "embedded"], ["dataset", "'embedded'"]),
        (["--transcoder", "hooks"], ["dataset", "'mlp.hook_in'"]),
    ],
)
def test_a_mistake_of_convert_is_one_line_and_writes_nothing(
    wrong: list[str], named: list[str], folder: Path, tiny_gpt2: LanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    save_transcoder(random_transcoder(tiny_gpt2, input_hook="mlp.hook_in"), folder / "hooks")
    save_transcoder(random_transcoder(tiny_gpt2, reach=1), folder / "transcoder")
    assert_mistake(capsys, convert(*wrong), *named)
    assert not Path("converted").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("no_model")
def test_a_dataset_on_a_server_gives_the_numbers_of_its_directory(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(evaluate("--output", "local")) == 0
    assert main(convert()) == 0
    local = capsys.readouterr().out.splitlines()
    with static_server.serving(folder) as server:
        address = f"{server.address}dataset"
        assert main(evaluate("--data", address, "--output", "remote")) == 0
        assert main(convert("--data", address, "--output", "again")) == 0
        assert_mistake(capsys, evaluate("--data", address, "--transcoder", "embedded"), address, "'embedded'")
        assert_mistake(capsys, evaluate("--data", f"{server.address}nothing"), f"{server.address}nothing")
    assert stored("remote") == stored("local")
    converted, again = (load_transcoder(name).state_dict() for name in ("converted", "again"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in converted.items())
    assert any("thresholds" in line for line in local)
    assert_mistake(capsys, evaluate("--data", address), address)


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_two_processes_measure_what_one_measures() -> None:
    assert main(evaluate("--output", "one")) == 0
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "open_clt"]
    printed = run_in_processes([*launcher, *evaluate("--output", "two")])
    assert printed.count("written:") == 1
    single, shared = stored("one"), stored("two")
    assert numbers(shared) == pytest.approx(numbers(single), rel=1e-9)
    assert shared["tokens"] == single["tokens"]


def numbers(content: dict[str, Any]) -> list[float]:
    """The FVU and L0 of the transcoder and of each layer."""
    return [float(row[name]) for row in (content, *content["layers"]) for name in ("fvu", "l0")]
