"""A transcoder in CLT-Forge's layout computes what that package computes with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from open_clt.config import CrossLayerConfig
from open_clt.errors import CheckpointError
from open_clt.transcoders.formats.load import load_transcoder
from tests.refusals import refuses
from tests.transcoders.formats.written_by_clt_forge import (
    D_MODEL,
    N_LAYERS,
    reconstructed_by_clt_forge,
    write_clt_forge,
)


@pytest.mark.parametrize("memory_limit", [None, 1])
@pytest.mark.parametrize(("cross", "shards"), [(True, None), (False, None), (True, (1, 3, 2)), (False, (6,))])
def test_it_computes_what_the_equations_say(
    tmp_path: Path, cross: bool, shards: tuple[int, ...] | None, memory_limit: int | None
) -> None:
    tensors = write_clt_forge(tmp_path, shards=shards, cross_layer_decoders=cross)
    transcoder = load_transcoder(tmp_path, memory_limit=memory_limit)
    inputs = torch.randn(20, N_LAYERS, D_MODEL, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = transcoder(inputs).reconstruction
    torch.testing.assert_close(found, reconstructed_by_clt_forge(tensors, inputs), atol=1e-5, rtol=1e-5)
    assert isinstance(transcoder.config, CrossLayerConfig)
    assert transcoder.config.reach == (None if cross else 1)
    assert transcoder.config.input_hook == "ln2.hook_normalized"
    assert transcoder.config.language_model == "gpt2"


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"activation_fn": "topk"}, "'topk'"), ({"cross_layer_decoders": 2}, "cross_layer_decoders")],
)
def test_settings_that_are_not_read_are_refused(tmp_path: Path, settings: dict[str, object], named: str) -> None:
    write_clt_forge(tmp_path, **settings)
    with refuses(CheckpointError, tmp_path / "clt_cfg.json", named):
        load_transcoder(tmp_path)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    write_clt_forge(tmp_path, shards=(1, 2, 3))
    (tmp_path / "rank1_clt_weights.safetensors").unlink()
    with refuses(CheckpointError, tmp_path, "rank1_clt_weights.safetensors"):
        load_transcoder(tmp_path)


def test_shards_of_different_transcoders_are_refused(tmp_path: Path) -> None:
    write_clt_forge(tmp_path, shards=(3, 3))
    path = tmp_path / "rank1_clt_weights.safetensors"
    tensors = load_file(path)
    tensors["b_dec"] += 1
    save_file(tensors, path)
    with refuses(CheckpointError, "b_dec", path):
        load_transcoder(tmp_path)
