"""docs/model_families.md says of every family what is measured on a tiny random model of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from open_clt.attribution.attribute import attribute
from open_clt.errors import AttributionError, LanguageModelError
from open_clt.language import loading
from open_clt.language.language_model import LanguageModel, load_language_model
from tests.measured_families import PROMPT, Row, edges_less_effects, measured, read_table, transcoder_of
from tests.model_families import FAMILIES, load_family, own_outputs
from tests.random_transcoders import random_architecture
from tests.refusals import refuses

QUICK = ("GPTJ", "Gemma3Text", "Granite", "Helium", "Qwen3")
"""Families of the default tests: parallel blocks, norms after the MLP, a refused graph, a refused model, and norms of
queries and keys."""


@pytest.fixture(scope="module")
def documented(repository: Path) -> dict[str, Row]:
    return read_table((repository / "docs" / "model_families.md").read_text())


def test_the_table_has_every_family(documented: dict[str, Row]) -> None:
    assert list(documented) == list(FAMILIES)


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=[] if family in QUICK else pytest.mark.slow) for family in FAMILIES]
)
def test_the_row_of_a_family_is_what_is_measured(family: str, documented: dict[str, Row], tmp_path: Path) -> None:
    assert documented[family] == measured(family, tmp_path)


def test_a_refusal_names_hooks_that_are_not_refused(tmp_path: Path) -> None:
    model = load_family("GPTJ", tmp_path)
    assert model.input_hooks == ("hook_resid_pre", "mlp.hook_in")
    with refuses(LanguageModelError, "hook_resid_mid", "hook_resid_pre"):
        attribute(model, transcoder_of(model, "hook_resid_mid"), "The cat")
    for hook in model.input_hooks:
        assert attribute(model, transcoder_of(model, hook), "The cat").n_nodes


LINEAR = ("hook_resid_pre", "ln1.hook_normalized", "ln1.hook_out", "attn.hook_in", "ln2.hook_in", "ln2.hook_out")
"""Hooks of GPT-2 that are linear functions of the residual stream once norms are frozen, besides its input hooks."""


@pytest.mark.parametrize("hook", LINEAR)
def test_attribution_accepts_any_hook_that_is_linear_in_the_stream(tiny_gpt2: LanguageModel, hook: str) -> None:
    transcoder = transcoder_of(tiny_gpt2, hook)
    graph = attribute(tiny_gpt2, transcoder, PROMPT)
    assert graph.check().relative_to_row < 1e-5
    assert edges_less_effects(tiny_gpt2, transcoder, graph) < 1e-5


@pytest.mark.parametrize("hook", ["hook_resid_post", "hook_attn_out", "attn.hook_out", "mlp.hook_out", "mlp.hook_pre"])
def test_attribution_refuses_hooks_that_are_not_linear_in_the_stream(tiny_gpt2: LanguageModel, hook: str) -> None:
    with refuses(AttributionError, hook, "hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in"):
        attribute(tiny_gpt2, transcoder_of(tiny_gpt2, hook), PROMPT)


def test_attribution_accepts_targets_that_carry_what_the_mlp_adds(tiny_gpt2: LanguageModel) -> None:
    config = transcoder_of(tiny_gpt2, "mlp.hook_in").config
    same, other = (random_architecture(replace(config, target_hook=hook)) for hook in ("mlp.hook_out", "hook_attn_out"))
    assert attribute(tiny_gpt2, same, PROMPT).check().relative_to_row < 1e-5
    with refuses(AttributionError, "hook_attn_out", "hook_mlp_out"):
        attribute(tiny_gpt2, other, PROMPT)


@torch.no_grad()
def test_the_hooks_of_gemma_3_are_those_of_published_transcoders(tmp_path: Path) -> None:
    """Gemma Scope 2 reads the output of one norm and writes the output of another."""
    model = load_family("Gemma3Text", tmp_path)
    tokens = model.tokenize(PROMPT)[None]
    captured = model.capture(tokens, "mlp.hook_in")
    outputs = own_outputs(tmp_path, tokens, ("pre_feedforward_layernorm", "post_feedforward_layernorm"))
    assert torch.equal(captured.inputs[0], outputs["pre_feedforward_layernorm"])
    assert torch.equal(captured.targets[0], outputs["post_feedforward_layernorm"])


def test_a_model_whose_bridge_changes_its_logits_is_refused(
    tiny_gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete_norms = loading._complete_norms

    def change_a_weight(bridge: Any) -> None:
        complete_norms(bridge)
        bridge.ln_final.weight.data *= 1.1

    monkeypatch.setattr(loading, "_complete_norms", change_a_weight)
    with refuses(LanguageModelError, str(tiny_gpt2_folder)):
        load_language_model(str(tiny_gpt2_folder))
