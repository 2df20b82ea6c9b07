"""A transcoder in ByteDance's layout computes what its equations say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from open_clt.config import CrossLayerConfig
from open_clt.errors import CheckpointError
from open_clt.transcoders.formats.info import transcoder_info
from open_clt.transcoders.formats.load import load_transcoder
from tests.refusals import refuses
from tests.transcoders.formats.written_by_bytedance import (
    D_MODEL,
    N_FEATURES,
    N_LAYERS,
    of_bytedance,
    write_bytedance,
)
from tests.transcoders.formats.written_layouts import write_gemma_scope_2


@pytest.mark.parametrize("memory_limit", [None, 1], ids=["in memory", "in files"])
def test_it_computes_what_the_equations_say(tmp_path: Path, memory_limit: int | None) -> None:
    tensors = write_bytedance(tmp_path)
    transcoder = load_transcoder(tmp_path, memory_limit=memory_limit)
    inputs = torch.randn(20, N_LAYERS, D_MODEL, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = transcoder(inputs).reconstruction
    torch.testing.assert_close(found, of_bytedance(tensors, inputs), atol=1e-5, rtol=1e-5)
    assert isinstance(transcoder.config, CrossLayerConfig)
    assert (transcoder.config.input_hook, transcoder.config.target_hook) == ("mlp.hook_in", "mlp.hook_out")


def test_the_norms_of_the_file_rank_features(tmp_path: Path) -> None:
    tensors = write_bytedance(tmp_path)
    norms = torch.rand(N_LAYERS, N_FEATURES, generator=torch.Generator().manual_seed(2)) + 0.1
    save_file({"W_dec_norm": norms}, tmp_path / "W_dec_norm.safetensors")
    tensors |= {f"W_dec_norm_{layer}": norms[layer] for layer in range(N_LAYERS)}
    inputs = torch.randn(20, N_LAYERS, D_MODEL, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = load_transcoder(tmp_path)(inputs).reconstruction
    torch.testing.assert_close(found, of_bytedance(tensors, inputs), atol=1e-5, rtol=1e-5)


def test_the_norms_may_be_in_the_files_of_the_decoders(tmp_path: Path) -> None:
    tensors = write_bytedance(tmp_path)
    (tmp_path / "W_dec_norm.safetensors").unlink()
    inputs = torch.randn(20, N_LAYERS, D_MODEL, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = load_transcoder(tmp_path)(inputs).reconstruction
    torch.testing.assert_close(found, of_bytedance(tensors, inputs), atol=1e-5, rtol=1e-5)
    path = tmp_path / "W_dec_1.safetensors"
    save_file({"W_dec_1": load_file(path)["W_dec_1"]}, path)
    with refuses(CheckpointError, tmp_path, "W_dec_norm.safetensors", "W_dec_norm_1"):
        load_transcoder(tmp_path)


def test_hooks_that_no_file_states_are_called_assumed(tmp_path: Path) -> None:
    write_bytedance(tmp_path / "bytedance")
    write_gemma_scope_2(tmp_path / "gemma")
    assert not transcoder_info(tmp_path / "bytedance").states_hooks
    assert transcoder_info(tmp_path / "gemma").states_hooks
    rows = dict(transcoder_info(tmp_path / "bytedance").rows())
    assert all("assumed" in rows[name] for name in ("reads", "writes"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"k": "2"}, "config.json"), ({"k": 0}, 0), ({"d_feature": 7}, "W_dec_0"), ({"d_feature": None}, "d_feature")],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, changes: dict[str, Any], named: object) -> None:
    write_bytedance(tmp_path, **changes)
    with refuses(CheckpointError, named):
        load_transcoder(tmp_path)


@pytest.mark.parametrize("name", ["W_enc_1.safetensors", "W_dec_2.safetensors"])
def test_a_missing_layer_is_refused(tmp_path: Path, name: str) -> None:
    write_bytedance(tmp_path)
    (tmp_path / name).unlink()
    with refuses(CheckpointError, tmp_path / name):
        load_transcoder(tmp_path)
