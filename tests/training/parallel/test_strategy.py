"""Several processes train what one process trains, with features sharded, batches split, or both.

The processes communicate by gloo on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy

from open_clt.config import BatchTopKConfig, MoltConfig, TopKConfig
from open_clt.errors import CheckpointError, ConfigError
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from open_clt.training.parallel.scaling import Layout, traffic
from open_clt.training.parallel.shards import (
    draw_shard,
    merge_checkpoint,
    shard_config,
    shard_features,
    shard_path,
    whole_config,
)
from open_clt.training.parallel.strategy import BatchShare, make_mesh, peers_of
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.make import OwnArchitecture, make_transcoder
from open_clt.transcoders.slices import ALONE, Part, Peers
from open_clt.transcoders.transcoder import Transcoder
from tests.refusals import refuses
from tests.training.own import Muffled
from tests.training.parallel import worker
from tests.training.parallel.worker import CASES, cases, run_processes, summary, train
from tests.training.synthetic import FEATURES, relu_mlps, small_transcoder

LAYOUTS = {"2": Layout(shards=2), "ddp": Layout(replicas=2)}


OneProcess = Callable[[str], dict[str, Any]]
TwoProcesses = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def one_process() -> OneProcess:
    """The summary of a case that one process trains, by name; each case is trained once."""
    worker.start_server()  # it imports its modules while this process trains
    return cache(lambda name: summary(train(cases("ddp")[name], devices=1)))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> TwoProcesses:
    """The summaries of all cases of a layout, from each of two processes; each layout is trained once."""
    return cache(lambda layout: run_processes(worker.train_cases, 2, tmp_path_factory.mktemp("two"), layout))


@pytest.fixture(scope="module")
def step_messages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_processes(worker.listen, 2, tmp_path_factory.mktemp("messages"), list(LAYOUTS))[0]


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "name"), [(layout, name) for layout in LAYOUTS for name in cases(layout)])
def test_two_processes_equal_one(layout: str, name: str, one_process: OneProcess, two_processes: TwoProcesses) -> None:
    expected = one_process(name)
    for process in two_processes(layout):
        assert_equal(process[name], expected, exact_fvu=LAYOUTS[layout].replicas == 1)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["2", "4", "ddp"])
def test_four_processes_equal_one(layout: str, one_process: OneProcess, tmp_path: Path) -> None:
    for process in run_processes(worker.train_cases, 4, tmp_path, layout):
        assert process.keys() == cases(layout).keys()
        for name, numbers in process.items():
            assert_equal(numbers, one_process(name), exact_fvu=layout == "4")


def assert_equal(numbers: dict[str, Any], expected: dict[str, Any], *, exact_fvu: bool) -> None:
    """The summaries of two runs are equal to 1e-5.

    The FVU of a split batch differs: it is the mean over the parts, each measured about its own mean.
    """
    curves, expected_curves = numbers["curves"], expected["curves"]
    assert len(curves["loss"]) == worker.STEPS
    assert expected_curves["dead_share"][-1] > 0, "the terms that revive features must take part"
    for name in ("loss", "l0", "dead_share", "learning_rate"):
        assert curves[name] == pytest.approx(expected_curves[name], rel=1e-5), name
    if exact_fvu:
        assert curves["fvu"] == pytest.approx(expected_curves["fvu"], rel=1e-5)
    assert numbers["tokens"] == expected["tokens"]
    for name, value in expected["held_out"].items():
        assert numbers["held_out"][name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_a_sharded_step_sums_reconstructions_once_and_no_gradients(name: str, step_messages: dict[str, Any]) -> None:
    expected = traffic(CASES[name].transcoder, CASES[name].training.data.batch_size, LAYOUTS["2"])
    assert expected.gradients == 0
    messages = dict(step_messages["2"][name])
    assert messages.pop(f"gloo:all_reduce {expected.reconstructions}") == expected.reconstructions
    if expected.candidates:
        nonlinearity = CASES[name].transcoder.nonlinearity
        gathers = 1 if getattr(nonlinearity, "across_layers", False) else CASES[name].transcoder.n_layers
        assert messages.pop(f"gloo:all_gather {expected.candidates // gathers}") == expected.candidates
    if expected.counts:
        assert messages.pop("gloo:all_reduce 16384") == expected.counts
    assert sum(messages.values()) < 64, f"all other messages are a few numbers: {messages}"


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_a_step_of_split_batches_sums_gradients(name: str, step_messages: dict[str, Any]) -> None:
    expected = traffic(CASES[name].transcoder, CASES[name].training.data.batch_size, LAYOUTS["ddp"])
    assert expected.reconstructions == expected.candidates == 0
    reduced = sum(size for message, size in step_messages["ddp"][name].items() if "all_reduce" in message)
    assert reduced == pytest.approx(expected.gradients + expected.counts, abs=64)


@pytest.mark.slow
def test_a_resumed_sharded_run_ends_where_an_uninterrupted_run_does(one_process: OneProcess, tmp_path: Path) -> None:
    results = run_processes(worker.interrupt_and_resume, 2, tmp_path, tmp_path, 5)
    for result in results:
        assert result["stopped_after"] == 6, "both processes stop after the step in which they exchange the signal"
        assert_equal(result["summary"], one_process("own"), exact_fvu=True)

    with refuses(CheckpointError, "Muffled"):
        merge_checkpoint(tmp_path / "last")
    merged = merge_checkpoint(tmp_path / "last", own_class=Muffled)
    stopped = load_transcoder(tmp_path / "stopped", trust_code=True)
    assert type(merged) is type(stopped) is Muffled
    assert merged.share == stopped.share == 0.75
    assert merged.config == stopped.config == CASES["own"].transcoder
    assert_same_tensors(merged.folded(), stopped)
    inputs = relu_mlps(100, batches=1).batches[0].inputs
    save_transcoder(merged.folded(), tmp_path / "folded")
    folded = load_transcoder(tmp_path / "folded", own_class=Muffled)
    torch.testing.assert_close(folded(inputs).reconstruction, stopped(inputs).reconstruction, rtol=1e-4, atol=1e-4)
    refuse_damaged_checkpoints(tmp_path / "last")


def refuse_damaged_checkpoints(checkpoint: Path) -> None:
    io, second = SafetensorsCheckpointIO(), shard_path(checkpoint, 1, 2)
    state = io.load_checkpoint(second)
    io.save_checkpoint({**state, "global_step": 3}, second)
    with refuses(CheckpointError, 6, 3):
        merge_checkpoint(checkpoint)
    io.remove_checkpoint(second)
    with refuses(CheckpointError, "state.json"):
        merge_checkpoint(checkpoint)
    with refuses(CheckpointError):
        merge_checkpoint(checkpoint / "elsewhere")


def assert_same_tensors(transcoder: Transcoder, expected: Transcoder) -> None:
    tensors = transcoder.state_dict()
    assert tensors.keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensors[name], tensor), name


@pytest.mark.slow
def test_features_compete_across_processes_as_in_one(tmp_path: Path) -> None:
    values = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1e-42, 1e-9, 1, 1, 1e9, 1e30]
    )
    values[3] = 1.0  # of equal values, exactly three win
    values[4] = -1.0
    ranks = list(range(1, 40, 2))  # some are above 30, the number of values
    processes = run_processes(worker.compete, 2, tmp_path, values.tolist(), 3, ranks)
    won = torch.stack([torch.tensor(process["won"]) for process in processes], dim=-1).flatten(1)
    assert won.sum(1).tolist() == [3] * 5
    assert torch.equal(won[:3], ALONE.winners(values, 3)[:3])
    kth = [ALONE.kth_largest(values.flatten(), rank).item() for rank in ranks]
    descending = sorted((max(value, 0.0) for value in values.flatten().tolist()), reverse=True)
    assert kth == [descending[min(rank, 30) - 1] for rank in ranks]
    assert [(process["kth"], process["none"]) for process in processes] == [(kth, 0.0)] * 2


@pytest.mark.parametrize(("size", "shards"), [(12, 1), (12, 3)])
def test_the_config_of_a_slice_gives_the_config_of_the_whole(size: int, shards: int) -> None:
    config = small_transcoder(n_features=size, nonlinearity=BatchTopKConfig(k=2), skip=True)
    assert whole_config(shard_config(config, shards), shards) == config


@pytest.mark.parametrize("skip", [False, True])
def test_a_drawn_slice_has_the_weights_of_the_whole_transcoder(skip: bool) -> None:
    config = small_transcoder(n_features=12, skip=skip)
    whole = make_transcoder(config, seed=5)
    parts = [draw_shard(config, Part(shard, 3), seed=5) for shard in range(3)]
    for shard, part in enumerate(parts):
        assert torch.equal(part.W_enc, whole.W_enc[:, shard::3])
        assert all(torch.equal(rows, table[shard::3]) for rows, table in zip(part.W_dec, whole.W_dec, strict=True))


def test_a_users_class_with_additional_tensors_cannot_be_sharded() -> None:
    own = make_transcoder(small_transcoder(), own=OwnArchitecture("tests.training.own.Gated", {}))
    with refuses(ConfigError, "tests.training.own.Gated", "gate"):
        shard_features(own, Mock(spec=Peers, shard=0, shards=2))


def test_other_strategies_and_uneven_groups_are_refused() -> None:
    trainer = Mock(spec=Trainer, strategy=FSDPStrategy(), world_size=2)
    with refuses(ConfigError, "FSDPStrategy", "ddp"):
        peers_of(trainer)
    with refuses(ConfigError, 3, 2):
        make_mesh(torch.device("cpu"), 3, shards=2)


def test_the_parts_of_a_batch_hold_each_token_once() -> None:
    batch = relu_mlps(12, batches=1).batches[0]
    parts = [BatchShare(part, 3).of(batch) for part in range(3)]
    assert sorted(torch.cat([part.tokens for part in parts]).tolist()) == list(range(12))
    assert BatchShare(0, 1).of(batch) is batch
    with refuses(ConfigError, 5):
        BatchShare(0, 5).of(batch)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (small_transcoder(n_features=9), "n_features 9 2"),
        (small_transcoder(prefixes=(3,)), "prefixes 2"),
        (small_transcoder(nonlinearity=TopKConfig(k=FEATURES)), "2 12"),
        (MoltConfig(n_layers=2, d_model=4, ranks=(1,), counts=(16,)), ""),
    ],
)
def test_what_cannot_be_sharded_is_named(config: Any, named: str) -> None:
    with refuses(ConfigError, *named.split()):
        shard_config(config, 2)


@pytest.mark.slow
def test_all_processes_stop_at_the_same_step_if_the_loss_of_one_is_not_finite(tmp_path: Path) -> None:
    results = run_processes(worker.stop_at_nan, 2, tmp_path, tmp_path)
    for errors in results:
        assert len(errors) == 2
        assert all("step 6" in error for error in errors)
