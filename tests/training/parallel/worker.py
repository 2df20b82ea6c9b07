"""Tasks of the processes in test_strategy.py: each trains, or exchanges numbers, and returns what the test compares."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import forkserver
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
from open_clt.errors import NotFiniteError
from open_clt.training.callbacks import Checkpoints
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from open_clt.training.data.module import ActivationDataModule
from open_clt.training.parallel.strategy import FeatureParallelStrategy, MeshPeers, make_mesh
from open_clt.training.result import TrainingResult
from open_clt.training.run import fit, quiet_lightning, set_from_data
from open_clt.training.step.module import Loss, Step, TranscoderModule
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.make import OwnArchitecture, make_transcoder
from tests.training.synthetic import D_MODEL, FEATURES, LAYERS, quick_training, relu_mlps, small_transcoder

STEPS = 9


class Case(NamedTuple):
    """The settings of one training run."""

    transcoder: TranscoderConfig
    training: TrainingConfig
    own: OwnArchitecture | None
    loss: Loss | None = None


def case(loss: LossConfig, own: OwnArchitecture | None = None, **transcoder: Any) -> Case:
    return Case(small_transcoder(**transcoder), quick_training(max_steps=STEPS, gradient_clip=0.5, loss=loss), own)


MUFFLED = OwnArchitecture("tests.training.own.Muffled", {"share": 0.75})
# Features count as dead so soon that AuxK and the pre-activation loss take part, and gradients are clipped.
CASES = {
    "topk": case(LossConfig(dead_after_tokens=200, auxiliary_k=3), nonlinearity=TopKConfig(k=4), skip=True),
    "topk across layers": case(
        LossConfig(dead_after_tokens=200, auxiliary_k=3, distance_penalty=0.1),
        nonlinearity=TopKConfig(k=4, across_layers=True),
    ),
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
# These cases are trained with split batches only.
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
    """Sends the signal of Ctrl-C to the last process only, after a given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *rest: Any, **named: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGINT)


class Listen(Callback):
    """Adds up the bytes that this process puts into collectives in one step, by operation and size of the message."""

    def __init__(self) -> None:
        self.messages: Counter[str] = Counter()
        self._profile = profile(activities=[ProfilerActivity.CPU], record_shapes=True)

    def on_train_batch_start(self, trainer: Trainer, *rest: Any, **named: Any) -> None:
        if trainer.global_step == 1:
            self._profile.start()

    def on_train_batch_end(self, trainer: Trainer, *rest: Any, **named: Any) -> None:
        if trainer.global_step == 2:
            self._profile.stop()
            sizes = {"float": 4, "int": 4, "long int": 8, "double": 8}
            results: Any = self._profile.profiler
            for event in results.kineto_results.events():
                if event.name().startswith("gloo:"):
                    (shape,), (kind,) = event.shapes(), event.dtypes()
                    size = torch.Size(shape).numel() * sizes[kind]
                    self.messages[f"{event.name()} {size}"] += size


def train(case: Case, *callbacks: Callback, resume: Path | None = None, **settings: Any) -> TrainingResult:
    """Train a case on all processes; half of its features are dead at first.

    In layer 0 the dead features are all features of the first of two processes; in layer 1 both processes have some.
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
        return fit(TranscoderModule(transcoder, case.training.learning, loss=case.loss), data, trainer, resume=resume)


def summary(result: TrainingResult) -> dict[str, Any]:
    """The numbers of a run that must not depend on the number of processes."""
    numbers = result.summary()
    return {name: numbers[name] for name in ("curves", "held_out", "dead_share", "steps", "tokens")}


def strategy(layout: str) -> Any:
    """The strategy of a layout: ``ddp``, or a FeatureParallelStrategy with the number of shards that it names."""
    return FeatureParallelStrategy(int(layout)) if layout.isdigit() else layout


def start_server() -> None:
    """Start the server that forks processes; it imports this module in the background."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    forkserver.ensure_running()


def run_processes(task: Callable[..., Any], processes: int, folder: Path, *arguments: Any) -> list[Any]:
    """Call a function of this module in several processes that form a group; return what each of them returned.

    The processes are forked from a server that has imported this module, because importing it takes seconds.
    """
    start_server()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    members = [
        context.Process(target=_run_member, args=(Member(rank, processes, port), folder, task, arguments))
        for rank in range(processes)
    ]
    for member in members:
        member.start()
    for member in members:
        member.join()
    assert [member.exitcode for member in members] == [0] * processes
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


class Member(NamedTuple):
    """One process of a group on this machine, and the port at which the group meets."""

    rank: int
    processes: int
    port: int

    def environment(self) -> dict[str, str]:
        """The environment variables that torchrun sets for a process."""
        rank, processes = self.rank, self.processes
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.port, "TORCHELASTIC_RUN_ID": "test"}
        return {name: str(value) for name, value in {**ranks, **meeting, "GROUP_RANK": 0}.items()}


def _run_member(member: Member, folder: Path, task: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Join the group, run the task, and write what it returns to a file."""
    torch.set_num_threads(1)
    os.environ.update(member.environment())
    dist.init_process_group("gloo")
    (folder / f"{member.rank}.json").write_text(json.dumps(task(*arguments)))
    dist.destroy_process_group()


def train_cases(layout: str) -> dict[str, Any]:
    """The summaries of all cases of a layout."""
    world = dist.get_world_size()
    return {
        name: summary(train(case, devices=world, strategy=strategy(layout))) for name, case in cases(layout).items()
    }


def cases(layout: str) -> dict[str, Case]:
    """The cases that the strategy of this layout can train."""
    return {**CASES, **SPLIT_CASES} if layout == "ddp" else CASES


def listen(layouts: list[str]) -> dict[str, dict[str, Any]]:
    """The messages of one step for every layout and case, while no feature is dead."""
    world = dist.get_world_size()
    messages: dict[str, dict[str, Any]] = {}
    for layout in layouts:
        messages[layout] = {}
        for name in CASES:
            listener = Listen()
            train(reconstruction_only(name), listener, devices=world, strategy=strategy(layout))
            messages[layout][name] = listener.messages
    return messages


def reconstruction_only(name: str) -> Case:
    """Three steps of a case, with its reconstruction loss only."""
    training = CASES[name].training
    data, learning = replace(training.data, max_steps=3), replace(training.learning, loss=LossConfig())
    return CASES[name]._replace(training=replace(training, data=data, learning=learning))


def interrupt_and_resume(folder: Path, step: int) -> dict[str, Any]:
    """Interrupt a sharded run by Ctrl-C, and resume it from the checkpoint that it leaves."""
    case, devices = CASES["own"], dist.get_world_size()
    watchers = (PressCtrlC(step), Checkpoints(folder, every=1000))
    stopped = train(case, *watchers, strategy=strategy("2"), devices=devices)
    if dist.get_rank() == 0:
        save_transcoder(stopped.transcoder, folder / "stopped")
    resumed = train(case, resume=folder / "last", strategy=strategy("2"), devices=devices)
    return {"stopped_after": stopped.steps, "summary": summary(resumed)}


def stop_at_nan(folder: Path) -> list[str]:
    """Train with a loss that becomes NaN in the last process only; return the errors of this process, by layout."""
    errors: list[str] = []
    for layout in ("2", "ddp"):
        try:
            train(
                CASES["topk"]._replace(loss=nan_in_last_process),
                Checkpoints(folder / layout, every=1),
                strategy=strategy(layout),
                devices=dist.get_world_size(),
            )
        except NotFiniteError as error:
            errors.append(str(error))
    return errors


def nan_in_last_process(step: Step) -> torch.Tensor:
    """The reconstruction loss, which is NaN in the last process from the middle of the run on."""
    is_nan = step.progress > 0.5 and dist.get_rank() == dist.get_world_size() - 1
    return step.errors[-1].square().sum((1, 2)).mean() * (torch.nan if is_nan else 1.0)


def compete(values: list[list[float]], k: int, ranks: list[int]) -> dict[str, Any]:
    """Rank values whose columns are spread over all processes: the ``k`` winners of each row, and some ranks of all."""
    world = dist.get_world_size()
    local = torch.tensor(values)[:, dist.get_rank() :: world]
    peers = MeshPeers(make_mesh(torch.device("cpu"), world, shards=world))
    kth = [peers.kth_largest(local.flatten(), rank).item() for rank in ranks]
    none = peers.kth_largest(local[:, :0].flatten(), k).item()
    return {"won": peers.winners(local, k).tolist(), "kth": kth, "none": none}
