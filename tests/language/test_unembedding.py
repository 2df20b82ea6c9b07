"""The unembedding alone gives the logits of the whole model, and work on many tokens holds few logits at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from open_clt.attribution.attribute import attribute
from open_clt.data.contexts import pack_contexts
from open_clt.errors import LanguageModelError
from open_clt.evaluation.evaluate import measure
from open_clt.evaluation.faithfulness import faithfulness
from open_clt.graphs.targets import SalientLogits
from open_clt.language import unembedding
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.replacement.interventions.intervene import generate_patched, intervene
from open_clt.replacement.interventions.intervention import Constrained, Intervention
from open_clt.replacement.model import ReplacementModel
from tests.model_families import FAMILIES, load_family
from tests.random_transcoders import random_transcoder
from tests.refusals import refuses
from tests.tiny_models import TEXTS, VOCABULARY

QUICK = ("Cohere", "Gemma2", "Granite", "OPT (norms after)")
"""Families whose logits are more than a product with the final states: a factor, a bound, a factor, a projection."""
REFUSED = ("Helium", "Mamba")


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[] if family in QUICK else pytest.mark.slow)
        for family in FAMILIES
        if family not in REFUSED
    ],
)
def test_logits_of_slices_of_states_are_those_of_the_whole_model(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unembedding, "LOGITS_AT_ONCE", 4 * VOCABULARY + 1)
    model = load_family(family, tmp_path)
    tokens = torch.arange(27).view(3, 9)
    with torch.no_grad():
        states = model.states(tokens).flatten(0, 1)
        slices = [model.unembedding.logits(states[rows]) for rows in model.unembedding.slices(len(states))]
        expected = model.logits(tokens).flatten(0, 1)
    assert [len(logits) for logits in slices] == [4, 4, 4, 4, 4, 4, 3]
    torch.testing.assert_close(torch.cat(slices), expected, atol=1e-5, rtol=1e-5)


def test_a_row_of_logits_may_be_larger_than_a_slice(tiny_gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unembedding, "LOGITS_AT_ONCE", VOCABULARY - 1)
    assert tiny_gpt2.unembedding.slices(3) == [slice(0, 1), slice(1, 2), slice(2, 3)]


def test_states_are_those_of_the_outer_pass_if_a_hook_runs_another(tiny_gpt2: LanguageModel) -> None:
    tokens, others = (tiny_gpt2.tokenize(text)[None] for text in TEXTS[:2])
    expected = tiny_gpt2.states(tokens)

    def run_another(_: Tensor) -> None:
        if not inside:
            inside.append(None)
            tiny_gpt2.states(others)

    inside: list[None] = []
    with tiny_gpt2.hooks([("blocks.1.hook_mlp_out", run_another)]):
        assert torch.equal(tiny_gpt2.states(tokens), expected)
    assert inside


class LargestLogits(TorchDispatchMode):
    """While this is open, ``rows`` becomes the largest number of rows of a tensor whose rows are as long as logits."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.rows = 0
        self._weights = {weight.untyped_storage().data_ptr() for weight in model.bridge.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        of_logits = isinstance(result, Tensor) and result.shape[-1:] == (VOCABULARY,)
        if of_logits and result.untyped_storage().data_ptr() not in self._weights:
            self.rows = max(self.rows, result.numel() // VOCABULARY)
        return result


ABLATION = Intervention(1, -1, 2, value=0.0)
USES: dict[str, Callable[[ReplacementModel], object]] = {
    "measure": lambda replacement: measure(
        replacement, pack_contexts(TEXTS, replacement.model, 12, max_contexts=6), alone=True, batch_size=3
    ),
    "compare": lambda replacement: replacement.compare(TEXTS[0]),
    "generate": lambda replacement: replacement.generate(TEXTS[0], max_new_tokens=2),
    "intervene": lambda replacement: intervene(replacement, TEXTS[0], ABLATION).summary(),
    "generate_patched": lambda replacement: generate_patched(
        replacement, TEXTS[0], ABLATION, Constrained(), max_new_tokens=2
    ),
    "attribute": lambda replacement: attribute(
        replacement.model, replacement.transcoder, TEXTS[0], max_feature_nodes=4, max_logits=2
    ),
    "next_tokens": lambda replacement: replacement.model.next_tokens(TEXTS),
}


@pytest.mark.parametrize("use", USES)
def test_few_logits_are_held_at_a_time(use: str, tiny_gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts have many more tokens than a slice."""
    monkeypatch.setattr(unembedding, "LOGITS_AT_ONCE", 3 * VOCABULARY)
    replacement = ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2))
    with LargestLogits(tiny_gpt2) as largest:
        USES[use](replacement)
    assert 1 <= largest.rows <= 3


def test_faithfulness_holds_few_logits_at_a_time(tiny_gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    replacement = ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2))
    targets = [SalientLogits(max_count=2, position=position) for position in (3, -1)]
    graph = attribute(tiny_gpt2, replacement.transcoder, TEXTS[0], targets=targets, max_feature_nodes=4)
    at_once = faithfulness(graph, replacement, max_features=2)
    monkeypatch.setattr(unembedding, "LOGITS_AT_ONCE", 3 * VOCABULARY)
    with LargestLogits(tiny_gpt2) as largest:
        in_slices = faithfulness(graph, replacement, max_features=2)
    assert 1 <= largest.rows <= 3
    assert in_slices.agreement == pytest.approx(at_once.agreement, rel=1e-5)


def test_whole_logits_would_be_noticed(tiny_gpt2: LanguageModel) -> None:
    tokens = tiny_gpt2.tokenize(TEXTS[0])
    with LargestLogits(tiny_gpt2) as largest:
        tiny_gpt2.logits(tokens[None])
    assert largest.rows == len(tokens)


def test_numbers_do_not_depend_on_the_size_of_slices(tiny_gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    replacement = ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2))
    contexts = pack_contexts(TEXTS, tiny_gpt2, 12, max_contexts=6)
    at_once = measure(replacement, contexts), replacement.compare(TEXTS[0])
    monkeypatch.setattr(unembedding, "LOGITS_AT_ONCE", 5 * VOCABULARY)
    in_slices = measure(replacement, contexts), replacement.compare(TEXTS[0])
    assert in_slices[0].totals() == pytest.approx(at_once[0].totals(), rel=1e-5)
    assert in_slices[1].logits == pytest.approx(at_once[1].logits, rel=1e-5)
    assert in_slices[1][1:4] == pytest.approx(at_once[1][1:4], rel=1e-5)


def test_a_model_that_changes_its_states_before_the_unembedding_is_refused(
    tiny_gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import GPT2LMHeadModel
    from transformers.modeling_outputs import CausalLMOutput

    def forward(self: Any, input_ids: Tensor, **settings: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self.lm_head(2 * self.transformer(input_ids)[0] + self.transformer.wte(input_ids)))

    monkeypatch.setattr(GPT2LMHeadModel, "forward", forward)
    with refuses(LanguageModelError, str(tiny_gpt2_folder)):
        load_language_model(str(tiny_gpt2_folder))
