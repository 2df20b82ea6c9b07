"""A transcoder in the layout of decode-clt computes what that package computes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from open_clt.errors import CheckpointError
from open_clt.transcoders.formats.load import load_transcoder
from tests.hub.stand_in import serving
from tests.refusals import refuses
from tests.transcoders.formats.written_by_decode_clt import of_decode_clt, write_decode_clt
from tests.transcoders.formats.written_layouts import random_inputs


@pytest.mark.parametrize("memory_limit", [None, 1], ids=["in memory", "in files"])
@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {}),
        ({"normalization_method": "none", "activation_fn": "relu"}, {}),
        ({"decoder_tying": "per_source"}, {"scale": True, "skip": True}),
        ({"decoder_tying": "per_target", "normalization_method": "sqrt_d_model"}, {"scale": True, "offset": 0.0}),
        ({"decoder_tying": "per_target"}, {"skip": True}),
    ],
    ids=str,
)
def test_it_computes_what_the_equations_say(
    tmp_path: Path, settings: dict[str, Any], options: dict[str, Any], memory_limit: int | None
) -> None:
    tensors = write_decode_clt(tmp_path, **options, **settings)
    transcoder, inputs = load_transcoder(tmp_path, memory_limit=memory_limit), random_inputs()
    with torch.no_grad():
        found = transcoder(inputs).reconstruction
    torch.testing.assert_close(found, of_decode_clt(tensors, inputs, **settings), atol=1e-4, rtol=1e-4)
    assert transcoder.config.language_model == "gpt2"


@pytest.mark.parametrize(
    ("templates", "hook"),
    [
        ({"mlp_input_template": "transformer.h.{}.ln_2.input"}, "hook_resid_mid"),
        ({"mlp_input_template": "transformer.h.{}.mlp.c_fc"}, "mlp.hook_in"),
        ({"mlp_input_template": "model.layers.{}.mlp.input"}, "mlp.hook_in"),
        ({"mlp_input_template": None, "tl_input_template": "blocks.{}.hook_resid_pre"}, "hook_resid_pre"),
    ],
    ids=str,
)
def test_the_hook_of_the_inputs_is_the_stated_one(tmp_path: Path, templates: dict[str, Any], hook: str) -> None:
    write_decode_clt(tmp_path, **templates)
    assert load_transcoder(tmp_path).config.input_hook == hook


@pytest.mark.parametrize(
    ("settings", "options", "named"),
    [
        ({"activation_fn": "batchtopk"}, {}, "'batchtopk'"),
        ({"decoder_tying": "per_pair"}, {}, "'per_pair'"),
        ({"normalization_method": "batch"}, {}, "'batch'"),
        ({"mlp_input_template": "transformer.h.{}.attn.input"}, {}, "tl_input_template"),
        ({"mlp_output_template": None}, {}, "tl_output_template"),
        ({"decoder_tying": "per_target"}, {"offset": 0.5}, "decoder_module.feature_offset.0"),
        ({"decoder_tying": "none"}, {"skip": True}, "skip"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_expressed_are_refused(
    tmp_path: Path, settings: dict[str, Any], options: dict[str, Any], named: str
) -> None:
    write_decode_clt(tmp_path, **options, **settings)
    with refuses(CheckpointError, tmp_path, named):
        load_transcoder(tmp_path)


def test_statistics_may_lie_in_the_folder_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_decode_clt(tmp_path / "repository" / "tied")
    inputs = torch.randn(5, *load_transcoder(tmp_path / "repository" / "tied").b_dec.shape)
    expected = load_transcoder(tmp_path / "repository" / "tied")(inputs).reconstruction
    (tmp_path / "repository" / "tied" / "norm_stats.json").rename(tmp_path / "repository" / "norm_stats.json")
    found = load_transcoder(tmp_path / "repository" / "tied")(inputs).reconstruction
    with serving({"org/name": tmp_path / "repository"}, monkeypatch, tmp_path / "cache"):
        on_hub = load_transcoder("org/name/tied")(inputs).reconstruction
    assert torch.equal(found, expected)
    assert torch.equal(on_hub, expected)


def test_statistics_that_are_missing_are_refused(tmp_path: Path) -> None:
    write_decode_clt(tmp_path)
    (tmp_path / "norm_stats.json").unlink()
    with refuses(CheckpointError, tmp_path, "norm_stats.json"):
        load_transcoder(tmp_path)
