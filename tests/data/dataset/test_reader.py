"""A dataset is a store of activations, and what is damaged is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from open_clt.data.dataset import read
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.harvest import ActivationStore
from open_clt.errors import CheckpointError
from tests.data.dataset.small_dataset import write
from tests.refusals import refuses


@pytest.fixture
def dataset(tmp_path: Path) -> ActivationDataset:
    return ActivationDataset(write(tmp_path / "dataset", tokens=65))


def test_a_dataset_is_a_store_of_activations(dataset: ActivationDataset) -> None:
    assert isinstance(dataset, ActivationStore)
    assert dataset.n_tokens == len(dataset) == 65
    assert sum(batch.size for batch in dataset) == 65
    assert "65 tokens" in repr(dataset)


def change(path: Path, name: str, tensor: torch.Tensor | None) -> None:
    """Replace a tensor of a shard, or leave it out."""
    tensors = {key: value.clone() for key, value in load_file(path).items() if key != name}
    save_file(tensors if tensor is None else {**tensors, name: tensor}, path)


@pytest.mark.parametrize("name", ["inputs", "targets", "tokens", "positions"])
def test_a_damaged_tensor_is_named_when_its_shard_is_first_read(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "dataset") / "shard-00002.safetensors"
    whole = load_file(path)[name].clone()
    wrong = whole.clone()
    wrong[4] = torch.nan if wrong.is_floating_point() else -3
    for tensor in (None, whole[:-1].clone(), whole.double(), wrong):
        change(path, name, tensor)
        dataset = ActivationDataset(tmp_path / "dataset")
        with refuses(CheckpointError, path, repr(name)):
            list(read(path.parent, 5))
        with refuses(CheckpointError, path, repr(name)):
            list(dataset)
        with refuses(CheckpointError, path):
            dataset.verify()


def test_scales_of_int8_must_be_numbers_that_do_not_overflow(tmp_path: Path) -> None:
    path = write(tmp_path / "dataset", dtype="int8") / "shard-00000.safetensors"
    whole = load_file(path)["inputs_scale"].clone()
    for number in (-1.0, torch.inf, 3e38):
        wrong = whole.clone()
        wrong[6, 1] = number
        change(path, "inputs_scale", wrong)
        with refuses(CheckpointError, path, "'inputs_scale'", "row 6"):
            list(ActivationDataset(tmp_path / "dataset"))


def test_a_missing_or_truncated_shard_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "dataset") / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with refuses(CheckpointError, path):
        list(ActivationDataset(tmp_path / "dataset"))
    path.unlink()
    with refuses(CheckpointError, path):
        list(read(tmp_path / "dataset", 8))


def test_a_changed_bit_is_found_by_comparing_hashes(tmp_path: Path) -> None:
    path = write(tmp_path / "dataset") / "shard-00003.safetensors"
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)
    dataset = ActivationDataset(tmp_path / "dataset")
    list(dataset)  # the number is another one, but a legal one
    with refuses(CheckpointError, path):
        dataset.verify()


@pytest.mark.parametrize(
    "change_to",
    [
        {"tokens": 71},
        {"format_version": 2},
        {"shards": [{"file": "../secret", "tokens": 70, "sha256": "0" * 64}]},
        {"shards": [{"file": "a", "tokens": 35, "sha256": "0" * 64}] * 2},
        {"shards": [{"file": "a", "tokens": 70, "sha256": "zz"}]},
        {"statistics_sha256": None},
        {"harvested": {}},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_manifest_that_cannot_be_right_is_one_sentence(change_to: dict[str, object], tmp_path: Path) -> None:
    path = write(tmp_path / "dataset") / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change_to}))
    with refuses(CheckpointError, tmp_path / "dataset"):
        ActivationDataset(tmp_path / "dataset")


def test_a_directory_without_a_dataset_is_refused(tmp_path: Path) -> None:
    with refuses(CheckpointError, tmp_path / "manifest.json"):
        ActivationDataset(tmp_path)
