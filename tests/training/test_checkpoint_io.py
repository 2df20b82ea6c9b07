"""A checkpoint to resume from is JSON and safetensors; what is read equals what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from open_clt.errors import CheckpointError
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from tests.refusals import refuses


@pytest.fixture
def state() -> dict[str, Any]:
    return {
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3)}}}],
        "betas": (0.9, 0.999),
        "nothing": None,
        "infinite": float("inf"),
        "flags": [True, False],
        "counts": torch.arange(4),
        "empty": {},
    }


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def test_what_is_read_equals_what_was_written(state: dict[str, Any], tmp_path: Path) -> None:
    io = SafetensorsCheckpointIO()
    io.save_checkpoint(state, tmp_path / "resume")
    io.save_checkpoint(state, tmp_path / "resume")  # a second one takes the place of the first
    assert equal(io.load_checkpoint(tmp_path / "resume"), state)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["resume", "state.json", "tensors.safetensors"]
    io.remove_checkpoint(tmp_path / "resume")
    assert not (tmp_path / "resume").exists()


def test_what_would_need_pickle_is_refused(tmp_path: Path) -> None:
    with refuses(CheckpointError):
        SafetensorsCheckpointIO().save_checkpoint({"thing": object()}, tmp_path / "resume")


def test_a_failed_save_leaves_the_former_checkpoint(state: dict[str, Any], tmp_path: Path) -> None:
    io = SafetensorsCheckpointIO()
    io.save_checkpoint(state, tmp_path / "resume")
    with pytest.raises(CheckpointError):
        io.save_checkpoint({"thing": object()}, tmp_path / "resume")
    assert equal(io.load_checkpoint(tmp_path / "resume"), state)


def test_missing_damaged_and_foreign_checkpoints_are_named(state: dict[str, Any], tmp_path: Path) -> None:
    io = SafetensorsCheckpointIO()
    path = tmp_path / "resume"
    with refuses(CheckpointError, "state.json"):
        io.load_checkpoint(path)
    io.save_checkpoint(state, path)
    content = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**content, "format_version": 99}))
    with refuses(CheckpointError, "99"):
        io.load_checkpoint(path)
    (path / "state.json").write_text("{")
    with refuses(CheckpointError, "state.json"):
        io.load_checkpoint(path)
    (path / "state.json").write_text(json.dumps(content))
    (path / "state.json").write_text(json.dumps({**content, "state": {"tensor": "none"}}))
    with refuses(CheckpointError, "none"):
        io.load_checkpoint(path)
    (path / "state.json").write_text(json.dumps(content))
    (path / "tensors.safetensors").write_bytes(b"12")
    with refuses(CheckpointError, "tensors.safetensors"):
        io.load_checkpoint(path)


def test_a_checkpoint_that_was_moved_aside_when_the_process_was_killed_is_read(
    state: dict[str, Any], tmp_path: Path
) -> None:
    io = SafetensorsCheckpointIO()
    io.save_checkpoint(state, tmp_path / "last")
    (tmp_path / "last").rename(tmp_path / ".old-last")
    assert equal(io.load_checkpoint(tmp_path / "last"), state)
    io.remove_checkpoint(tmp_path / "last")
    assert list(tmp_path.iterdir()) == []


def test_the_parts_of_several_processes_are_named_as_such(state: dict[str, Any], tmp_path: Path) -> None:
    io = SafetensorsCheckpointIO()
    for shard in range(2):
        io.save_checkpoint(state, tmp_path / "last" / f"shard_{shard}_of_2")
    with refuses(CheckpointError, 2):
        io.load_checkpoint(tmp_path / "last")
