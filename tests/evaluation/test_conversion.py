"""Conversion to JumpReLU: the record of reconstruction and predictions before and after it."""

from __future__ import annotations

import pytest
import torch

from open_clt.config import JumpReLUConfig, TopKConfig
from open_clt.errors import TextError
from open_clt.evaluation.conversion import convert_transcoder
from open_clt.evaluation.evaluate import measure
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.model import ReplacementModel
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
