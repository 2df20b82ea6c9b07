"""docs/model_families.md says of every family what is measured on a tiny random model of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from open_clt.attribution.attribute import attribute
from open_clt.errors import AttributionError, LanguageModelError
from open_clt.language import loading
from open_clt.language.language_model import LanguageModel, load_language_model
from tests.measured_families import Row, measured, read_table, transcoder_of
from tests.model_families import FAMILIES, load_family
from tests.refusals import refuses

QUICK = ("GPTJ", "Granite", "Helium")
"""Families of the default tests: parallel blocks, a refused graph, and a refused model."""


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
    assert model.input_hooks == ("hook_resid_pre",)
    with refuses(LanguageModelError, "hook_resid_mid", "hook_resid_pre"):
        attribute(model, transcoder_of(model, "hook_resid_mid"), "The cat")
    assert attribute(model, transcoder_of(model, "hook_resid_pre"), "The cat").n_nodes


def test_attribution_refuses_hooks_that_are_not_the_input_of_an_mlp(tiny_gpt2: LanguageModel) -> None:
    model = tiny_gpt2
    with refuses(LanguageModelError, "hook_resid_pre", "hook_resid_mid", "ln2.hook_normalized"):
        attribute(model, transcoder_of(model, "hook_resid_pre"), "The cat")
    with refuses(AttributionError, "hook_attn_out"):
        attribute(model, transcoder_of(model, "hook_attn_out"), "The cat")


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
