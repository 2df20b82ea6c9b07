"""What is known of a transcoder in the layout of another tool is read from settings and headers only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from open_clt.config import CrossLayerConfig, FixedJumpReLUConfig, ReLUConfig
from open_clt.files import StoredTensor
from open_clt.transcoders.formats.circuit_tracer_writer import save_circuit_tracer
from open_clt.transcoders.formats.info import transcoder_info
from open_clt.transcoders.formats.load import LAYOUTS, load_transcoder
from tests.random_transcoders import random_architecture
from tests.transcoders.formats.written_by_bluelight import write_bluelight
from tests.transcoders.formats.written_by_bytedance import write_bytedance
from tests.transcoders.formats.written_by_clt_forge import write_clt_forge
from tests.transcoders.formats.written_by_clt_training import write_clt_training
from tests.transcoders.formats.written_by_crosslayer_transcoder import write_crosslayer_transcoder
from tests.transcoders.formats.written_by_decode_clt import write_decode_clt
from tests.transcoders.formats.written_by_gemma_scope import write_gemma_scope_1, write_gemma_scope_2_layers
from tests.transcoders.formats.written_by_llamascope import write_llamascope, write_llamascope_layers
from tests.transcoders.formats.written_by_saelens import write_saelens
from tests.transcoders.formats.written_layouts import (
    N_FEATURES,
    N_LAYERS,
    write_circuit_tracer_layers,
    write_gemma_scope_2,
)


def write_circuit_tracer(folder: Path) -> None:
    config = CrossLayerConfig(n_layers=3, n_features=6, d_model=4, nonlinearity=ReLUConfig())
    save_circuit_tracer(random_architecture(config), folder)


WRITERS: dict[str, Callable[[Path], object]] = {
    "bluelight": partial(write_bluelight, in_parts=True),
    "bytedance": write_bytedance,
    "circuit-tracer": write_circuit_tracer,
    "circuit-tracer-layers": partial(write_circuit_tracer_layers, skip=True),
    "clt-forge": partial(write_clt_forge, shards=(2, 4)),
    "clt-training": write_clt_training,
    "crosslayer-transcoder": write_crosslayer_transcoder,
    "decode-clt": write_decode_clt,
    "gemma-scope-1": write_gemma_scope_1,
    "gemma-scope-2": partial(write_gemma_scope_2, skip=True),
    "gemma-scope-2-layers": partial(write_gemma_scope_2_layers, skip=True),
    "llamascope": write_llamascope,
    "llamascope-layers": write_llamascope_layers,
    "saelens": partial(write_saelens, architecture="jumprelu_transcoder"),
}


def test_every_layout_of_another_tool_is_written() -> None:
    assert {layout.key for layout in LAYOUTS} - WRITERS.keys() == {"native"}


@pytest.mark.parametrize("layout", WRITERS)
def test_no_weight_is_read(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS[layout](tmp_path)
    loaded = load_transcoder(tmp_path)
    is_fixed = isinstance(loaded.config.nonlinearity, FixedJumpReLUConfig)  # the signs of thresholds are not known yet
    weights = [path for path in tmp_path.rglob("*") if path.suffix in (".safetensors", ".npz")]

    def fail(*_: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(StoredTensor, "read", fail)
    monkeypatch.setattr(StoredTensor, "rows", fail)
    info = transcoder_info(tmp_path)
    assert info.layout == layout
    assert info.n_parameters == loaded.n_parameters + is_fixed * N_LAYERS * N_FEATURES
    assert info.bytes_on_disk == sum(path.stat().st_size for path in weights)
    assert info.dtypes == ("float32",)
