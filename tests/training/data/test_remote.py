"""Training on a dataset under a URL: the same losses, bit for bit, as from the disk; a server that vanishes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from open_clt.data.dataset.remote import server as remote
from open_clt.errors import CheckpointError, ServiceError
from open_clt.training.result import TrainingResult
from tests.data.dataset.remote.static_server import Answer, serving
from tests.refusals import refuses
from tests.training.data.stored_run import TOO_SMALL, train, write


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of this test alone, and little patience with servers."""
    monkeypatch.setenv("OPEN_CLT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PATIENCE", 0.3)
    monkeypatch.setattr(remote, "FIRST_PATIENCE", 0.3)


def assert_identical(result: TrainingResult, expected: TrainingResult) -> None:
    for name, tensor in result.transcoder.state_dict().items():
        assert torch.equal(tensor, expected.transcoder.state_dict()[name]), name
    assert result.curves == expected.curves
    assert result.metrics == expected.metrics


@pytest.mark.slow
@pytest.mark.parametrize("memory_limit", [1.0, TOO_SMALL], ids=["in memory", "read during training"])
def test_a_url_and_a_directory_give_the_same_weights(tmp_path: Path, memory_limit: float) -> None:
    data = write(tmp_path / "data", dtype="int8")
    settings: dict[str, Any] = {"memory_limit": memory_limit, "order": "random", "statistics": "stored"}
    expected = train(data, **settings)
    with serving(tmp_path) as server:
        assert_identical(train(f"{server.address}data/", **settings), expected)


@pytest.mark.slow
def test_a_server_that_vanishes_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    data = write(tmp_path / "data")
    settings: dict[str, Any] = {"memory_limit": TOO_SMALL, "every": 5}
    expected = train(data, output_dir=tmp_path / "whole", **settings)

    def vanish(path: str, answer: Answer) -> Answer:
        """Refuse to send a late shard; only its size is told."""
        is_late = path.endswith("shard-00008.safetensors") and len(answer.content) > 1
        return Answer(503, {}, b"") if is_late else answer

    with serving(tmp_path) as server:
        address = f"{server.address}data/"
        server.change = vanish
        with refuses(ServiceError, address, "run/checkpoints/last is kept"):
            train(address, output_dir=tmp_path / "run", **settings)
        server.change = lambda path, answer: answer
        assert_identical(train(address, output_dir=tmp_path / "run", resume="last", **settings), expected)


@pytest.mark.slow
def test_a_server_without_the_dataset_is_named_before_the_first_step(tmp_path: Path) -> None:
    data = write(tmp_path / "data")
    (data / "shard-00004.safetensors").unlink()
    with serving(tmp_path) as server:
        address = server.address
        with refuses(CheckpointError, f"{address}data/", "shard-00004.safetensors"):
            train(f"{address}data/", output_dir=tmp_path / "run")
        with refuses(CheckpointError, f"{address}elsewhere/"):
            train(f"{address}elsewhere/", output_dir=tmp_path / "run")
    with refuses(ServiceError, f"{address}data/"):
        train(f"{address}data/", output_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.csv").exists()
