"""Running statistics equal those of a computation in two passes, and survive their file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.dataset.statistics import Moments, merged, moments_of, no_tokens
from open_clt.errors import CheckpointError
from tests.data.dataset.small_dataset import write
from tests.refusals import refuses


def assert_close(moments: Moments, numbers: torch.Tensor, tolerance: float = 1e-12) -> None:
    """Compare with mean and variance of two passes over all numbers; the tolerance is relative."""
    mean = numbers.mean(0)
    variance = (numbers - mean).square().mean(0)
    assert moments.tokens == len(numbers)
    torch.testing.assert_close(moments.mean, mean, rtol=tolerance, atol=0)
    torch.testing.assert_close(moments.variance, variance, rtol=tolerance, atol=0)


@pytest.mark.parametrize(("offset", "tolerance"), [(0.1, 1e-12), (100, 1e-12), (1e5, 1e-10)])
@pytest.mark.parametrize("sizes", [[1] * 40, [1, 1500, 0, 7, 300], [5000]])
def test_moments_of_parts_are_those_of_two_passes(offset: float, tolerance: float, sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(sum(sizes), 2, 5, generator=generator) + offset
    moments = no_tokens(2, 5)
    for part in activations.split(sizes):
        moments = merged(moments, moments_of(part))
    assert_close(moments, activations.double(), tolerance)


def test_the_statistics_of_a_dataset_are_those_of_the_numbers_in_its_shards(tmp_path: Path) -> None:
    for dtype in ("float32", "int8"):
        dataset = ActivationDataset(write(tmp_path / dtype, dtype=dtype))
        batches = list(dataset)
        positions = torch.cat([batch.positions for batch in batches])
        for kind in ("inputs", "targets"):
            numbers = torch.cat([getattr(batch, kind) for batch in batches]).double()
            moments = getattr(dataset.statistics, kind)
            assert_close(moments(), numbers[positions > 0])
            assert_close(moments(use_first_position=True), numbers)
        assert dataset.statistics.tokens == 70


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"variance":[[', '"variance":[[-'),
        ('"mean":[[', '"mean":[[null,'),
        ('"mean":[[', '"mean":[[1,'),
        ('"first_positions":{"tokens":7', '"first_positions":{"tokens":8'),
        ('"other_positions"', '"another"'),
        ('"inputs":{', '"inputs":[],"x":{'),
    ],
)
def test_a_damaged_file_of_statistics_is_one_sentence(old: str, new: str, tmp_path: Path) -> None:
    path = write(tmp_path / "dataset") / "norm_stats.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with refuses(CheckpointError, path):
        _ = ActivationDataset(tmp_path / "dataset").statistics
