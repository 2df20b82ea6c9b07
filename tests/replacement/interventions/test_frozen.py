"""Frozen attention and norms: effects equal the edges of a graph in families that compute attention differently."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from open_clt.attribution.attribute import attribute
from open_clt.config import CrossLayerConfig, SamplingConfig, TopKConfig
from open_clt.errors import LanguageModelError
from open_clt.graphs.nodes import NodeKind
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.interventions.intervene import generate_patched, intervene
from open_clt.replacement.interventions.intervention import Constrained, Intervention
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from tests.model_families import load_family
from tests.random_transcoders import random_architecture
from tests.refusals import refuses

PROMPT = "The cat sat on the dog"
ABLATION = Intervention(0, 2, 3, value=1.0)
HOOKS = ("hook_resid_mid", "ln2.hook_normalized")


def transcoder_of(model: LanguageModel, input_hook: str) -> CrossLayerTranscoder:
    shape = {"n_layers": model.n_layers, "d_model": model.d_model, "n_features": 16}
    config = CrossLayerConfig(**shape, nonlinearity=TopKConfig(k=3), input_hook=input_hook)
    transcoder = random_architecture(config)
    assert isinstance(transcoder, CrossLayerTranscoder)
    return transcoder


def difference(model: LanguageModel, transcoder: CrossLayerTranscoder) -> float:
    """The largest difference between the edges of some features and the effects of their ablation, and the edges."""
    graph = attribute(model, transcoder, PROMPT)
    replacement = ReplacementModel(model, transcoder, error_correction=True)
    features = [row for row in range(graph.n_nodes) if graph.node(row).kind is NodeKind.FEATURE]
    edges, largest, off = graph.adjacency(), 0.0, 0.0
    for source in [row for row in features if graph.node(row).layer == 0][-2:]:
        node = graph.node(source)
        record = intervene(replacement, PROMPT, Intervention(0, node.position, node.index, value=0.0))
        for row in features:
            target = graph.node(row)
            change = record.preactivation_change(transcoder, target.layer, torch.tensor([target.index]))
            off = max(off, abs(float(change[target.position, 0] + edges[row, source])))
            largest = max(largest, abs(float(edges[row, source])))
    assert largest > 0.01
    return off / max(1.0, largest)


@pytest.mark.parametrize("family", ["GPTNeo", "OPT", "Olmo"])
def test_effects_equal_edges_and_no_warning_is_shown(family: str, tmp_path: Path) -> None:
    model = load_family(family, tmp_path)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert max(difference(model, transcoder_of(model, hook)) for hook in HOOKS) < 1e-5
    assert not [warning for warning in shown if "transformer_lens" in warning.filename]


def test_generation_with_frozen_attention_is_refused_where_a_cache_hides_the_values(tmp_path: Path) -> None:
    model = load_family("GPTNeo", tmp_path)
    replacement = ReplacementModel(model, transcoder_of(model, "hook_resid_mid"), error_correction=True)
    sampling = SamplingConfig(max_new_tokens=3, stop_at_eos=False)
    with refuses(LanguageModelError, "freeze_attention", "blocks.0.attn"):
        generate_patched(replacement, PROMPT, ABLATION, Constrained(), sampling)
    free = Constrained(freeze_attention=False)
    assert len(generate_patched(replacement, PROMPT, ABLATION, free, sampling).tokens) > 8


@pytest.mark.parametrize(
    ("hook", "field"), [("blocks.1.attn.hook_z", "freeze_attention"), ("blocks.1.ln1.hook_out", "freeze_norms")]
)
def test_a_model_that_does_not_use_the_frozen_values_is_refused(
    tiny_llama: LanguageModel, hook: str, field: str
) -> None:
    def changed(activation: Tensor) -> Tensor:
        return activation * 1.5

    replacement = ReplacementModel(tiny_llama, transcoder_of(tiny_llama, "hook_resid_mid"), error_correction=True)
    with tiny_llama.hooks([(hook, changed)]), refuses(LanguageModelError, field, hook.rsplit(".", 1)[0]):
        intervene(replacement, PROMPT, ABLATION)
