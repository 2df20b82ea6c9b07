"""``open-clt train --data.path``: training on a dataset of activations, with and without a language model beside it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from open_clt.config import CrossLayerConfig, DatasetConfig, TopKConfig, TrainingConfig
from open_clt.data.dataset.from_model import harvest_settings, store_of
from open_clt.data.dataset.manifest import HarvestedText
from open_clt.data.dataset.writer import write_dataset
from open_clt.errors import ConfigError
from open_clt.language.language_model import LanguageModel
from open_clt.training.flags.command_line import train_command
from open_clt.training.run import train_transcoder
from tests.refusals import refuses
from tests.tiny_models import TEXTS
from tests.training.flags.small_run import Settings, train


@pytest.fixture
def dataset(tiny_gpt2: LanguageModel, tmp_path: Path) -> Path:
    """A dataset of 600 tokens of the tiny model."""
    text = HarvestedText(source="texts.txt", context_length=16)
    hooks = {"input_hook": "hook_resid_mid", "target_hook": "hook_mlp_out"}
    harvested = harvest_settings(tiny_gpt2, text, tokens=600, shard_tokens=100, dtype="float32", **hooks)
    write_dataset(store_of(tiny_gpt2, lambda: TEXTS * 30, harvested), harvested, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def on_dataset(settings: Settings, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a training run on the dataset; a language model cannot be loaded."""
    monkeypatch.setattr("open_clt.training.flags.source.load_language_model", None)
    return {**settings, "data": {"path": str(dataset), "batch_size": 32}}


def test_the_command_and_the_function_train_the_same_weights_without_a_language_model(
    on_dataset: Settings, dataset: Path, tiny_gpt2: LanguageModel, tmp_path: Path
) -> None:
    result = train(on_dataset).training
    config = CrossLayerConfig(n_layers=3, d_model=32, n_features=40, nonlinearity=TopKConfig(k=4))
    training = TrainingConfig.of(batch_size=32, max_steps=8, learning_rate=0.01)
    expected = train_transcoder(transcoder_config=config, training_config=training, data=dataset, progress=False)
    assert result.transcoder.config == expected.transcoder.config
    assert result.transcoder.config.language_model == tiny_gpt2.name
    for name, tensor in expected.transcoder.state_dict().items():
        assert torch.equal(tensor, result.transcoder.state_dict()[name])
    assert result.metrics == expected.metrics
    assert result.held_out is None
    again = train_command(["--config", str(tmp_path / "out" / "config.yaml"), "--output", str(tmp_path / "again")])
    assert again.training.curves == result.curves


def test_the_dataset_decides_the_hooks(on_dataset: Settings, dataset: Path) -> None:
    manifest = dataset / "manifest.json"
    manifest.write_text(manifest.read_text().replace("hook_resid_mid", "hook_resid_pre"))
    assert train(on_dataset).training.transcoder.config.input_hook == "hook_resid_pre"
    with refuses(ConfigError, "transcoder.input_hook", "'hook_resid_mid'", "'hook_resid_pre'"):
        train({**on_dataset, "output": on_dataset["output"] + "2"}, "--transcoder.input_hook", "hook_resid_mid")


def test_a_language_model_and_texts_beside_a_dataset_are_for_the_evaluation(
    settings: Settings, dataset: Path, tiny_gpt2: LanguageModel, tmp_path: Path
) -> None:
    del settings["data"]["batch_size"]
    settings["data"] |= {"path": str(dataset), "batch_size": 32}
    run = train(settings)
    assert run.language_model is tiny_gpt2
    assert run.training.held_out is not None
    assert run.training.held_out.shape == (4, 16)
    assert run.prompts
    assert run.training.metrics is not None
    assert run.training.metrics.tokens < 60, "of the held-out tokens of the dataset, not of the texts"
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["data"]["path"] == str(dataset)


def test_a_dataset_of_another_model_is_refused(settings: Settings, dataset: Path) -> None:
    manifest = dataset / "manifest.json"
    digest = manifest.read_text().split('"vocabulary": "')[1][:64]
    manifest.write_text(manifest.read_text().replace(digest, "0" * 64))
    settings["data"]["path"] = str(dataset)
    with refuses(ConfigError, dataset.name, "vocabulary"):
        train(settings)
    assert not Path(settings["output"]).exists()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"class_path": "tests.training.own.OwnStore"}, ["data.class_path", "data.path"]),
        ({"harvest_batch_size": 4}, ["data.harvest_batch_size", "data.path"]),
        ({"context_length": 16}, ["data.context_length", "data.language_model"]),
        ({"texts": {"held_out_contexts": 3}}, ["data.texts.held_out_contexts", "data.language_model"]),
        ({"held_out_tokens": 3, "held_out_path": "other"}, ["held_out_tokens", "held_out_path"]),
        ({"order": "sideways"}, ["data.order", "'sideways'"]),
        ({"path": " "}, ["path", "' '"]),
        ({"path": None, "order": "random", "texts": {"source": "a.txt"}}, ["data.order", "path"]),
    ],
    ids=str,
)
def test_a_setting_that_does_not_fit_a_dataset_is_refused(
    on_dataset: Settings, data: dict[str, Any], named: list[object], monkeypatch: pytest.MonkeyPatch, tiny_gpt2: Any
) -> None:
    monkeypatch.setattr("open_clt.training.flags.source.load_language_model", lambda *_, **__: tiny_gpt2)
    on_dataset["data"] |= data
    with refuses(ConfigError, *named):
        train(on_dataset)
    assert not Path(on_dataset["output"]).exists()


def test_a_report_needs_a_language_model(on_dataset: Settings) -> None:
    with refuses(ConfigError, "report.graphs", "data.language_model"):
        train(on_dataset, "--report.graphs", "8")


def test_every_setting_of_a_dataset_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_command(["--help"])
    help_text = capsys.readouterr().out
    for flag in (*(f"--data.{field.name}" for field in fields(DatasetConfig)), "--dry-run"):
        assert flag in help_text
