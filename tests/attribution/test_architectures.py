"""Attribution on other models: norms after attention, parallel blocks, capped logits, scaled embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from open_clt.attribution.attribute import attribute
from open_clt.attribution.heads import every_head_contribution, head_contributions
from open_clt.language.language_model import LanguageModel, load_language_model
from tests.attribution.cases import KINDS, PROMPT
from tests.attribution.held_model import check_ablations
from tests.random_transcoders import random_architecture
from tests.tiny_models import CONTEXT_LENGTH, VOCABULARY, write_tokenizer

SIZES: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT_LENGTH,
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Gemma2": {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 10.0},
    "Olmo2": {"num_key_value_heads": 2},
    "GPTNeoX": {"rotary_pct": 0.5},
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    import transformers

    config = getattr(transformers, f"{request.param}Config")(**SIZES, **ARCHITECTURES[request.param])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random = getattr(transformers, f"{request.param}ForCausalLM")(config)
        for parameter in random.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    folder: Path = tmp_path_factory.mktemp(request.param)
    random.save_pretrained(folder)
    return load_language_model(str(write_tokenizer(folder)))


def kinds(model: LanguageModel) -> list[str]:
    """The kinds of transcoder whose input hook the model has."""
    hooks = model.bridge.hook_dict
    kinds = ["clt", "skip, reach 2"] if "blocks.0.hook_resid_mid" in hooks else []
    kinds += ["normalised clt", "normalised skip"] if "blocks.0.ln2.hook_normalized" in hooks else []
    return [*kinds, "skip from the input of the MLP"]


def test_rows_are_complete(model: LanguageModel) -> None:
    for kind in kinds(model):
        graph = attribute(model, random_architecture(KINDS[kind]), PROMPT)
        assert graph.check().relative_to_row < 1e-5


def test_an_edge_is_the_measured_effect_of_an_ablation(model: LanguageModel) -> None:
    for kind in kinds(model):
        check_ablations(model, random_architecture(KINDS[kind]))


def test_heads_add_up_to_their_edges(model: LanguageModel) -> None:
    for kind in kinds(model):
        transcoder = random_architecture(KINDS[kind])
        graph = attribute(model, transcoder, PROMPT).prune(0.7, 0.95)
        summed = torch.zeros(graph.n_nodes, graph.n_nodes)
        for target, parts in every_head_contribution(model, transcoder, graph):
            summed[target] = parts.heads.sum((0, 1)) + parts.direct
        torch.testing.assert_close(summed, graph.adjacency(), atol=1e-5, rtol=1e-4)


def test_the_row_of_a_feature_of_the_first_layer_is_split_too(model: LanguageModel) -> None:
    """In a model with parallel blocks, no head comes before such a feature."""
    transcoder = random_architecture(KINDS[kinds(model)[0]])
    graph = attribute(model, transcoder, PROMPT)
    target = next(node for node in range(graph.n_nodes) if graph.node(node).layer == 0)
    parts = head_contributions(model, transcoder, graph, target)
    torch.testing.assert_close(parts.heads.sum((0, 1)) + parts.direct, graph.adjacency()[target], atol=1e-5, rtol=1e-4)
