"""What is known of a transcoder in the layout of another tool is read from settings and headers only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from open_clt.files import StoredTensor
from open_clt.transcoders.formats.info import transcoder_info
from tests.transcoders.formats.written_by_bluelight import write_bluelight
from tests.transcoders.formats.written_by_bytedance import write_bytedance
from tests.transcoders.formats.written_by_clt_forge import write_clt_forge
from tests.transcoders.formats.written_by_clt_training import write_clt_training
from tests.transcoders.formats.written_by_crosslayer_transcoder import write_crosslayer_transcoder
from tests.transcoders.formats.written_by_decode_clt import write_decode_clt
from tests.transcoders.formats.written_by_llamascope import write_llamascope, write_llamascope_layers
from tests.transcoders.formats.written_by_saelens import write_saelens
from tests.transcoders.formats.written_layouts import D_MODEL, N_FEATURES, N_LAYERS

PAIRS = N_LAYERS * (N_LAYERS + 1) // 2


@pytest.mark.parametrize(
    ("layout", "write", "decoders"),
    [
        ("bluelight", partial(write_bluelight, in_parts=True), PAIRS),
        ("bytedance", write_bytedance, PAIRS),
        ("clt-forge", partial(write_clt_forge, shards=(2, 4)), PAIRS),
        ("clt-training", write_clt_training, PAIRS),
        ("crosslayer-transcoder", write_crosslayer_transcoder, PAIRS),
        ("decode-clt", write_decode_clt, PAIRS),
        ("llamascope", write_llamascope, PAIRS),
        ("llamascope-layers", write_llamascope_layers, N_LAYERS),
        ("saelens", partial(write_saelens, architecture="jumprelu_transcoder"), N_LAYERS),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_weight_is_read(
    tmp_path: Path,
    layout: str,
    write: Callable[[Path], object],
    decoders: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a weight was read")

    write(tmp_path)
    monkeypatch.setattr(StoredTensor, "read", fail)
    monkeypatch.setattr(StoredTensor, "rows", fail)
    info = transcoder_info(tmp_path)
    assert info.layout == layout
    assert info.n_parameters == (N_LAYERS + decoders) * N_FEATURES * D_MODEL
    assert info.bytes_stored == 4 * info.n_parameters
    assert info.dtypes == ("float32",)
