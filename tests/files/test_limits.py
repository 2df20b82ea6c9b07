"""Limits: a small file that announces or unpacks to something huge is refused before it takes memory."""

from __future__ import annotations

import bz2
import gzip
import json
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from open_clt import files
from open_clt.errors import CheckpointError
from open_clt.features.feature_files import INDEX, FeatureFiles, write_feature_files
from open_clt.files import limits
from open_clt.graphs.formats.networkx import read_graphml
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.make import make_transcoder
from open_clt.transcoders.transcoder import Transcoder
from tests.faults.artefacts import save_in_circuit_tracers_layout
from tests.features.test_feature_files import RECORDS
from tests.random_transcoders import architecture, random_architecture
from tests.refusals import refuses

MEGABYTE = 2**20
READERS = {".json": files.read_json, ".csv": files.read_rows, ".graphml": read_graphml}
PACKED = {"gzip": gzip.compress, "bz2": bz2.compress, "zlib": zlib.compress}


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Check that Python takes at most 24 megabytes more during a test; this makes Python slow."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 * MEGABYTE


@pytest.mark.parametrize("packing", PACKED)
def test_packed_data_is_unpacked_up_to_a_limit(packing: str) -> None:
    content = bytes(1000)
    packed = PACKED[packing](content)
    assert files.unpacked(packed, packing, "x", 1000) == content
    with refuses(CheckpointError, "x", 999):
        files.unpacked(packed, packing, "x", 999)
    for damaged in (packed[:-9], packed[:-1], b"x" * 40):
        with refuses(CheckpointError, "x"):
            files.unpacked(damaged, packing, "x", 2000)


@pytest.mark.usefixtures("little_memory")
def test_a_json_file_is_unpacked_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "bomb.json.gz").write_bytes(gzip.compress(bytes(16 * MEGABYTE)))
    tracemalloc.reset_peak()
    with refuses(CheckpointError, tmp_path / "bomb.json.gz"):
        files.read_unpacked(tmp_path / "bomb.json.gz", limit=MEGABYTE)
    assert tracemalloc.get_traced_memory()[1] < 8 * MEGABYTE


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lists.json", f"[{'[],' * 100}0]"),
        ("objects.json", f"[{'{},' * 100}0]"),
        ("numbers.json", f"[{'0,' * 100}0]"),
        ("rows.csv", "a\n" + "1\n" * 100),
        ("columns.csv", "a\n" + "," * 100),
        ("elements.graphml", f"<graphml>{'<a/>' * 100}</graphml>"),
    ],
)
def test_a_file_with_too_many_values_is_refused(
    name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text(content)
    monkeypatch.setattr(limits, "MOST_VALUES", 99)
    read: Callable[[Path], object] = READERS[Path(name).suffix]
    with refuses(CheckpointError, tmp_path / name, 99):
        read(tmp_path / name)


@pytest.mark.parametrize("row", ["1", "1,2,3"])
def test_each_row_of_a_table_has_the_length_of_the_header(row: str, tmp_path: Path) -> None:
    """Otherwise short rows under a long header would take memory for every column."""
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n\n3,4\n")
    assert files.read_rows(path) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    path.write_text(f"a,b\n1,2\n{row}\n")
    with refuses(CheckpointError, path):
        files.read_rows(path)
    path.write_text("")
    assert files.read_rows(path) == []


@pytest.mark.usefixtures("little_memory")
def test_a_feature_is_unpacked_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST_FEATURE", MEGABYTE)
    folder = write_feature_files(RECORDS, tmp_path, n_layers=1 + max(r.feature.layer for r in RECORDS), n_features=5)
    packed = zlib.compress(b" " * (8 * MEGABYTE))
    stored = struct.pack("<I", len(packed)) + packed
    (folder / "layer_0.bin").write_bytes(stored)
    index = json.loads(gzip.decompress((folder / INDEX).read_bytes()))
    index[0]["offsets"] = [0, len(stored)]
    (folder / INDEX).write_bytes(gzip.compress(json.dumps(index).encode()))
    tracemalloc.reset_peak()
    with refuses(CheckpointError, Feature(0, 0), folder / "layer_0.bin"):
        FeatureFiles(tmp_path).record(Feature(0, 0))
    assert tracemalloc.get_traced_memory()[1] < 4 * MEGABYTE


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("length", [2**63, limits.LARGEST_HEADER + 1, 1000])
def test_a_header_that_its_file_cannot_hold_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with refuses(CheckpointError, path):
        files.read_tensors(path)


def laughs(levels: int) -> str:
    """YAML whose aliases repeat one word 10 ** levels times."""
    lines = ["a0: &a0 ha"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels + 1)]
    return "\n".join(lines)


@pytest.mark.parametrize("text", [laughs(9), "&a [*a]", "a: &a {b: *a}", "[" * 900, "9" * 10_000, "- " * 600_000])
def test_yaml_that_grows_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with refuses(CheckpointError, path):
        files.read_yaml(path)
    save_in_circuit_tracers_layout(tmp_path / "saved", 1)
    path.replace(tmp_path / "saved" / "config.yaml")
    with refuses(CheckpointError, tmp_path / "saved" / "config.yaml"):
        load_transcoder(tmp_path / "saved")


def test_yaml_with_few_aliases_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: &a {b: 1}\nc: [*a, *a]\n")
    assert files.read_yaml(tmp_path / "x.yaml") == {"a": {"b": 1}, "c": [{"b": 1}, {"b": 1}]}
    (tmp_path / "x.yaml").write_text("")
    assert files.read_yaml(tmp_path / "x.yaml") is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_xml_with_entities_is_refused(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "x.graphml"
    xml = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE a [<!ENTITY b "bb">]><graphml><graph/></graphml>'
    path.write_bytes(xml.encode(encoding))
    with refuses(CheckpointError, path) as raised:
        read_graphml(path)
    assert "document type" in str(raised.value)


def built_without_values(*arguments: Any, **keywords: Any) -> Transcoder:
    """Build a transcoder, and check that it takes no memory for weights."""
    assert torch.empty(()).device.type == "meta"
    return make_transcoder(*arguments, **keywords)


@pytest.mark.parametrize("changed", [{"n_features": 2**33}, {"n_layers": 10**9}, {"skip": True}, {"reach": 1}])
def test_a_transcoder_whose_files_do_not_hold_its_tensors_takes_no_memory(
    changed: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_transcoder(random_architecture(architecture("clt")), tmp_path) / "config.json"
    config = json.loads(path.read_text())
    config["transcoder"] |= changed
    path.write_text(json.dumps(config))
    monkeypatch.setattr("open_clt.transcoders.formats.native.make_transcoder", built_without_values)
    with refuses(CheckpointError, tmp_path):
        load_transcoder(tmp_path)
    (tmp_path / "transcoder.safetensors").write_bytes(save({}))
    with refuses(CheckpointError, tmp_path, "'W_enc'"):
        load_transcoder(tmp_path)


@pytest.mark.parametrize("name", ["W_enc_1", "W_dec_0"])
def test_files_of_circuit_tracer_that_do_not_fit_together_take_no_memory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_in_circuit_tracers_layout(tmp_path, 1)
    monkeypatch.setattr("open_clt.transcoders.formats.circuit_tracer.CrossLayerTranscoder", built_without_values)
    (tmp_path / f"{name}.safetensors").write_bytes(save({}))
    with refuses(CheckpointError, tmp_path, f"'{name}'"):
        load_transcoder(tmp_path)


def test_the_page_on_security_states_the_limits() -> None:
    page = (Path(__file__).parents[2] / "SECURITY.md").read_text(encoding="utf-8")
    sizes = {
        2**30: "1 GiB",
        2**20: "1 MiB",
        2**26: "64 MiB",
        2**24: "16 MiB",
        2**33: "8 GiB",
        10_000: "10,000",
        20_000: "20,000",
        50_000_000: "50,000,000",
    }
    for name, limit in vars(limits).items():
        if name.isupper() and not name.startswith("_"):
            assert sizes[limit] in page, name
