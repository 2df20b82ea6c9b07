"""Every layout, and functions that write small random transcoders of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from open_clt.config import JumpReLUConfig
from open_clt.transcoders.formats.circuit_tracer_writer import save_circuit_tracer
from open_clt.transcoders.formats.native import save_transcoder
from tests.random_transcoders import architecture, random_architecture
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


def own(save: Callable[..., object]) -> Callable[[Path], object]:
    """A function that writes a transcoder of OpenCLT."""
    config = architecture("clt", d_model=4, n_features=6, nonlinearity=JumpReLUConfig(initial_threshold=0.5))
    return lambda folder: save(random_architecture(config), folder)


CASES: list[tuple[str, Callable[[Path], object]]] = [
    ("native", own(save_transcoder)),
    ("circuit-tracer", own(save_circuit_tracer)),
    ("circuit-tracer-layers", partial(write_circuit_tracer_layers, thresholds=True, skip=True)),
    ("gemma-scope-1", write_gemma_scope_1),
    ("gemma-scope-2", partial(write_gemma_scope_2, skip=True)),
    ("gemma-scope-2-layers", write_gemma_scope_2_layers),
    ("clt-forge", write_clt_forge),
    ("clt-forge", partial(write_clt_forge, shards=(2, 4))),
    ("bytedance", write_bytedance),
    ("bluelight", write_bluelight),
    ("bluelight", partial(write_bluelight, in_parts=True)),
    ("crosslayer-transcoder", write_crosslayer_transcoder),
    ("llamascope", write_llamascope),
    ("saelens", partial(write_saelens, architecture="jumprelu_skip_transcoder")),
    ("llamascope-layers", write_llamascope_layers),
    ("clt-training", partial(write_clt_training, skip_connection=True, post_encoder_scale=True)),
    ("clt-training", partial(write_clt_training, cross_layer=1, added=True, normalize_io=True)),
    ("decode-clt", write_decode_clt),
]
"""Every layout, and a function that writes a transcoder of it into a folder."""
IDS = [f"{layout}-{i}" for i, (layout, _) in enumerate(CASES)]
"""Names of the cases."""
