"""Two processes train on one dataset: each reads tokens of its own, and both go on exactly after a crash."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.harvest import concatenate
from open_clt.training.data.stored import DatasetTokens
from tests.training.data.stored_run import TOO_SMALL, write
from tests.training.parallel import dataset_worker
from tests.training.parallel.worker import run_processes


@pytest.mark.slow
@pytest.mark.parametrize("memory_limit", [1.0, TOO_SMALL], ids=["in memory", "read during training"])
def test_two_processes_read_disjoint_tokens_and_go_on_after_a_crash(tmp_path: Path, memory_limit: float) -> None:
    data = write(tmp_path / "data", tokens=3200)
    results = run_processes(dataset_worker.divide, 2, tmp_path, str(data), str(tmp_path), memory_limit)
    assert results[0]["whole"] == results[1]["whole"], "both have the same weights"
    for result in results:
        assert result["resumed"] == result["whole"]
    first, second = (set(result["tokens"]) for result in results)
    if memory_limit == TOO_SMALL:
        assert not first & second
        assert len(first | second) > 0.95 * (3200 - 320) * 14 / 15, "they leave out first positions"
        assert "2 processes" in dataset_worker.resume_alone(str(data), str(tmp_path))
    else:
        assert len(first | second) > 0.95 * (3200 - 320) * 14 / 15


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_shares_hold_every_token_once(tmp_path: Path, parts: int) -> None:
    whole = DatasetTokens.of(ActivationDataset(write(tmp_path)), range(100, 1600), random_seed=3)
    shares = [whole.share(part, parts) for part in range(parts)]
    assert max(share.n_tokens for share in shares) - min(share.n_tokens for share in shares) <= 1
    joined = torch.cat([concatenate(list(share)).tokens for share in shares])
    assert torch.equal(joined, concatenate(list(whole)).tokens)
