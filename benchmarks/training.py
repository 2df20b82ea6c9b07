"""Training benchmark: speed and memory of a step against dense PyTorch, crosslayer-coding, and one encoder product.

    python benchmarks/training.py
    python benchmarks/training.py --peer-python PATH       the Python of an environment with PyPI's decode-clt 0.0.1
    python benchmarks/training.py --device cuda --shapes G

The data are synthetic activations of 1,024 tokens. TopK has 32 active features, and JumpReLU has thresholds that 32
features pass. A step consists of the forward pass, the reconstruction loss (with JumpReLU also the sparsity loss), the
backward pass, and the optimizer's update.

    ours     OpenCLT's model, losses and optimizer
    frugal   the same with AdamInBackward, which keeps no gradients
    dense    the same equations in plain PyTorch (tests/reference/dense_step.py), with the same optimizer
    peer     crosslayer-coding's model, losses and optimizer, used as its trainer uses them
    floor    the encoder's forward products alone

Every measurement runs in a separate process, because three models of shape C do not fit into the memory of a small
machine together. The sides take turns with the same threads, precision of matrix products and settings of memory, and
medians are reported. Memory is what a step needs at its peak above the parameters and the optimizer's state. On a
machine that does other work at the same time, ``--threads 1 --clock processor`` measures the processor time of a step.
The last line is JSON.
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

sys.path.append(str(Path(__file__).parent / "sides"))
from attribution_process import Side
from training_case import Case

HERE = Path(__file__).parent


class Shape(NamedTuple):
    """Shape of a cross-layer transcoder; ``features`` are per layer."""

    layers: int
    d_model: int
    features: int


SHAPES = {"A": Shape(12, 768, 1024), "B": Shape(4, 256, 2048), "C": Shape(12, 768, 8192), "G": Shape(12, 768, 24576)}
AIMS = {"C": {"speedup": 8, "step_speedup": 5}, "A": {"speedup": 4, "step_speedup": 2.5}, "G": {"speedup": 3}}
LIMITS = {
    "C": {"memory_ratio": 0.5, "frugal_memory_ratio": 0.5, "floor_ratio": 4},
    "A": {"memory_ratio": 0.5, "frugal_memory_ratio": 0.5},
}

_NONLINEARITIES = "nonlinearities to measure (default: both)"
_CLOCK = "clock that times a step; the processor's for a machine that does other work (default: wall)"
_PRECISION = "precision of float32 matrix products (default: medium)"
KEEP_MEMORY = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "1000000000000",
}
"""Environment of every side: PyTorch asks for huge pages, and glibc keeps freed memory for the next step.

Without these settings the system clears new pages for all gradients at every step, which takes longer than computing
the gradients."""


class Measured(NamedTuple):
    """Medians of one side."""

    backward: float
    """Seconds of the forward and backward pass."""
    step: float
    """Seconds of the whole step."""
    extra_memory_mb: float
    """Peak memory above the parameters and the optimizer's state."""
    floor: float
    """Seconds of the encoder's products alone."""


def measure(case: Case, arguments: argparse.Namespace) -> Measured:
    """Measure one side in one process: untimed steps first, then ``--repeats`` timed ones."""
    with tempfile.TemporaryDirectory() as folder:
        case.save(Path(folder))
        peer = case.side == "peer"
        python = arguments.peer_python if peer else Path(sys.executable)
        script = HERE / "sides" / ("training_crosslayer.py" if peer else "training_ours.py")
        side = Side(python, script, Path(folder), arguments.device, arguments.threads)
        memory = side.ask(kind="memory")["extra_memory_mb"]
        kinds = {"ours": ["backward", "step", "floor"], "frugal": ["step"]}.get(case.side, ["backward", "step"])
        times: dict[str, list[float]] = {kind: [] for kind in ("backward", "step", "floor")}
        for _ in range(arguments.repeats):
            for kind in kinds:
                times[kind].append(side.ask(kind=kind)["seconds"])
        side.close()
    medians = {kind: statistics.median(seconds) if seconds else 0.0 for kind, seconds in times.items()}
    measured = Measured(medians["backward"], medians["step"], memory, medians["floor"])
    cost = f"{measured.backward:>8.3f} s  {measured.step:>8.3f} s {measured.extra_memory_mb:>8.0f} MB"
    print(f"  {case.side:<8} forward and backward, whole step, extra memory: {cost}", flush=True)
    return measured


def compare(name: str, nonlinearity: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Measure all sides of one shape and nonlinearity in turns, and return the numbers that are reported."""
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
    medians = {side: Measured(*map(statistics.median, zip(*rounds, strict=True))) for side, rounds in runs.items()}
    return summary(medians, arguments.tokens)


def summary(medians: dict[str, Measured], tokens: int) -> dict[str, float]:
    """The numbers that are reported.

    Ratios of speed divide the other side's time by ours; ratios of memory and of the floor divide ours by the other's.
    """
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
    """Print the numbers of one shape beside their aims."""
    for key, value in result.items():
        quantity = key.removesuffix("_dense").removesuffix("_peer")
        least, most = AIMS.get(name, {}).get(quantity.removeprefix("frugal_")), LIMITS.get(name, {}).get(quantity)
        aim = f"   (aim: at least {least})" if least else f"   (aim: at most {most})" if most else ""
        print(f"  {key:<26}{value:>12.3f}{aim}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shapes", nargs="+", choices=SHAPES, default=["A", "B", "C"], help="shapes to measure (default: A B C)")
    add("--nonlinearities", nargs="+", choices=["topk", "jumprelu"], default=["topk", "jumprelu"], help=_NONLINEARITIES)
    add("--tokens", type=int, default=1024, help="tokens of a batch (default: 1024)")
    add("--active", type=int, default=32, help="active features per token and layer (default: 32)")
    add("--peer-python", type=Path, help="Python of an environment with decode-clt (default: the peer is left out)")
    add("--rounds", type=int, default=3, help="processes of each side (default: 3)")
    add("--repeats", type=int, default=3, help="timed steps of each process (default: 3)")
    add("--device", default="cpu", help="device of all sides: cpu or cuda (default: cpu)")
    add("--threads", type=int, default=torch.get_num_threads(), help="threads of each side (default: PyTorch's)")
    add("--clock", choices=["wall", "processor"], default="wall", help=_CLOCK)
    add("--precision", choices=["highest", "high", "medium"], default="medium", help=_PRECISION)
    return parser.parse_args()


def main() -> None:
    """Measure every shape with every nonlinearity that the command line names, and print the numbers."""
    arguments = parse()
    for name, value in KEEP_MEMORY.items():
        os.environ.setdefault(name, value)
    results: dict[str, Any] = {}
    for name in arguments.shapes:
        for nonlinearity in arguments.nonlinearities:
            result = compare(name, nonlinearity, arguments)
            report(name, result)
            results[f"{name}_{nonlinearity}"] = {key: round(value, 4) for key, value in result.items()}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
