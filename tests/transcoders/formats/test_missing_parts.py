"""A transcoder of any layout that lacks a file or a tensor is refused, and the message names the layout or what lacks.

What a transcoder may lack is listed here: parts that are not read, parts that the files hold twice, and the last of
several transcoders of one layer each, since their files do not say how many there are.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from open_clt.errors import CheckpointError
from open_clt.transcoders.formats.load import LAYOUTS, load_transcoder, open_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from tests.random_transcoders import architecture, random_architecture
from tests.refusals import refuses
from tests.transcoders.formats.every_layout import CASES, IDS
from tests.transcoders.formats.written_by_saelens import write_saelens

LAST_LAYER = {
    "circuit-tracer-layers": r"layer_2\.safetensors",
    "gemma-scope-1": r"layer_2/.*\.npz",
    "gemma-scope-2-layers": r"layer_2_.*/params\.safetensors",
    "llamascope-layers": r"layer2_.*/sae_weights\.safetensors",
    "clt-training": r"layers\.2\.mlp/sae\.safetensors",
}
"""Patterns of files of a last layer, which the other files do not mention if each layer has a transcoder of its own."""
UNUSED = {
    "clt-forge": r".*\[(feature_count|layer_mask)\]",
    "bytedance": r"factors.*|W_dec_norm\.safetensors|.*\[W_dec_norm_[0-9]\]",
    "crosslayer-transcoder": r".*\[nonlinearity\.bandwidth\]",
    "clt-training": r".*\[(W_dec|W_skip|b_dec)(s\.0)?\]",
}
"""Patterns of parts without which a transcoder computes the same; tensors stand in brackets after their files."""
OPTIONAL = {"bluelight": r".*\[(decoder\.b|b_dec)\]"}
"""Patterns of parts without which a transcoder is whole too, but computes something else."""


def test_all_layouts_are_tried() -> None:
    assert {key for key, _ in CASES} == {layout.key for layout in LAYOUTS}


def damaged(whole: Path, place: Path) -> Iterator[str]:
    """Copy a transcoder to ``place`` again and again, each time without one part, and give the name of the part."""
    for path in sorted(path for path in whole.rglob("*") if path.is_file()):
        name = path.relative_to(whole).as_posix()
        fresh(whole, place)
        (place / name).unlink()
        yield name
        if path.suffix not in (".safetensors", ".npz"):
            continue
        tensors: Mapping[str, Any] = load_file(path) if path.suffix == ".safetensors" else dict(np.load(path))
        for tensor in tensors:
            fresh(whole, place)
            others = {other: value for other, value in tensors.items() if other != tensor}
            if path.suffix == ".safetensors":
                save_file(others, place / name)
            else:
                np.savez(place / name, **others)
            yield f"{name}[{tensor}]"


def fresh(whole: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place)


def outputs(place: Path) -> torch.Tensor:
    transcoder = load_transcoder(place)
    shape = (20, transcoder.config.n_layers, transcoder.config.d_model)
    with torch.no_grad():
        return transcoder(torch.randn(shape, generator=torch.Generator().manual_seed(1))).reconstruction


def is_named(part: str, layout: str, message: str) -> bool:
    """Whether a message names the layout, the file or its folder, the tensor, or the layer that a file belongs to."""
    file, _, tensor = part.rstrip("]").partition("[")
    names = [layout, tensor or file, file.rpartition("/")[0] or file]
    names += [f"layer {number}" for number in re.findall(r"(?<![a-z0-9])(?:layers?[._]?)([0-9])", file)[:1]]
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message) for name in names)


@pytest.mark.parametrize(("layout", "write"), CASES, ids=IDS)
def test_a_missing_part_is_named(layout: str, write: Callable[[Path], object], tmp_path: Path) -> None:
    whole, place = tmp_path / "whole", tmp_path / "damaged"
    write(whole)
    expected, failures, n_refused = outputs(whole), list[str](), 0
    for part in damaged(whole, place):
        unused, optional = (re.fullmatch(table.get(layout, ""), part) is not None for table in (UNUSED, OPTIONAL))
        try:
            found = outputs(place)
        except CheckpointError as error:
            n_refused += 1
            message = str(error).replace(str(tmp_path), "")
            if unused or optional or not is_named(part, layout, message):
                failures.append(f"without {part}: {message}")
            continue
        fewer = found.shape != expected.shape and re.fullmatch(LAST_LAYER.get(layout, ""), part)
        if not (optional or fewer or (unused and torch.equal(found, expected))):
            failures.append(f"without {part}, a transcoder is read")
    assert not failures, "\n".join(failures)
    assert n_refused > 0


def test_other_directories_are_not_taken_for_a_layout(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    with refuses(CheckpointError, tmp_path, "cfg.json") as raised:
        load_transcoder(tmp_path)
    assert not any(f"layout {layout.key}" in str(raised.value) for layout in LAYOUTS)
    (tmp_path / "config.yaml").write_text("a: 1")
    with refuses(CheckpointError, tmp_path, "circuit-tracer-layers", "crosslayer-transcoder"):
        load_transcoder(tmp_path)


def test_a_file_is_part_of_a_transcoder_or_it_is_named(tmp_path: Path) -> None:
    """Files beside a transcoder, or beside folders of one, do not stand for it."""
    write_saelens(tmp_path / "set")
    save_transcoder(random_architecture(architecture("clt")), tmp_path / "native")
    for folder in ("set", "native", "."):
        notes = tmp_path / folder / "notes.md"
        notes.write_text("mine")
        with refuses(CheckpointError, notes):
            open_transcoder(notes)
    assert open_transcoder(tmp_path / "native" / "transcoder.safetensors").layout.key == "native"
    assert open_transcoder(tmp_path / "native" / "config.json").layout.key == "native"
