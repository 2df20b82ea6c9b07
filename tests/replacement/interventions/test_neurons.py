"""Interventions on neurons have exactly the effects that the graph predicts, if everything else is frozen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from open_clt.attribution.attribute import attribute
from open_clt.evaluation.effects import measured_changes
from open_clt.evaluation.faithfulness import faithfulness
from open_clt.graphs.nodes import NodeKind
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.interventions.intervene import intervene
from open_clt.replacement.interventions.intervention import Constrained, Patching, interventions_on
from open_clt.replacement.model import ReplacementModel
from tests.model_families import load_family

PROMPT = [0, 5, 17, 42]


def largest_deviation(model: LanguageModel, scale: float, patching: Patching | None = None) -> float:
    """The largest difference between predicted and measured changes, for the strongest neuron and a ninth of all."""
    replacement = ReplacementModel(model, "neurons", error_correction=True)
    graph = attribute(model, replacement.transcoder, PROMPT, max_logits=3)
    neurons = graph.of_kind(NodeKind.FEATURE)
    order = graph.influence().masked_fill(~neurons, -1).argsort(descending=True)[: int(neurons.sum())]
    deviations: list[float] = []
    for sources in (order[:1], order[::9]):
        ids = [graph.node(row).id for row in sources.tolist()]
        record = intervene(replacement, torch.tensor(PROMPT), interventions_on(ids, scale=scale), patching)
        predicted = (scale - 1) * graph.adjacency()[:, sources].sum(1)
        measured = measured_changes(graph, replacement.transcoder, record)
        rows = ~measured.isnan()
        if getattr(model.bridge.cfg, "output_logits_soft_cap", None):  # a run measures logits after their bound
            rows &= neurons
        assert float(predicted[rows & neurons].abs().max()) > 0.01
        deviations.append(float((measured - predicted)[rows].abs().max()))
    return max(deviations)


def test_every_change_is_what_the_graph_predicts(tiny_gpt2: LanguageModel, tiny_llama: LanguageModel) -> None:
    for model in (tiny_gpt2, tiny_llama):
        assert largest_deviation(model, 0.0) < 1e-4
    assert largest_deviation(tiny_llama, 0.0, Constrained(freeze_norms=False)) > 1e-3  # the comparison can fail


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Gemma2", "Gemma3Text", "GPTNeoX", "Gemma"])
def test_every_change_is_what_the_graph_predicts_in_other_families(tmp_path: Path, family: str) -> None:
    model = load_family(family, tmp_path)
    for scale in (0.0, 3.0):
        assert largest_deviation(model, scale) < 1e-4


@pytest.mark.slow
def test_the_faithfulness_of_neurons_is_measured(tiny_llama: LanguageModel) -> None:
    replacement = ReplacementModel(tiny_llama, "neurons")
    graph = attribute(tiny_llama, replacement.transcoder, PROMPT, max_logits=3)
    numbers = faithfulness(graph, replacement, max_features=4)
    assert numbers.agreement.kl_divergence == pytest.approx(0, abs=1e-5)
    assert numbers.agreement.top1_agreement == 1
