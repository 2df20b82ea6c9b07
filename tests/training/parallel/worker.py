"""What one process of several does in test_parallel.py: train, and write down what happened."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from torch import distributed as dist
from torch.profiler import ProfilerActivity, profile

from open_clt.config import (
    BatchTopKConfig,
    JumpReLUConfig,
    L1SparsityConfig,
    LossConfig,
    MoltConfig,
    ReLUConfig,
    TanhSparsityConfig,
    TopKConfig,
    TrainingConfig,
    TranscoderConfig,
)
from open_clt.training.callbacks import Checkpoints
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from open_clt.training.data import ActivationDataModule
from open_clt.training.parallel.strategy import FeatureParallelStrategy, MeshPeers, make_mesh
from open_clt.training.result import TrainingResult
from open_clt.training.run import fit, quiet_lightning, set_from_data
from open_clt.training.step.module import TranscoderModule
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.make import OwnArchitecture, make_transcoder
from tests.training.synthetic import D_MODEL, FEATURES, LAYERS, quick_training, relu_mlps, small_transcoder

STEPS = 12


class Case(NamedTuple):
    """One training."""

    transcoder: TranscoderConfig
    training: TrainingConfig
    own: OwnArchitecture | None


def case(loss: LossConfig, own: OwnArchitecture | None = None, **transcoder: Any) -> Case:
    return Case(small_transcoder(**transcoder), quick_training(max_steps=STEPS, gradient_clip=0.5, loss=loss), own)


MUFFLED = OwnArchitecture("tests.training.own.Muffled", {"share": 0.75})
# Features count as dead so soon that what revives them takes part, and gradients are so large that they are clipped.
CASES = {
    "topk": case(LossConfig(dead_after_tokens=200, auxiliary_k=3), nonlinearity=TopKConfig(k=4), skip=True),
    "batchtopk": case(
        LossConfig(dead_after_tokens=200, auxiliary_k=3), nonlinearity=BatchTopKConfig(k=4, across_layers=True)
    ),
    "jumprelu": case(
        LossConfig(
            sparsity=TanhSparsityConfig(coefficient=1.0), preactivation=0.1, auxiliary=0.0, dead_after_tokens=200
        ),
        nonlinearity=JumpReLUConfig(initial_threshold=0.1, bandwidth=0.5),
    ),
    "matryoshka": case(LossConfig(dead_after_tokens=200), nonlinearity=BatchTopKConfig(k=4), prefixes=(8, 16)),
    "own": case(LossConfig(dead_after_tokens=200), MUFFLED, nonlinearity=BatchTopKConfig(k=4, across_layers=True)),
}
# Trained with split batches only.
SPLIT_CASES = {
    "molt": Case(
        MoltConfig(n_layers=LAYERS, d_model=D_MODEL, ranks=(4, 1), counts=(8, 16), nonlinearity=TopKConfig(k=4)),
        quick_training(max_steps=STEPS, gradient_clip=0.5, loss=LossConfig(dead_after_tokens=200, auxiliary_k=3)),
        None,
    ),
    "relu": case(
        LossConfig(sparsity=L1SparsityConfig(coefficient=0.1), preactivation=0.1, auxiliary=0.0, dead_after_tokens=200),
        nonlinearity=ReLUConfig(),
    ),
}


class PressCtrlC(Callback):
    """Sends the signal that Ctrl-C sends, after a given step, to the last process only."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGINT)


class Listen(Callback):
    """Adds up what one step puts into collectives: bytes of this process, by what they do and the size of a message."""

    def __init__(self) -> None:
        self.heard: Counter[str] = Counter()
        self._profile = profile(activities=[ProfilerActivity.CPU], record_shapes=True)

    def on_train_batch_start(self, trainer: Trainer, *rest: Any) -> None:
        if trainer.global_step == 1:
            self._profile.start()

    def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        if trainer.global_step == 2:
            self._profile.stop()
            sizes = {"float": 4, "int": 4, "long int": 8, "double": 8}
            for event in self._profile.profiler.kineto_results.events():
                if event.name().startswith("gloo:"):
                    (shape,), (kind,) = event.shapes(), event.dtypes()
                    size = torch.Size(shape).numel() * sizes[kind]
                    self.heard[f"{event.name()} {size}"] += size


def train(case: Case, *callbacks: Callback, resume: Path | None = None, **settings: Any) -> TrainingResult:
    """Train a case on as many processes as there are; half of its features are dead at first.

    In one layer they are all those of the first of two processes, in the other they are spread over both.
    """
    data = ActivationDataModule(relu_mlps(1500), case.training.data, held_out=relu_mlps(200, seed=1))
    transcoder = set_from_data(make_transcoder(case.transcoder, own=case.own), data, None)
    with torch.no_grad():
        transcoder.b_enc[0, ::2] -= 3
        transcoder.b_enc[1, : FEATURES // 2] -= 3
    with quiet_lightning():
        trainer = Trainer(
            max_steps=data.steps,
            accelerator="cpu",
            gradient_clip_val=case.training.gradient_clip,
            plugins=[SafetensorsCheckpointIO()],
            callbacks=list(callbacks),
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=any(isinstance(callback, Checkpoints) for callback in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings,
        )
        return fit(TranscoderModule(transcoder, case.training.learning), data, trainer, resume=resume)


def summary(record: TrainingResult) -> dict[str, Any]:
    """What must not depend on the number of processes."""
    found = record.summary()
    return {name: found[name] for name in ("curves", "held_out", "dead_share", "steps", "tokens")}


def strategy(layout: str) -> Any:
    """``ddp``, or FeatureParallelStrategy with so many shards."""
    return FeatureParallelStrategy(int(layout)) if layout.isdigit() else layout


def run_processes(task: Callable[..., Any], processes: int, folder: Path, *arguments: Any) -> list[Any]:
    """Call a function of this file in so many processes that know of each other; return what each returned.

    They are forked from a process that has imported this file and done nothing else: importing takes seconds.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    started = [
        context.Process(target=_run, args=(task, rank, processes, port, folder, arguments)) for rank in range(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * processes
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


def _run(
    task: Callable[..., Any], rank: int, processes: int, port: int, folder: Path, arguments: tuple[Any, ...]
) -> None:
    """Do what torchrun does for a process, then the task."""
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "GROUP_RANK": 0}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in {**place, **meeting}.items()})
    dist.init_process_group("gloo")
    (folder / f"{rank}.json").write_text(json.dumps(task(*arguments)))
    dist.destroy_process_group()


def train_cases(layouts: list[str]) -> dict[str, dict[str, Any]]:
    """Every case, by every strategy."""
    world = dist.get_world_size()
    return {
        layout: {
            name: summary(train(case, devices=world, strategy=strategy(layout))) for name, case in cases(layout).items()
        }
        for layout in layouts
    }


def cases(layout: str) -> dict[str, Case]:
    """What can be trained by this strategy."""
    return {**CASES, **SPLIT_CASES} if layout == "ddp" else CASES


def listen(layouts: list[str]) -> dict[str, dict[str, Any]]:
    """What the collectives of one step take in, for every case while no feature is dead, by every strategy."""
    world = dist.get_world_size()
    heard: dict[str, dict[str, Any]] = {}
    for layout in layouts:
        heard[layout] = {}
        for name in CASES:
            listener = Listen()
            train(alive(name), listener, devices=world, strategy=strategy(layout))
            heard[layout][name] = listener.heard
    return heard


def alive(name: str) -> Case:
    """A few steps of the case, with nothing but its reconstruction loss."""
    training = CASES[name].training
    data, learning = replace(training.data, max_steps=3), replace(training.learning, loss=LossConfig())
    return CASES[name]._replace(training=replace(training, data=data, learning=learning))


def interrupt_and_resume(folder: Path, step: int) -> dict[str, Any]:
    """Press Ctrl-C in a sharded training, and go on from the checkpoint that it leaves."""
    case, devices = CASES["own"], dist.get_world_size()
    watchers = (PressCtrlC(step), Checkpoints(folder, every=1000))
    stopped = train(case, *watchers, strategy=strategy("2"), devices=devices)
    if dist.get_rank() == 0:
        save_transcoder(stopped.transcoder, folder / "stopped")
    resumed = train(case, resume=folder / "last", strategy=strategy("2"), devices=devices)
    return {"stopped_after": stopped.steps, "summary": summary(resumed)}


def compete(values: list[list[float]], k: int, places: list[int]) -> dict[str, Any]:
    """Rank numbers that are spread over all processes as features: who wins by token, what has which place of all."""
    world = dist.get_world_size()
    ours = torch.tensor(values)[:, dist.get_rank() :: world]
    peers = MeshPeers(make_mesh(torch.device("cpu"), world, shards=world))
    kth = [peers.kth_largest(ours.flatten(), place).item() for place in places]
    none = peers.kth_largest(ours[:, :0].flatten(), k).item()
    return {"won": peers.winners(ours, k).tolist(), "kth": kth, "none": none}
