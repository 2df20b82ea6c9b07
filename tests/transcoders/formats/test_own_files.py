"""The files that belong to a transcoder are those that its layout has, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from open_clt.errors import CheckpointError
from open_clt.transcoders.formats.own_files import own_files
from tests.refusals import refuses
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

WRITERS = [
    write_bluelight,
    write_bytedance,
    write_circuit_tracer_layers,
    write_clt_forge,
    write_clt_training,
    write_crosslayer_transcoder,
    write_decode_clt,
    write_gemma_scope_1,
    write_gemma_scope_2,
    write_gemma_scope_2_layers,
    write_llamascope,
    write_llamascope_layers,
    write_saelens,
]


@pytest.mark.parametrize("write", WRITERS)
def test_all_files_of_a_layout_and_no_others_belong_to_it(write: Callable[[Path], object], tmp_path: Path) -> None:
    write(tmp_path)
    written = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/plan.json").write_text("{}")
    (tmp_path / "token.txt").write_text("secret")
    assert own_files(tmp_path).paths == written


def test_a_file_in_the_folder_above_belongs_to_it(tmp_path: Path) -> None:
    write_decode_clt(tmp_path / "tied")
    (tmp_path / "tied/norm_stats.json").rename(tmp_path / "norm_stats.json")
    assert own_files(tmp_path / "tied").paths["norm_stats.json"] == tmp_path.resolve() / "norm_stats.json"


def test_a_directory_without_a_transcoder_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with refuses(CheckpointError, folder):
            own_files(folder)
