"""Training on a dataset of activations: as on a store of the same rows, from any moment on, and on nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from open_clt.config import CrossLayerConfig, TrainingConfig
from open_clt.data.contexts import Place
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.harvest import ActivationBatch, MemoryStore, concatenate, read_from
from open_clt.errors import CheckpointError, ConfigError, OpenCLTError, TextError
from open_clt.language.language_model import LanguageModel
from open_clt.training.data.stored import DatasetTokens, StoredActivations
from open_clt.training.result import TrainingResult
from open_clt.training.run import OwnParts, train_on_activations, train_transcoder
from open_clt.transcoders.formats.native import read_record
from tests.refusals import refuses
from tests.training.data.stored_run import TOO_SMALL, train, write
from tests.training.synthetic import D_MODEL, LAYERS, quick_training, relu_mlps, small_transcoder


def assert_identical(result: TrainingResult, expected: TrainingResult) -> None:
    """Two results have the same weights and the same losses, bit for bit."""
    for name, tensor in result.transcoder.state_dict().items():
        assert torch.equal(tensor, expected.transcoder.state_dict()[name]), name
    assert result.curves == expected.curves
    assert result.metrics == expected.metrics


def rows(directory: Path) -> ActivationBatch:
    """All rows of a dataset, in the order of its files."""
    return concatenate(list(ActivationDataset(directory)))


@pytest.mark.parametrize("memory_limit", [1.0, TOO_SMALL], ids=["in memory", "read during training"])
def test_training_cannot_tell_a_dataset_from_a_store_of_its_rows(tmp_path: Path, memory_limit: float) -> None:
    stored = rows(write(tmp_path))
    pieces = [stored.take(part) for part in torch.arange(100, 1600).split(160)]
    expected = train_on_activations(
        MemoryStore(pieces),
        small_transcoder(),
        quick_training(epochs=2, memory_limit=memory_limit),
        held_out=MemoryStore([stored.take(slice(100))]),
        progress=False,
    )
    assert_identical(train(tmp_path, held_out_tokens=100, memory_limit=memory_limit), expected)


class Crash(Callback):
    """Ends a run before a given step, without a last checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *rest: Any, **named: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("power cut")


@pytest.mark.parametrize("order", [pytest.param("sequence", marks=pytest.mark.slow), "random"])
@pytest.mark.parametrize("memory_limit", [pytest.param(1.0, marks=pytest.mark.slow), TOO_SMALL])
def test_a_run_that_crashed_goes_on_bit_for_bit(tmp_path: Path, memory_limit: float, order: str) -> None:
    data = write(tmp_path / "data")
    settings: dict[str, Any] = {"memory_limit": memory_limit, "order": order, "every": 7}
    whole = train(data, output_dir=tmp_path / "whole", **settings)
    with pytest.raises(RuntimeError):
        train(data, output_dir=tmp_path / "run", own=OwnParts(callbacks=[Crash(31)]), **settings)
    # A copy of the dataset elsewhere is the same dataset.
    moved = data.rename(tmp_path / "moved")
    resumed = train(moved, output_dir=tmp_path / "run", resume="last", **settings)
    assert resumed.steps > 31
    assert_identical(resumed, whole)


def test_a_resumed_run_refuses_another_dataset_and_other_settings(tmp_path: Path) -> None:
    data, other = write(tmp_path / "data"), write(tmp_path / "other", store=relu_mlps(1600, seed=3))
    train(data, output_dir=tmp_path / "run", max_steps=3)
    with refuses(CheckpointError, "dataset"):
        train(other, output_dir=tmp_path / "run", max_steps=3, resume="last")
    changes: list[dict[str, Any]] = [{"order": "random"}, {"statistics": "stored"}, {"held_out_tokens": 7}]
    for change in changes:
        with refuses(CheckpointError, *(name.removesuffix("_tokens") for name in change), *change.values()):
            train(data, output_dir=tmp_path / "run", max_steps=3, resume="last", **change)


def test_the_order_of_the_files_can_be_random(tmp_path: Path) -> None:
    dataset = ActivationDataset(write(tmp_path))
    kept = range(100, 1600)
    in_sequence, mixed = DatasetTokens.of(dataset, kept), DatasetTokens.of(dataset, kept, random_seed=4)
    assert in_sequence.n_tokens == mixed.n_tokens == 1500
    first, second = (concatenate(list(store)).tokens for store in (in_sequence, mixed))
    assert torch.equal(first, rows(tmp_path).tokens[100:])
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)
    assert torch.equal(concatenate(list(DatasetTokens.of(dataset, kept, random_seed=4))).tokens, second)


@pytest.mark.parametrize("seed", [None, 4])
def test_tokens_can_be_read_from_any_place_on(tmp_path: Path, seed: int | None) -> None:
    store = DatasetTokens.of(ActivationDataset(write(tmp_path)), range(100, 1600), random_seed=seed)
    placed = list(store.read_from(Place()))
    for index in (0, 1, 5, len(placed) - 1):
        again = list(read_from(store, placed[index].place))
        assert len(again) == len(placed) - index
        for ours, theirs in zip(again, placed[index:], strict=True):
            assert ours.place == theirs.place
            assert torch.equal(ours.batch.inputs, theirs.batch.inputs)


def test_held_out_tokens_are_never_trained_on(tmp_path: Path) -> None:
    write(tmp_path)

    def held_out(**settings: Any) -> tuple[set[int], set[int]]:
        training = TrainingConfig.of(path=str(tmp_path), **settings)
        activations = StoredActivations(config=training.dataset).activations(small_transcoder(), training)
        stores = (activations.held_out or MemoryStore([]), activations.train)
        measured, trained = ({int(token) for batch in store for token in batch.tokens} for store in stores)
        return measured, trained

    for settings, expected in (({"held_out_tokens": 250}, 250), ({}, 160), ({"held_out_tokens": 0}, 0)):
        measured, trained = held_out(**settings)
        assert len(measured) == expected
        assert not measured & trained
        assert len(measured | trained) == 1600
    write(tmp_path / "other", tokens=320)
    measured, trained = held_out(held_out_path=str(tmp_path / "other"))
    assert (len(measured), len(trained)) == (320, 1600)


def test_the_numbers_of_a_second_dataset_are_measured(tmp_path: Path) -> None:
    data, other = write(tmp_path / "data"), write(tmp_path / "other", tokens=320)
    result = train(data, held_out_path=str(other), max_steps=3)
    assert result.metrics is not None
    assert result.metrics.tokens == 300, "a token in 16 is at a first position"


@pytest.mark.parametrize("use_first_position", [False, True])
def test_stored_statistics_describe_all_tokens(tmp_path: Path, use_first_position: bool) -> None:
    write(tmp_path, store=large_first_positions())
    config = small_transcoder(use_first_position=use_first_position)
    training = TrainingConfig.of(path=str(tmp_path), statistics="stored")
    statistics = StoredActivations(config=training.dataset).activations(config, training).statistics
    assert statistics is not None
    stored = rows(tmp_path)
    used = stored if use_first_position else stored.take(stored.positions > 0)
    for ours, numbers in ((statistics.inputs, used.inputs), (statistics.targets, used.targets)):
        torch.testing.assert_close(ours.mean, numbers.mean(0))
        spread = (numbers - numbers.mean(0)).square().mean((0, 2)).sqrt()
        torch.testing.assert_close(ours.scale, spread)
    result = train(tmp_path, statistics="stored", max_steps=5)
    assert result.curves.loss != train(tmp_path, max_steps=5).curves.loss


def large_first_positions() -> MemoryStore:
    """Activations that are ten times as large at first positions."""
    batches = relu_mlps(1600).batches
    size = [torch.where(batch.positions == 0, 10.0, 1.0)[:, None, None] for batch in batches]
    pairs = zip(batches, size, strict=True)
    return MemoryStore([batch._replace(inputs=batch.inputs * by, targets=batch.targets * by) for batch, by in pairs])


def test_the_record_of_a_run_says_what_it_was_trained_on(tmp_path: Path) -> None:
    data = write(tmp_path / "data")
    result = train(data, output_dir=tmp_path / "run", max_steps=3)
    assert result.transcoder.config.language_model == "tiny"
    record = read_record(tmp_path / "run")
    assert record["settings"]["dataset"]["path"] == str(data)
    about = record["dataset"]
    assert (about["model"], about["tokens"], about["text"]["source"]) == ("tiny", 1600, "texts.txt")


def change_manifest(directory: Path, **values: Any) -> None:
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cut(directory: Path) -> None:
    path = directory / "shard-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "error", "named"),
    [
        (lambda directory: change_manifest(directory, format_version=9), CheckpointError, ["manifest.json", 9]),
        (lambda directory: (directory / "manifest.json").unlink(), CheckpointError, ["manifest.json"]),
        (lambda directory: (directory / "manifest.json").write_text("{"), CheckpointError, ["manifest.json"]),
        (lambda directory: (directory / "shard-00003.safetensors").unlink(), CheckpointError, ["shard-00003"]),
        (cut, CheckpointError, ["shard-00003.safetensors"]),
        (lambda directory: (directory / "norm_stats.json").write_text("{}"), CheckpointError, ["norm_stats.json"]),
    ],
    ids=["newer", "no manifest", "damaged manifest", "no shard", "truncated shard", "damaged statistics"],
)
def test_a_damaged_dataset_is_refused_before_the_first_step(
    tmp_path: Path, spoil: Any, error: type[OpenCLTError], named: list[object]
) -> None:
    data = write(tmp_path / "data")
    spoil(data)
    with refuses(error, *named):
        train(data, statistics="stored", output_dir=tmp_path / "run", own=OwnParts(callbacks=[Crash(0)]))
    assert not (tmp_path / "run" / "metrics.csv").exists()


@pytest.mark.parametrize(
    ("transcoder", "settings", "error", "named"),
    [
        ({"n_layers": 3}, {}, ConfigError, ["n_layers", 3, LAYERS]),
        ({"d_model": 8}, {}, ConfigError, ["d_model", 8, D_MODEL]),
        ({"input_hook": "hook_resid_pre"}, {}, ConfigError, ["input_hook", "'hook_resid_pre'", "'hook_resid_mid'"]),
        ({"target_hook": "hook_resid_post"}, {}, ConfigError, ["target_hook", "'hook_resid_post'"]),
        ({"language_model": "gpt2"}, {}, ConfigError, ["'gpt2'", "'tiny'"]),
        ({}, {"held_out_tokens": 1600}, TextError, ["1,600", "held_out_tokens"]),
        ({}, {"held_out_tokens": -1}, ConfigError, ["held_out_tokens", -1]),
        ({}, {"held_out_contexts": 3}, ConfigError, ["texts.held_out_contexts"]),
        ({}, {"context_length": 3}, ConfigError, ["data.context_length"]),
    ],
)
def test_a_setting_that_does_not_fit_the_dataset_is_refused(
    tmp_path: Path, transcoder: dict[str, Any], settings: dict[str, Any], error: type[OpenCLTError], named: list[object]
) -> None:
    write(tmp_path)
    config: dict[str, Any] = {"n_layers": LAYERS, "d_model": D_MODEL, "n_features": 24, **transcoder}
    with refuses(error, *named):
        train(tmp_path, transcoder=CrossLayerConfig(**config), **settings)


def test_a_second_dataset_of_another_model_is_refused(tmp_path: Path) -> None:
    data, other = write(tmp_path / "data"), write(tmp_path / "other", tokens=320, vocabulary="another")
    with refuses(ConfigError, "vocabulary", str(other)):
        train(data, held_out_path=str(other))


def test_a_dataset_of_another_language_model_is_refused(tiny_gpt2: LanguageModel, tmp_path: Path) -> None:
    config = CrossLayerConfig(n_layers=3, n_features=40, d_model=32)
    with refuses(ConfigError, tmp_path.name, "'tiny'", "n_layers", 3):
        train_transcoder(tiny_gpt2, None, config, data=write(tmp_path))


def test_what_is_missing_or_given_twice_is_named(tiny_gpt2: LanguageModel, tmp_path: Path) -> None:
    config = small_transcoder()
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"transcoder_config": config}, ["model is missing", "data"]),
        ({"model": tiny_gpt2, "transcoder_config": config}, ["texts_or_contexts is missing"]),
        ({"data": tmp_path}, ["transcoder_config is missing"]),
        ({"data": tmp_path, "texts_or_contexts": ["a"], "transcoder_config": config}, ["data"]),
        (
            {"data": tmp_path, "transcoder_config": config, "training_config": TrainingConfig.of(path="other")},
            ["data", "dataset.path", "'other'"],
        ),
        ({"transcoder_config": config, "training_config": TrainingConfig.of(order="random")}, ["model is missing"]),
    ]
    for arguments, named in cases:
        with refuses(ConfigError, *named):
            train_transcoder(**arguments)
    fitting = CrossLayerConfig(n_layers=3, n_features=40, d_model=32)
    with refuses(ConfigError, "dataset.order", "'random'"):
        train_transcoder(tiny_gpt2, ["a"], fitting, TrainingConfig.of(order="random"))


@pytest.mark.slow
def test_damage_during_a_run_is_named_and_the_last_checkpoint_is_kept(tmp_path: Path) -> None:
    data = write(tmp_path / "data")
    shard = data / "shard-00008.safetensors"
    intact = shard.read_bytes()
    settings: dict[str, Any] = {"memory_limit": TOO_SMALL, "every": 5}
    expected = train(data, output_dir=tmp_path / "whole", **settings)
    shard.write_bytes(intact[:-480] + b"\xff" * 480)
    with refuses(CheckpointError, "shard-00008.safetensors"):
        train(data, output_dir=tmp_path / "run", **settings)
    shard.write_bytes(intact)
    assert_identical(train(data, output_dir=tmp_path / "run", resume="last", **settings), expected)
