"""Checkpoints are JSON and safetensors, and reading one gives the state that was written."""

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


def equal(value: Any, expected: Any) -> bool:
    """Whether two nested values are equal, including the types of sequences and tensors and the order of keys."""
    if isinstance(value, torch.Tensor):
        return value.dtype == expected.dtype and torch.equal(value, expected)
    if isinstance(value, dict):
        return list(value) == list(expected) and all(equal(value[key], expected[key]) for key in value)
    if isinstance(value, list | tuple):
        return type(value) is type(expected) and all(equal(a, b) for a, b in zip(value, expected, strict=True))
    return value == expected


def test_reading_a_checkpoint_gives_the_state_that_was_written(state: dict[str, Any], tmp_path: Path) -> None:
    io = SafetensorsCheckpointIO()
    io.save_checkpoint(state, tmp_path / "resume")
    io.save_checkpoint(state, tmp_path / "resume")  # the second checkpoint replaces the first
    assert equal(io.load_checkpoint(tmp_path / "resume"), state)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["resume", "state.json", "tensors.safetensors"]
    io.remove_checkpoint(tmp_path / "resume")
    assert not (tmp_path / "resume").exists()


def test_objects_that_need_pickle_are_refused(tmp_path: Path) -> None:
    with refuses(CheckpointError, "object"):
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


def test_a_sharded_checkpoint_is_refused_by_its_number_of_shards(state: dict[str, Any], tmp_path: Path) -> None:
    io = SafetensorsCheckpointIO()
    for shard in range(2):
        io.save_checkpoint(state, tmp_path / "last" / f"shard_{shard}_of_2")
    with refuses(CheckpointError, 2):
        io.load_checkpoint(tmp_path / "last")


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_a_number_of_the_optimizer_that_is_not_finite_is_refused(
    value: float, state: dict[str, Any], tmp_path: Path
) -> None:
    state["optimizer_states"][0]["state"][0]["exp_avg"][1, 2] = value
    SafetensorsCheckpointIO().save_checkpoint(state, tmp_path / "last")
    with refuses(CheckpointError, tmp_path / "last", "optimizer_states.0.state.0.exp_avg", "1, 2", value):
        SafetensorsCheckpointIO().load_checkpoint(tmp_path / "last")
