"""Conversion to JumpReLU: the record of reconstruction and predictions before and after it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from open_clt.config import JumpReLUConfig, TopKConfig
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.errors import ConfigError, TextError
from open_clt.evaluation.conversion import convert_on_dataset, convert_transcoder
from open_clt.evaluation.evaluate import measure
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.metrics import metrics_of
from open_clt.transcoders.to_jumprelu import convert_to_jumprelu
from tests.data.dataset import small_dataset
from tests.data.dataset.small_dataset import D_MODEL, N_LAYERS
from tests.random_transcoders import architecture, random_architecture
from tests.refusals import refuses


@pytest.mark.parametrize("name", ["clt", "sae", "molt"])
def test_the_record_holds_l0_fvu_and_cross_entropy_before_and_after(name: str, tiny_gpt2: LanguageModel) -> None:
    config = architecture(name, n_layers=3, d_model=tiny_gpt2.d_model, nonlinearity=TopKConfig(k=4))
    transcoder = random_architecture(config)
    contexts = torch.randint(1, 300, (24, 32), generator=torch.Generator().manual_seed(0))
    contexts[:, 0] = tiny_gpt2.bos_token_id
    record = convert_transcoder(tiny_gpt2, transcoder, contexts)
    assert isinstance(record.transcoder.config.nonlinearity, JumpReLUConfig)
    assert record.conversion.after.tokens == 18 * 31 // 2
    assert (record.before.reconstruction.tokens, record.after.reconstruction.tokens) == (6 * 31, 6 * 31)
    assert record.before.reconstruction.l0 == pytest.approx(4, abs=0.01)
    assert record.after.reconstruction.l0 == pytest.approx(4, rel=0.2)
    again = measure(ReplacementModel(tiny_gpt2, record.transcoder), contexts[18:])
    text = record.summary()
    for number in (
        record.before.logits.cross_entropy_replacement,
        again.logits.cross_entropy_replacement,
        record.after.reconstruction.fvu,
        record.after.reconstruction.fvu - record.before.reconstruction.fvu,
    ):
        assert f"{number:.4f}" in text
    with refuses(TextError, 1):
        convert_transcoder(tiny_gpt2, transcoder, contexts[:1])


def test_on_a_dataset_both_transcoders_are_measured_on_tokens_that_were_held_out(tmp_path: Path) -> None:
    transcoder = random_architecture(
        architecture("clt", n_layers=N_LAYERS, d_model=D_MODEL, nonlinearity=TopKConfig(k=2))
    )
    dataset = ActivationDataset(small_dataset.write(tmp_path / "dataset", tokens=70))
    record = convert_on_dataset(transcoder, dataset)
    usable = [batch.take(batch.positions > 0) for batch in dataset]
    inputs, targets = torch.cat([b.inputs for b in usable]), torch.cat([b.targets for b in usable])
    fitted = len(inputs) - round(len(inputs) / 4)
    expected = convert_to_jumprelu(transcoder, inputs[:fitted], targets[:fitted])
    assert record.conversion.thresholds == expected.thresholds
    assert record.before.tokens == record.after.tokens == len(inputs) - fitted
    assert record.before == metrics_of(transcoder, inputs[fitted:], targets[fitted:])
    assert record.after == metrics_of(expected.transcoder, inputs[fitted:], targets[fitted:])
    assert f"{record.after.fvu:.4f}" in record.summary()
    with refuses(TextError, "dataset", 2):
        convert_on_dataset(transcoder, dataset, max_tokens=2)
    with refuses(ConfigError, "dataset", "d_model", D_MODEL):
        wider = architecture("clt", n_layers=N_LAYERS, d_model=D_MODEL + 1, nonlinearity=TopKConfig(k=2))
        convert_on_dataset(random_architecture(wider), dataset)
