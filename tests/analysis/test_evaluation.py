"""What the evaluation of a transcoder says of predictions, against runs of the language model written out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from open_clt.activations.language_model import LanguageModel
from open_clt.activations.text import pack_contexts
from open_clt.analysis.evaluation import evaluate_transcoder
from open_clt.analysis.report import report
from open_clt.replacement.model import ReplacementModel
from tests.tiny_models import TEXTS, random_transcoder


@pytest.fixture(scope="module")
def contexts(tiny_gpt2: LanguageModel) -> Tensor:
    return pack_contexts(TEXTS, tiny_gpt2, 12, max_contexts=6)


def surprise_with_constant_mlps(model: LanguageModel, contexts: Tensor, constants: Tensor) -> float:
    """Cross-entropy with the MLP outputs of each layer set to a constant, except at the first position."""

    def constant(layer: int) -> Callable[[Tensor], Tensor]:
        def write(output: Tensor) -> Tensor:
            changed = output.clone()
            changed[:, 1:] = constants[layer]
            return changed

        return write

    hooks = [(model.hook_name(layer, "hook_mlp_out"), constant(layer)) for layer in range(model.n_layers)]
    with model.hooks(hooks):
        logits = model.logits(contexts)[:, 1:-1]
    return float(functional.cross_entropy(logits.flatten(0, 1), contexts[:, 2:].flatten()))


@pytest.mark.parametrize("batch_size", [2, 4])
def test_ablation_sets_every_mlp_output_to_its_mean(
    tiny_gpt2: LanguageModel, contexts: Tensor, batch_size: int
) -> None:
    replacement = ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2))
    targets = tiny_gpt2.capture(contexts, "hook_resid_mid", "hook_mlp_out").targets[:, 1:]
    means = targets.flatten(0, 1).mean(0)
    expected = surprise_with_constant_mlps(tiny_gpt2, contexts, means)
    found = evaluate_transcoder(replacement, contexts, batch_size=batch_size)
    assert found.cross_entropy_ablated == pytest.approx(expected, rel=1e-5)
    zero = surprise_with_constant_mlps(tiny_gpt2, contexts, torch.zeros_like(means))
    assert abs(zero - expected) > 1e-3, "ablating to zero would be seen"
    original, replaced = found.logits.cross_entropy_original, found.logits.cross_entropy_replacement
    assert expected > original
    assert found.share_recovered == pytest.approx((expected - replaced) / (expected - original), rel=1e-3)
    assert found.summary()["ce_ablated"] == found.cross_entropy_ablated


def test_a_report_gives_the_evaluations_cross_entropies(tiny_gpt2: LanguageModel, contexts: Tensor) -> None:
    replacement = ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2))
    found, written = evaluate_transcoder(replacement, contexts), report(replacement, contexts, name="random")
    expected = (found.logits.cross_entropy_original, found.logits.cross_entropy_replacement)
    assert (written.ce_original, written.ce_replacement) == pytest.approx(expected)
    assert (written.ce_ablated, written.ce_recovered) == (found.cross_entropy_ablated, found.share_recovered)
    assert len({round(ce, 3) for ce in (*expected, written.ce_ablated)}) == 3
