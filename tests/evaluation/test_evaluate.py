"""The evaluation of a transcoder: predictions equal those of runs of the language model that are written out."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from open_clt.data.contexts import pack_contexts
from open_clt.evaluation.evaluate import Evaluation, measure, measure_each
from open_clt.evaluation.report import report
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.model import ReplacementModel
from tests.random_transcoders import random_transcoder
from tests.tiny_models import TEXTS


@pytest.fixture(scope="module")
def contexts(tiny_gpt2: LanguageModel) -> Tensor:
    return pack_contexts(TEXTS, tiny_gpt2, 12, max_contexts=6)


def cross_entropy_with_constant_mlps(model: LanguageModel, contexts: Tensor, constants: Tensor) -> float:
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
    expected = cross_entropy_with_constant_mlps(tiny_gpt2, contexts, means)
    evaluation = measure(replacement, contexts, batch_size=batch_size)
    assert evaluation.cross_entropy_ablated == pytest.approx(expected, rel=1e-5)
    zero = cross_entropy_with_constant_mlps(tiny_gpt2, contexts, torch.zeros_like(means))
    assert abs(zero - expected) > 1e-3, "an ablation to zero would be noticed"
    original, replaced = evaluation.logits.cross_entropy_original, evaluation.logits.cross_entropy_replacement
    assert expected > original
    assert evaluation.share_recovered == pytest.approx((expected - replaced) / (expected - original), rel=1e-3)
    assert evaluation.as_dict()["ce_ablated"] == evaluation.cross_entropy_ablated


@pytest.mark.parametrize("batch_size", [4, 6])
def test_a_layer_replaced_alone_equals_the_replacement_model_of_that_layer(
    tiny_gpt2: LanguageModel, contexts: Tensor, batch_size: int
) -> None:
    transcoder = random_transcoder(tiny_gpt2)
    evaluation = measure(ReplacementModel(tiny_gpt2, transcoder), contexts, alone=True, batch_size=batch_size)
    assert len(evaluation.alone) == tiny_gpt2.n_layers
    for layer, alone in enumerate(evaluation.alone):
        single = ReplacementModel(tiny_gpt2, transcoder, layers=[layer]).logits(contexts)[:, 1:-1]
        loss = functional.cross_entropy(single.flatten(0, 1), contexts[:, 2:].flatten())
        assert alone.cross_entropy_replacement == pytest.approx(float(loss), rel=1e-5)
        assert alone.cross_entropy_original == evaluation.logits.cross_entropy_original


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("replacements", [1, 3])
def test_the_unchanged_model_runs_once_per_context(
    tiny_gpt2: LanguageModel, contexts: Tensor, alone: bool, replacements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run is of the unchanged model; the others replace all layers, replace one layer, or ablate."""
    rows: list[int] = []
    forward = tiny_gpt2.bridge.forward

    def counted(tokens: Tensor, **settings: object) -> Tensor:
        rows.append(tokens.shape[0])
        return forward(tokens, **settings)

    models = [ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2, seed=seed)) for seed in range(replacements)]
    monkeypatch.setattr(tiny_gpt2.bridge, "forward", counted)
    evaluations = measure_each(models, contexts, alone=alone, batch_size=4)
    changed_runs = 2 + (tiny_gpt2.n_layers if alone else 0)
    assert sum(rows) == (1 + replacements * changed_runs) * contexts.shape[0]
    for model, evaluation in zip(models, evaluations, strict=True):
        assert evaluation == measure(model, contexts, alone=alone, batch_size=4)


def test_an_evaluation_is_rebuilt_from_its_totals_and_layers(tiny_gpt2: LanguageModel, contexts: Tensor) -> None:
    evaluation = measure(ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2)), contexts, alone=True)
    histogram = evaluation.reconstruction.density_histogram
    stored = json.dumps({**evaluation.totals(), "layers": evaluation.layers(), "density_histogram": histogram})
    assert Evaluation.from_dict(json.loads(stored)) == evaluation
    numbers = evaluation.as_dict()
    assert numbers["kl_alone_per_layer"] == [alone.kl_divergence for alone in evaluation.alone]
    assert numbers["fvu_per_layer"] == evaluation.reconstruction.fvu_per_layer


def test_a_report_holds_the_cross_entropies_of_the_evaluation(tiny_gpt2: LanguageModel, contexts: Tensor) -> None:
    replacement = ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2))
    evaluation, written = measure(replacement, contexts), report(replacement, contexts, name="random")
    expected = (evaluation.logits.cross_entropy_original, evaluation.logits.cross_entropy_replacement)
    row = written.row()
    assert (row["ce_original"], row["ce_replacement"]) == pytest.approx(expected)
    assert (row["ce_ablated"], row["ce_recovered"]) == (evaluation.cross_entropy_ablated, evaluation.share_recovered)
    assert len({round(ce, 3) for ce in (*expected, row["ce_ablated"])}) == 3
