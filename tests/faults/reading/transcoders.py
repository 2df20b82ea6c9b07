"""Readers of transcoders, in each layout of their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from open_clt.config import BatchTopKConfig, CrossLayerConfig, JumpReLUConfig, MoltConfig, TopKConfig
from open_clt.transcoders.formats.circuit_tracer_writer import save_circuit_tracer
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.make import make_transcoder
from open_clt.transcoders.stored_weights import tensors_in_memory
from open_clt.transcoders.transcoder import Transcoder
from tests.faults.reading.reader import Reader
from tests.transcoders.formats.written_by_bluelight import write_bluelight
from tests.transcoders.formats.written_by_bytedance import write_bytedance
from tests.transcoders.formats.written_by_clt_forge import write_clt_forge
from tests.transcoders.formats.written_by_clt_training import write_clt_training
from tests.transcoders.formats.written_by_crosslayer_transcoder import write_crosslayer_transcoder
from tests.transcoders.formats.written_by_decode_clt import write_decode_clt
from tests.transcoders.formats.written_by_gemma_scope import write_gemma_scope_1, write_gemma_scope_2_layers
from tests.transcoders.formats.written_by_llamascope import write_llamascope, write_llamascope_layers
from tests.transcoders.formats.written_by_saelens import write_saelens
from tests.transcoders.formats.written_layouts import write_circuit_tracer_layers, write_gemma_scope_2


def _transcoder_config(**settings: Any) -> CrossLayerConfig:
    shape: dict[str, Any] = {"n_layers": 2, "d_model": 4, "n_features": 6}
    return CrossLayerConfig(**shape, **settings)


def _read_stored_transcoder(folder: Path) -> Iterable[Tensor]:
    """Use a transcoder whose encoders and decoders stay in their files."""
    return _use_transcoder(load_transcoder(folder, memory_limit=1))


def _read_transcoder(folder: Path) -> Iterable[Tensor]:
    return _use_transcoder(load_transcoder(folder))


def _use_transcoder(transcoder: Transcoder) -> Iterable[Tensor]:
    stored = () if transcoder.stored is None else transcoder.stored.tables
    tensors = [*tensors_in_memory(transcoder).values(), *(table.rows(torch.arange(len(table))) for table in stored)]
    numbers = [tensor.detach().float() for tensor in tensors]
    # Products of large finite weights may overflow, which is no fault of a reader.
    if not any(1e6 < float(tensor.abs().max()) < torch.inf for tensor in numbers if tensor.numel()):
        inputs = torch.linspace(-1, 1, 3 * transcoder.config.n_layers * transcoder.config.d_model)
        transcoder(inputs.view(3, transcoder.config.n_layers, transcoder.config.d_model))
    return numbers


def _native(**settings: Any) -> Callable[[Path], object]:
    return lambda folder: save_transcoder(make_transcoder(_transcoder_config(**settings), seed=1), folder)


_MOLT = MoltConfig(n_layers=2, d_model=4, ranks=(2,), counts=(6,), nonlinearity=TopKConfig(k=3))


TRANSCODERS: dict[str, Reader] = {
    "transcoder": Reader(_native(nonlinearity=JumpReLUConfig()), _read_transcoder, "transcoders.formats.native"),
    "transcoder with k": Reader(
        _native(nonlinearity=BatchTopKConfig(k=2), skip=True, reach=1), _read_transcoder, "transcoders.formats.native"
    ),
    "transcoder of some layers": Reader(
        _native(nonlinearity=TopKConfig(k=2), layers=(1, 3)), _read_transcoder, "transcoders.formats.native"
    ),
    "MOLT": Reader(
        lambda folder: save_transcoder(make_transcoder(_MOLT, seed=1), folder),
        _read_transcoder,
        "transcoders.formats.native",
    ),
    "transcoder of circuit-tracer": Reader(
        lambda folder: save_circuit_tracer(
            make_transcoder(_transcoder_config(nonlinearity=JumpReLUConfig()), seed=1), folder
        ),
        _read_transcoder,
        "transcoders.formats.circuit_tracer",
    ),
    "transcoders of circuit-tracer per layer": Reader(
        lambda folder: write_circuit_tracer_layers(folder, thresholds=True, skip=True),
        _read_transcoder,
        "transcoders.formats.circuit_tracer_layers",
    ),
    "transcoder of Gemma Scope 2": Reader(
        lambda folder: write_gemma_scope_2(folder, skip=True), _read_transcoder, "transcoders.formats.gemma_scope_2"
    ),
    "transcoders of Gemma Scope 1": Reader(write_gemma_scope_1, _read_transcoder, "transcoders.formats.gemma_scope_1"),
    "transcoders of Gemma Scope 2 per layer": Reader(
        lambda folder: write_gemma_scope_2_layers(folder, skip=True),
        _read_transcoder,
        "transcoders.formats.gemma_scope_2_layers",
    ),
    "transcoder of BluelightAI": Reader(write_bluelight, _read_transcoder, "transcoders.formats.bluelight"),
    "transcoder of BluelightAI in parts": Reader(
        lambda folder: write_bluelight(folder, in_parts=True, version=2, decoder_layout="output_layer"),
        _read_transcoder,
        "transcoders.formats.bluelight",
    ),
    "transcoder of ByteDance": Reader(write_bytedance, _read_transcoder, "transcoders.formats.bytedance"),
    "transcoder of CLT-Forge": Reader(write_clt_forge, _read_transcoder, "transcoders.formats.clt_forge"),
    "transcoder of CLT-Forge in shards": Reader(
        lambda folder: write_clt_forge(folder, shards=(2, 4)), _read_transcoder, "transcoders.formats.clt_forge"
    ),
    "transcoder of clt-training": Reader(
        lambda folder: write_clt_training(
            folder,
            skip_connection=True,
            normalize_io=True,
            post_encoder_scale=True,
            divide_cross_layer=True,
            added=True,
        ),
        _read_transcoder,
        "transcoders.formats.clt_training",
    ),
    "transcoder of crosslayer-transcoder": Reader(
        write_crosslayer_transcoder, _read_transcoder, "transcoders.formats.crosslayer_transcoder"
    ),
    "transcoder with scales that stays in its files": Reader(
        write_crosslayer_transcoder, _read_stored_transcoder, "transcoders.formats.crosslayer_transcoder"
    ),
    "transcoders of Llama Scope per layer": Reader(
        write_llamascope_layers, _read_transcoder, "transcoders.formats.llamascope_layers"
    ),
    "transcoder of Llama Scope": Reader(write_llamascope, _read_transcoder, "transcoders.formats.llamascope"),
    "transcoders of SAELens": Reader(write_saelens, _read_transcoder, "transcoders.formats.saelens"),
    "transcoder of decode-clt": Reader(
        lambda folder: write_decode_clt(folder, scale=True, skip=True, offset=0.0, decoder_tying="per_target"),
        _read_transcoder,
        "transcoders.formats.decode_clt",
    ),
    "transcoder that stays in its files": Reader(
        _native(nonlinearity=BatchTopKConfig(k=2)), _read_stored_transcoder, "transcoders.formats.native"
    ),
}
