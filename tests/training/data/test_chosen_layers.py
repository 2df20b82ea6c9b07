"""Training on some layers: as on activations of these layers alone, from a dataset, from a model, and when resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from open_clt.config import CrossLayerConfig, MoltConfig, TopKConfig, TranscoderConfig
from open_clt.data.dataset.encoding import STORAGE_TYPES
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.dataset.writer import write_dataset
from open_clt.data.harvest import ActivationBatch, MemoryStore, harvest
from open_clt.errors import CheckpointError, ConfigError, NotFiniteError
from open_clt.language.language_model import LanguageModel
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.training.result import TrainingResult
from open_clt.training.run import train_on_activations, train_transcoder
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import FORMAT, read_record
from tests.data.dataset.small_dataset import harvested
from tests.refusals import refuses
from tests.tiny_models import TEXTS
from tests.training.synthetic import quick_training

D_MODEL, CHOSEN = 12, (0, 2)
KINDS: dict[str, dict[str, Any]] = {
    "clt": {},
    "reach 1 with skip": {"reach": 1, "skip": True},
    "nested": {"prefixes": (8,)},
}


def store(tokens: int = 800) -> MemoryStore:
    """Random activations of four layers of different size."""
    generator = torch.Generator().manual_seed(3)
    size = torch.tensor([1.0, 50.0, 3.0, 0.1])[:, None]
    inputs, targets = (torch.randn(tokens, 4, D_MODEL, generator=generator) * size + 1 for _ in range(2))
    indices = torch.arange(tokens)
    return MemoryStore([ActivationBatch(inputs, targets, indices, indices % 16)])


def of_layers(memory: MemoryStore, layers: tuple[int, ...]) -> MemoryStore:
    return MemoryStore(
        [
            batch._replace(inputs=batch.inputs[:, [*layers]], targets=batch.targets[:, [*layers]])
            for batch in memory.batches
        ]
    )


def config(layers: tuple[int, ...] | None = CHOSEN, **settings: Any) -> CrossLayerConfig:
    values: dict[str, Any] = {"nonlinearity": TopKConfig(k=4), "n_features": 24, "d_model": D_MODEL, "layers": layers}
    values["n_layers"] = len(layers or range(4))
    return CrossLayerConfig(**{**values, **settings})


def train(transcoder: TranscoderConfig, memory: MemoryStore, **settings: Any) -> TrainingResult:
    training = quick_training(max_steps=12, max_norm_ratio=None, **settings)
    return train_on_activations(memory, transcoder, training, held_out=memory, progress=False)


def dataset(directory: Path, *, memory: MemoryStore | None = None, **settings: Any) -> Path:
    sizes = {"n_layers": 4, "d_model": D_MODEL, "tokens": 640, "shard_tokens": 160, "shards_mixed": 2}
    write_dataset(memory or store(), harvested(**{**sizes, **settings}), directory)
    return directory


def assert_same_weights(result: TrainingResult, expected: TrainingResult) -> None:
    for name, tensor in result.transcoder.state_dict().items():
        assert torch.equal(tensor, expected.transcoder.state_dict()[name]), name
    assert result.curves == expected.curves


@pytest.mark.parametrize("kind", ["reach 1 with skip", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS)])
def test_naming_all_layers_changes_no_weight(kind: str) -> None:
    assert_same_weights(
        train(config((0, 1, 2, 3), **KINDS[kind]), store()), train(config(None, **KINDS[kind]), store())
    )


def test_the_numbers_of_layers_do_not_change_what_is_learnt_but_what_is_reported() -> None:
    memory = of_layers(store(), CHOSEN)
    chosen, compact = train(config(), memory), train(config(None, n_layers=2), memory)
    assert_same_weights(chosen, compact)
    assert chosen.metrics is not None
    assert compact.metrics is not None
    assert chosen.metrics.layers == compact.metrics.layers
    assert chosen.metrics.worst_layer == CHOSEN[compact.metrics.worst_layer]
    assert chosen.metrics.as_dict()["layers"] == [*CHOSEN]
    assert "layers" not in compact.metrics.as_dict()


def test_a_mixture_of_transforms_trains_on_its_layers() -> None:
    molt = MoltConfig(n_layers=2, layers=CHOSEN, d_model=D_MODEL, ranks=(2,), counts=(6,), nonlinearity=TopKConfig(k=2))
    assert train(molt, of_layers(store(), CHOSEN)).transcoder.config.model_layers == CHOSEN


@pytest.mark.parametrize("dtype", STORAGE_TYPES)
def test_layers_of_a_dataset_are_those_of_all_its_layers(tmp_path: Path, dtype: str) -> None:
    stored = ActivationDataset(dataset(tmp_path, dtype=dtype))
    for chosen, whole in zip(stored.batches(CHOSEN), stored, strict=True):
        assert torch.equal(chosen.inputs, whole.inputs[:, [*CHOSEN]])
        assert torch.equal(chosen.targets, whole.targets[:, [*CHOSEN]])
        assert torch.equal(chosen.tokens, whole.tokens)


@pytest.mark.parametrize("statistics", ["stored", pytest.param("estimated", marks=pytest.mark.slow)])
@pytest.mark.parametrize("memory_limit", [4e-5, pytest.param(1.0, marks=pytest.mark.slow)])
def test_training_on_a_dataset_of_all_layers_is_training_on_a_dataset_of_these_layers(
    tmp_path: Path, memory_limit: float, statistics: str
) -> None:
    settings = quick_training(max_steps=12, memory_limit=memory_limit, held_out_tokens=60, statistics=statistics)
    # Both datasets mix their tokens in the same way, which does not depend on the layers.
    part = dataset(tmp_path / "part", memory=of_layers(store(), CHOSEN), n_layers=2)
    runs = [
        train_transcoder(transcoder_config=transcoder, training_config=settings, data=data, progress=False)
        for transcoder, data in ((config(), dataset(tmp_path / "whole")), (config(None, n_layers=2), part))
    ]
    assert_same_weights(*runs)
    assert runs[0].transcoder.config.model_layers == CHOSEN


def test_training_on_a_model_harvests_the_chosen_layers(tiny_gpt2: LanguageModel, tmp_path: Path) -> None:
    contexts = torch.randint(0, 250, (40, 16), generator=torch.Generator().manual_seed(0))
    whole = harvest(tiny_gpt2, contexts, input_hook="hook_resid_mid", target_hook="hook_mlp_out")
    chosen = harvest(tiny_gpt2, contexts, input_hook="hook_resid_mid", target_hook="hook_mlp_out", layers=CHOSEN)
    assert torch.equal(chosen.inputs, whole.inputs[:, [*CHOSEN]])
    assert torch.equal(chosen.targets, whole.targets[:, [*CHOSEN]])
    shape = config(d_model=32)
    training = quick_training(max_steps=5, held_out_contexts=0)
    result = train_transcoder(tiny_gpt2, contexts, shape, training, output_dir=tmp_path, progress=False)
    expected = train_on_activations(
        of_layers(MemoryStore([whole]), CHOSEN), shape, quick_training(max_steps=5), progress=False
    )
    assert_same_weights(result, expected)
    loaded = load_transcoder(tmp_path)
    assert loaded.config == result.transcoder.config
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, result.transcoder.state_dict()[name])
    assert FORMAT.read(tmp_path / "config.json")["format_version"] == 4


def test_the_facade_trains_on_layers(tiny_gpt2: LanguageModel) -> None:
    clt = OpenCrossLayerTranscoder(tiny_gpt2, 24, layers=[0, 2])
    clt.train_transcoder(TEXTS * 8, max_steps=3, context_length=16, batch_size=32, progress=False)
    assert clt.transcoder.config.model_layers == CHOSEN
    assert clt.attribute(TEXTS[0]).check().relative_to_row < 1e-5
    with refuses(ConfigError, 9, 3):
        OpenCrossLayerTranscoder(tiny_gpt2, 24, layers=[0, 9])


def test_a_resumed_run_has_the_same_layers(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    settings = quick_training(max_steps=4, every=2)
    arguments: dict[str, Any] = {"training_config": settings, "data": data, "progress": False}
    train_transcoder(transcoder_config=config(), output_dir=tmp_path / "run", **arguments)
    with refuses(CheckpointError, "layers", "[0, 2]", "[1, 2]"):
        other = config((1, 2))
        train_transcoder(transcoder_config=other, output_dir=tmp_path / "run", resume="last", **arguments)
    assert read_record(tmp_path / "run")["held_out"]["layers"] == [*CHOSEN]


def test_a_number_that_is_not_finite_is_named_by_the_layer_of_the_model() -> None:
    (batch,) = of_layers(store(), CHOSEN).batches
    batch.inputs[100, 1, 3] = torch.nan
    with refuses(NotFiniteError, "layer 2"):
        train(config(), MemoryStore([batch]))


def test_layers_that_the_dataset_lacks_are_refused(tmp_path: Path) -> None:
    with refuses(ConfigError, 4, "0 to 3"):
        train_transcoder(
            transcoder_config=config((1, 4)), training_config=quick_training(max_steps=3), data=dataset(tmp_path)
        )
