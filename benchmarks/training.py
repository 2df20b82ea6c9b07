"""Speed and memory of a training step, against dense PyTorch, crosslayer-coding, and one encoder product.

    python benchmarks/training.py
    python benchmarks/training.py --peer-python PATH       an environment with PyPI's decode-clt 0.0.1
    python benchmarks/training.py --device cuda --shapes G

Synthetic activations of 1,024 tokens; TopK with 32 active features, and JumpReLU with thresholds that as many pass.
A step is forward pass, reconstruction loss (and JumpReLU's sparsity loss), backward pass, and the optimizer's update.

    ours     OpenCLT's model, losses and optimizer
    frugal   the same with AdamInBackward, which keeps no gradients
    dense    the same equations as plain PyTorch (tests/reference/dense_step.py), with the same optimizer
    peer     crosslayer-coding's model, losses and optimizer, as its trainer uses them
    floor    the encoder's forward products by themselves

Every measurement is a process of its own, since three models of shape C do not fit a small machine together; sides take
turns, have the same threads, precision of matrix products and settings of memory, and medians are reported.
Memory is what a step needs at its peak above the parameters and the optimizer's state. On a machine that does other
work meanwhile, ``--threads 1 --clock processor`` measures the time that a step computes. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from attribution_process import Side
from training_case import Case

HERE = Path(__file__).parent


class Shape(NamedTuple):
    """Of a cross-layer transcoder."""

    layers: int
    d_model: int
    features: int


SHAPES = {"A": Shape(12, 768, 1024), "B": Shape(4, 256, 2048), "C": Shape(12, 768, 8192), "G": Shape(12, 768, 24576)}
AIMS = {"C": {"speedup": 8, "step_speedup": 5}, "A": {"speedup": 4, "step_speedup": 2.5}, "G": {"speedup": 3}}
LIMITS = {
    "C": {"memory_ratio": 0.5, "frugal_memory_ratio": 0.5, "floor_ratio": 4},
    "A": {"memory_ratio": 0.5, "frugal_memory_ratio": 0.5},
}

KEEP_MEMORY = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "1000000000000",
}
"""Environment of every side: PyTorch asks for huge pages, and glibc keeps what is freed for the next step.

Else the system clears the pages of all gradients anew at every step, which takes longer than computing them."""


class Measured(NamedTuple):
    """Medians of one side."""

    backward: float
    """Seconds of the forward and backward pass."""
    step: float
    """Seconds of the whole step."""
    extra_memory_mb: float
    """Peak above parameters and optimizer state."""
    floor: float
    """Seconds of the encoder's products."""


def measure(case: Case, arguments: argparse.Namespace) -> Measured:
    """One process: a warm step or two, then so many timed ones."""
    with tempfile.TemporaryDirectory() as folder:
        case.save(Path(folder))
        peer = case.side == "peer"
        python = arguments.peer_python if peer else Path(sys.executable)
        script = HERE / ("training_crosslayer.py" if peer else "training_ours.py")
        side = Side(python, script, Path(folder), arguments.device, arguments.threads)
        memory = side.ask(kind="memory")["extra_memory_mb"]
        kinds = {"ours": ["backward", "step", "floor"], "frugal": ["step"]}.get(case.side, ["backward", "step"])
        times: dict[str, list[float]] = {kind: [] for kind in ("backward", "step", "floor")}
        for _ in range(arguments.repeats):
            for kind in kinds:
                times[kind].append(side.ask(kind=kind)["seconds"])
        side.close()
    middle = {kind: statistics.median(seconds) if seconds else 0.0 for kind, seconds in times.items()}
    found = Measured(middle["backward"], middle["step"], memory, middle["floor"])
    cost = f"{found.backward:>8.3f} s  {found.step:>8.3f} s {found.extra_memory_mb:>8.0f} MB"
    print(f"  {case.side:<8} forward and backward, whole step, extra memory: {cost}", flush=True)
    return found


def compare(name: str, nonlinearity: str, arguments: argparse.Namespace) -> dict[str, float]:
    """All sides of one shape and nonlinearity, in turns."""
    shape = SHAPES[name]
    print(f"{name} {nonlinearity}: {shape.layers} layers, width {shape.d_model}, {shape.features} features", flush=True)
    sides = ["ours", "frugal", "dense"] + (["peer"] if arguments.peer_python else [])
    runs: dict[str, list[Measured]] = {side: [] for side in sides}
    for _ in range(arguments.rounds):
        for side in sides:
            case = Case(
                side=side, nonlinearity=nonlinearity, **shape._asdict(), tokens=arguments.tokens,
                active=arguments.active, precision=arguments.precision, clock=arguments.clock,
            )  # fmt: skip
            runs[side].append(measure(case, arguments))
    medians = {side: Measured(*map(statistics.median, zip(*found, strict=True))) for side, found in runs.items()}
    return summary(medians, arguments.tokens)


def summary(medians: dict[str, Measured], tokens: int) -> dict[str, float]:
    """The numbers that are reported: all ratios are theirs to ours, but memory and floor, which are ours to theirs."""
    ours, frugal, dense = medians["ours"], medians["frugal"], medians["dense"]
    result = {
        "tokens_per_second": tokens / ours.step,
        "backward_seconds": ours.backward,
        "step_seconds": ours.step,
        "extra_memory_mb": ours.extra_memory_mb,
        "speedup_dense": dense.backward / ours.backward,
        "step_speedup_dense": dense.step / ours.step,
        "memory_ratio_dense": ours.extra_memory_mb / dense.extra_memory_mb,
        "floor_ratio": ours.backward / ours.floor,
        "optimizer_share": 1 - ours.backward / ours.step,
        "frugal_step_seconds": frugal.step,
        "frugal_step_speedup_dense": dense.step / frugal.step,
        "frugal_memory_ratio_dense": frugal.extra_memory_mb / dense.extra_memory_mb,
    }
    if "peer" in medians:
        peer = medians["peer"]
        result["speedup_peer"] = peer.backward / ours.backward
        result["step_speedup_peer"] = peer.step / ours.step
        result["memory_ratio_peer"] = ours.extra_memory_mb / peer.extra_memory_mb
        result["frugal_memory_ratio_peer"] = frugal.extra_memory_mb / peer.extra_memory_mb
    return result


def report(name: str, result: dict[str, float]) -> None:
    """Say what came out, and what was aimed at."""
    for key, value in result.items():
        what = key.removesuffix("_dense").removesuffix("_peer")
        least, most = AIMS.get(name, {}).get(what.removeprefix("frugal_")), LIMITS.get(name, {}).get(what)
        aim = f"   (aim: at least {least})" if least else f"   (aim: at most {most})" if most else ""
        print(f"  {key:<26}{value:>12.3f}{aim}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["A", "B", "C"])
    parser.add_argument("--nonlinearities", nargs="+", choices=["topk", "jumprelu"], default=["topk", "jumprelu"])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--active", type=int, default=32, help="active features per token and layer")
    parser.add_argument("--peer-python", type=Path, help="Python of an environment with decode-clt")
    parser.add_argument("--rounds", type=int, default=3, help="processes per side")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps per process")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall", help="processor: on a busy machine")
    parser.add_argument("--precision", choices=["highest", "high", "medium"], default="medium")
    return parser.parse_args()


def main() -> None:
    """Measure what was asked for."""
    arguments = parse()
    for name, value in KEEP_MEMORY.items():
        os.environ.setdefault(name, value)
    results: dict[str, Any] = {}
    for name in arguments.shapes:
        for nonlinearity in arguments.nonlinearities:
            found = compare(name, nonlinearity, arguments)
            report(name, found)
            results[f"{name}_{nonlinearity}"] = {key: round(value, 4) for key, value in found.items()}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
