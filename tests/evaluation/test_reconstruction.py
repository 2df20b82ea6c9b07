"""The reconstruction on a dataset of activations: its numbers are those of the same tokens from the language model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from open_clt.data.dataset.from_model import harvest_settings
from open_clt.data.dataset.manifest import HarvestedText
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.dataset.writer import write_dataset
from open_clt.data.harvest import Harvest
from open_clt.errors import ConfigError, TextError
from open_clt.evaluation.reconstruction import measure_reconstruction
from open_clt.evaluation.report import report
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.model import ReplacementModel
from tests.random_transcoders import random_transcoder
from tests.refusals import refuses

HOOKS: dict[str, Any] = {"input_hook": "hook_resid_mid", "target_hook": "hook_mlp_out"}
WriteDataset = Callable[..., ActivationDataset]


@pytest.fixture
def contexts(tiny_gpt2: LanguageModel) -> torch.Tensor:
    contexts = torch.randint(1, 300, (20, 16), generator=torch.Generator().manual_seed(0))
    contexts[:, 0] = tiny_gpt2.bos_token_id
    return contexts


@pytest.fixture
def dataset(tiny_gpt2: LanguageModel, tmp_path: Path) -> WriteDataset:
    """A function that writes the activations of the tiny model on contexts to a dataset, in shards of 50 tokens."""

    def write(contexts: torch.Tensor, **settings: Any) -> ActivationDataset:
        text = HarvestedText(source="contexts", context_length=contexts.shape[1])
        given: dict[str, Any] = {
            "dtype": "float32",
            "tokens": contexts.numel(),
            "shard_tokens": 50,
            **HOOKS,
            **settings,
        }
        write_dataset(Harvest(tiny_gpt2, contexts, **HOOKS), harvest_settings(tiny_gpt2, text, **given), tmp_path / "d")
        return ActivationDataset(tmp_path / "d")

    return write


@pytest.mark.parametrize("use_first_position", [False, True])
def test_the_numbers_are_those_of_the_language_model_on_the_same_tokens(
    use_first_position: bool, tiny_gpt2: LanguageModel, contexts: torch.Tensor, dataset: WriteDataset
) -> None:
    transcoder = random_transcoder(tiny_gpt2, use_first_position=use_first_position)
    expected = report(ReplacementModel(tiny_gpt2, transcoder), contexts, name="mine")
    measured = measure_reconstruction(transcoder, dataset(contexts), name="mine")
    theirs = expected.evaluation.reconstruction
    assert measured.metrics.tokens == theirs.tokens == 20 * (16 if use_first_position else 15)
    assert measured.metrics.as_dict() == {
        name: pytest.approx(value, rel=1e-5) for name, value in theirs.as_dict().items()
    }
    assert measured.metrics.density_histogram == theirs.density_histogram
    assert measured.decoder_norms == expected.decoder_norms
    written = measured.as_dict()
    shared = {name: value for name, value in expected.as_dict().items() if name in written and name != "layers"}
    assert set(written) - set(shared) == {"text", "layers"}
    assert shared["fvu"] == pytest.approx(written["fvu"], rel=1e-5)
    assert {name for row in written["layers"] for name in row} <= set(expected.layers()[0])
    printed = measured.tables()
    for number in (measured.metrics.fvu, measured.metrics.worst_fvu, *measured.metrics.fvu_per_layer):
        assert f"{number:.4f}" in printed


def test_bfloat16_changes_the_numbers_by_its_rounding_only(
    tiny_gpt2: LanguageModel, contexts: torch.Tensor, dataset: WriteDataset
) -> None:
    transcoder = random_transcoder(tiny_gpt2)
    exact = report(ReplacementModel(tiny_gpt2, transcoder), contexts, name="").evaluation.reconstruction
    rounded = measure_reconstruction(transcoder, dataset(contexts, dtype="bfloat16"), name="").metrics
    assert rounded.fvu_per_layer == pytest.approx(exact.fvu_per_layer, rel=0.02)
    assert rounded.fvu_per_layer != exact.fvu_per_layer


def test_at_most_as_many_tokens_are_used_as_asked_for(
    tiny_gpt2: LanguageModel, contexts: torch.Tensor, dataset: WriteDataset
) -> None:
    stored = dataset(contexts)
    transcoder = random_transcoder(tiny_gpt2, use_first_position=True)
    measured = measure_reconstruction(transcoder, stored, name="", max_tokens=70)
    assert measured.metrics.tokens == 70
    with pytest.raises(TextError):
        measure_reconstruction(random_transcoder(tiny_gpt2), _only_first(stored, dataset, contexts), name="")


def _only_first(stored: ActivationDataset, dataset: WriteDataset, contexts: torch.Tensor) -> ActivationDataset:
    """A dataset of first positions only."""
    for path in stored.directory.iterdir():
        path.unlink()
    return dataset(contexts[:, :1])


def test_a_dataset_of_other_hooks_is_refused(
    tiny_gpt2: LanguageModel, contexts: torch.Tensor, dataset: WriteDataset
) -> None:
    transcoder = random_transcoder(tiny_gpt2, input_hook="mlp.hook_in")
    stored = dataset(contexts)
    with refuses(ConfigError, str(stored.directory), "input_hook", "mlp.hook_in", "hook_resid_mid"):
        measure_reconstruction(transcoder, stored, name="")
