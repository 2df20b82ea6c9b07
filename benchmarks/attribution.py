"""Speed and memory of attribution, against autograd, circuit-tracer, and the machine's own matrix products.

    python benchmarks/attribution.py
    python benchmarks/attribution.py --peer-python PATH     an environment with PyPI's circuit-tracer 0.5.0
    python benchmarks/attribution.py --device cuda

A random model and cross-layer transcoder are made once and read by both sides. Each side is a process of its own, with
as many threads and the same precision (float32, no shortcuts); runs take turns, and medians are reported. Memory is
what a call needs at its peak above what the process held before it: resident memory on a CPU, allocations on a GPU.

    ours           attribute(..., compatible=True), defaults otherwise
    peer           circuit-tracer's attribute, at its default batch and at 64
    long           ours on a longer prompt with a larger budget
    twin           the rows again by autograd, one backward pass each (tests/reference); timed on some rows
    floor          the time that the adjoint's matrix products would take at the rate of one large product

Both sides pick the features that they attribute, so graphs of the prompt are compared on what both have; and a short
prompt, all of whose features are attributed, is compared whole. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from attribution_process import Run, Side
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent
OURS, PEER = "ours.safetensors", "peer.safetensors"
SIZES = ("layers", "d_model", "heads", "vocabulary", "features", "active", "tokens", "seed")
AIMS = {"speedup_default_batch": 12, "speedup_batch_64": 8, "memory_ratio": 0.25, "floor_ratio": 3}


class Bench:
    """Both sides, and the prompt."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.folder = folder
        sizes = {name: getattr(arguments, name) for name in SIZES}
        settings = (folder, arguments.device, arguments.threads)
        self.ours = Side(Path(sys.executable), HERE / "attribution_ours.py", *settings)
        self.prompt: list[int] = self.ours.ask(
            kind="make", **sizes, context=max(arguments.tokens, arguments.long_tokens)
        )["prompt"]
        peer, script = arguments.peer_python, HERE / "attribution_circuit_tracer.py"
        self.peer = None if peer is None else Side(peer, script, *settings)

    def run(self, side: Side, tokens: int, budget: int | None, batch_size: int | None = None, save: str = "") -> Run:
        """One graph; ``save`` keeps it for a comparison."""
        path = str(self.folder / save) if save else None
        answer = side.ask(kind="graph", prompt=self.prompt[:tokens], budget=budget, batch_size=batch_size, save=path)
        found = Run(answer["seconds"], answer["extra_memory_mb"])
        of = f"{budget or 'all'} of {answer['active']} features"
        batch = f"batch {batch_size or 'default'}"
        name = "ours" if side is self.ours else "circuit-tracer"
        cost = f"{found.seconds:>8.2f} s{found.extra_memory_mb:>8.0f} MB"
        print(f"  {name:<15}{tokens:>4} tokens  {of:<25}{batch:<15}{cost}", flush=True)
        return found

    def difference(self, tokens: int, budget: int | None) -> float:
        """Largest difference between the graphs that were saved as ours and as the peer's."""
        ours, peer = (load_file(self.folder / name) for name in (OURS, PEER))
        # What has no row counts as error in our graph and is left out of the other: compare errors only without any.
        names = [node_names(graph, tokens, errors=budget is None) for graph in (ours, peer)]
        shared = [name for name in names[0] if name in names[1]]
        left, right = (
            graph["adjacency"][places][:, places]
            for graph, places in ((g, [n[name] for name in shared]) for g, n in zip((ours, peer), names, strict=True))
        )
        found = float((left - right).abs().max())
        print(
            f"  {len(shared)} of {len(names[1])} nodes compared: edges up to {right.abs().max():.2f}, {found:.1e} apart"
        )
        return found

    def close(self) -> None:
        """End both processes."""
        for side in (self.ours, self.peer):
            if side is not None:
                side.close()


def node_names(graph: dict[str, Tensor], tokens: int, *, errors: bool) -> dict[Any, int]:
    """Number of each node in a graph, by what it is; both sides number features, errors, tokens and outputs so."""
    features = [tuple(row) for row in graph["features"].tolist()]
    outputs = [("output", token) for token in graph["logits"].tolist()]
    others = len(graph["adjacency"]) - len(features) - len(outputs)
    kinds = [("error", i) for i in range(others - tokens)] + [("token", i) for i in range(tokens)]
    numbers = {name: number for number, name in enumerate([*features, *kinds, *outputs])}
    return {name: number for name, number in numbers.items() if errors or name[0] != "error"}


def median(runs: Sequence[Run]) -> Run:
    """Medians of time and of memory."""
    return Run(*(statistics.median(column) for column in zip(*runs, strict=True)))


def measure(bench: Bench, arguments: argparse.Namespace) -> dict[str, float]:
    """Take turns, compare, and say what came out."""
    tokens, budget, peer = arguments.tokens, arguments.budget, bench.peer
    bench.run(bench.ours, arguments.check_tokens, 16)  # a first call starts threads and loads libraries
    if peer is not None:
        bench.run(peer, arguments.check_tokens, 16, 16)
    ours: list[Run] = []
    rates: list[float] = []
    theirs: dict[int | None, list[Run]] = {None: [], 64: []}
    for _ in range(arguments.repeats):
        for batch_size, runs in theirs.items():
            ours.append(bench.run(bench.ours, tokens, budget, save=OURS))
            rates.append(bench.ours.ask(kind="rate")["flop_per_second"])
            if peer is not None:
                runs.append(bench.run(peer, tokens, budget, batch_size, save=PEER))
    result: dict[str, float] = median(ours)._asdict()
    result |= floor(bench, tokens, budget, result["seconds"], statistics.median(rates))
    if peer is not None:
        default, small = (median(runs) for runs in theirs.values())
        result["speedup_default_batch"] = default.seconds / result["seconds"]
        result["speedup_batch_64"] = small.seconds / result["seconds"]
        result["memory_ratio"] = result["extra_memory_mb"] / default.extra_memory_mb
        result["memory_ratio_batch_64"] = result["extra_memory_mb"] / small.extra_memory_mb
        differences = [bench.difference(tokens, budget)]
        for side, name in ((bench.ours, OURS), (peer, PEER)):
            bench.run(side, arguments.check_tokens, None, 64, save=name)
        result["max_abs_diff"] = max(*differences, bench.difference(arguments.check_tokens, None))
    result |= twin(bench, arguments, result["seconds"])
    long = median(
        [bench.run(bench.ours, arguments.long_tokens, arguments.long_budget) for _ in range(arguments.repeats)]
    )
    return result | {"long_seconds": long.seconds, "long_extra_memory_mb": long.extra_memory_mb}


def floor(bench: Bench, tokens: int, budget: int, seconds: float, rate: float) -> dict[str, float]:
    """The time that the adjoint's matrix products would take by themselves, at ``rate`` FLOP a second."""
    flop = bench.ours.ask(kind="flop", prompt=bench.prompt[:tokens], budget=budget)["flop"]
    print(f"  floor: {flop / 1e9:.1f} GFLOP at {rate / 1e9:.1f} GFLOP/s, {flop / rate:.3f} s")
    return {"floor_ratio": seconds * rate / flop, "gflop": flop / 1e9}


def twin(bench: Bench, arguments: argparse.Namespace, seconds: float) -> dict[str, float]:
    """The slow twin, on some of the rows."""
    settings = {"prompt": bench.prompt[: arguments.tokens], "budget": arguments.budget}
    found = bench.ours.ask(kind="twin", **settings, rows=arguments.twin_rows)
    whole = found["seconds_a_row"] * found["rows"]
    print(f"  autograd: {found['seconds_a_row']:.2f} s a row, {whole:.0f} s for all {found['rows']} rows")
    return {"twin_speedup": whole / seconds, "twin_max_abs_diff": found["max_abs_diff"]}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--peer-python", type=Path, default=None, help="the Python of an environment that has circuit-tracer")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add("--threads", type=int, default=torch.get_num_threads(), help="of both sides (default: PyTorch's)")
    add("--repeats", type=int, default=3, help="medians are of so many runs (default: 3)")
    add("--layers", type=int, default=12, help="(default: 12)")
    add("--d-model", type=int, default=768, help="(default: 768)")
    add("--heads", type=int, default=12, help="(default: 12)")
    add("--vocabulary", type=int, default=50257, help="(default: 50257)")
    add("--features", type=int, default=4096, help="of the transcoder, a layer (default: 4096)")
    add("--active", type=int, default=20, help="features active a layer and position (default: 20)")
    add("--tokens", type=int, default=24, help="length of the prompt (default: 24)")
    add("--budget", type=int, default=1024, help="features attributed (default: 1024)")
    add("--check-tokens", type=int, default=6, help="length of the prompt that is compared whole (default: 6)")
    add("--long-tokens", type=int, default=128, help="length of the longer prompt (default: 128)")
    add("--long-budget", type=int, default=2048, help="features attributed there (default: 2048)")
    add("--twin-rows", type=int, default=8, help="rows that the slow twin computes (default: 8)")
    add("--seed", type=int, default=0, help="of the random model (default: 0)")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, Path(folder))
        try:
            result = measure(bench, arguments)
        finally:
            bench.close()
    for name, aim in AIMS.items():
        if name in result:
            sign = "at least" if name.startswith("speedup") else "at most"
            print(f"  {name}: {result[name]:.3g}, aim {sign} {aim}")
    print(json.dumps({name: float(f"{number:.4g}") for name, number in result.items()}))


if __name__ == "__main__":
    main()
