"""Attribution benchmark: speed and memory against autograd, circuit-tracer, and one large matrix product.

    python benchmarks/attribution.py
    python benchmarks/attribution.py --peer-python PATH     the Python of an environment with circuit-tracer 0.5.0
    python benchmarks/attribution.py --device cuda

The script makes a random model and a random cross-layer transcoder, and both sides read them. Each side runs in a
separate process, with the same number of threads and the same precision (float32 throughout). The sides take turns, and
medians are reported. Memory is the peak during a call minus what the process held before the call: resident memory on a
CPU, allocations on a GPU.

    ours           attribute(..., compatible=True) with the other settings at their defaults
    peer           circuit-tracer's attribute, at its default batch size and at batch size 64
    long           ours on a longer prompt with a larger budget
    twin           the same rows by autograd, one backward pass for each row (tests/reference); only some rows are timed
    floor          the time that the adjoint's matrix products would take at the rate of one large product

Each side chooses which features it attributes, so the two graphs of the prompt are compared on the nodes that both
have. On a short prompt every feature is attributed, and the two graphs are compared as a whole. The last line is JSON.
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
from safetensors.torch import load_file
from torch import Tensor

sys.path.append(str(Path(__file__).parent / "sides"))
from attribution_process import Run, Side

HERE = Path(__file__).parent
OURS, PEER = "ours.safetensors", "peer.safetensors"
SIZES = ("layers", "d_model", "heads", "vocabulary", "features", "active", "tokens", "seed")
AIMS = {"speedup_default_batch": 12, "speedup_batch_64": 8, "memory_ratio": 0.25, "floor_ratio": 3}


class Bench:
    """The processes of both sides, and the prompt."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, *, stored: bool = False) -> None:
        """Start the processes; with ``stored``, decoders stay in their files on both sides, and encoders on ours."""
        self.folder = folder
        sizes = {name: getattr(arguments, name) for name in SIZES}
        settings = (folder, arguments.device, arguments.threads, *(["stored"] if stored else []))
        self.ours = Side(Path(sys.executable), HERE / "sides" / "attribution_ours.py", *settings)
        self.prompt: list[int] = self.ours.ask(
            kind="make", **sizes, context=max(arguments.tokens, arguments.long_tokens)
        )["prompt"]
        peer, script = arguments.peer_python, HERE / "sides" / "attribution_circuit_tracer.py"
        self.peer = None if peer is None else Side(peer, script, *settings)

    def run(self, side: Side, tokens: int, budget: int | None, batch_size: int | None = None, save: str = "") -> Run:
        """Compute one graph and return its cost; ``save`` is the name of a file in which the graph is kept."""
        path = str(self.folder / save) if save else None
        answer = side.ask(kind="graph", prompt=self.prompt[:tokens], budget=budget, batch_size=batch_size, save=path)
        run = Run(answer["seconds"], answer["extra_memory_mb"])
        attributed = f"{budget or 'all'} of {answer['active']} features"
        batch = f"batch {batch_size or 'default'}"
        name = "ours" if side is self.ours else "circuit-tracer"
        cost = f"{run.seconds:>8.2f} s{run.extra_memory_mb:>8.0f} MB"
        print(f"  {name:<15}{tokens:>4} tokens  {attributed:<25}{batch:<15}{cost}", flush=True)
        return run

    def difference(self, tokens: int, budget: int | None) -> float:
        """Largest difference between the edges of our saved graph and those of the peer's saved graph."""
        graphs = [load_file(self.folder / name) for name in (OURS, PEER)]
        # A feature without a row counts as error in our graph and is absent from the peer's graph. Errors are therefore
        # comparable only if the budget covers every feature.
        rows = [node_rows(graph, tokens, errors=budget is None) for graph in graphs]
        shared = [name for name in rows[0] if name in rows[1]]
        ours, peer = (
            _edges_between(graph, [row_of[name] for name in shared]) for graph, row_of in zip(graphs, rows, strict=True)
        )
        largest = float((ours - peer).abs().max())
        print(
            f"  {len(shared)} of {len(rows[1])} nodes compared: edges up to {peer.abs().max():.2f}, {largest:.1e} apart"
        )
        return largest

    def close(self) -> None:
        """End both processes."""
        for side in (self.ours, self.peer):
            if side is not None:
                side.close()


def _edges_between(graph: dict[str, Tensor], rows: list[int]) -> Tensor:
    return graph["adjacency"][rows][:, rows]


def node_rows(graph: dict[str, Tensor], tokens: int, *, errors: bool) -> dict[Any, int]:
    """Row of each node in the adjacency matrix, by what the node is.

    In the graphs of both sides, the rows are features, then errors, then tokens, then outputs.
    """
    features = [tuple(feature) for feature in graph["features"].tolist()]
    outputs = [("output", token) for token in graph["logits"].tolist()]
    n_errors = len(graph["adjacency"]) - len(features) - len(outputs) - tokens
    inputs = [("error", index) for index in range(n_errors)] + [("token", position) for position in range(tokens)]
    rows = {node: row for row, node in enumerate([*features, *inputs, *outputs])}
    return {node: row for node, row in rows.items() if errors or node[0] != "error"}


def median(runs: Sequence[Run]) -> Run:
    """The median of the times and the median of the memory of several runs."""
    return Run(*(statistics.median(column) for column in zip(*runs, strict=True)))


def measure(bench: Bench, arguments: argparse.Namespace) -> dict[str, float]:
    """Let the sides take turns, compare their graphs, and return the numbers that are reported."""
    tokens, budget, peer = arguments.tokens, arguments.budget, bench.peer
    bench.run(bench.ours, arguments.check_tokens, 16)  # the first call starts threads and loads libraries
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
        default_batch, batch_64 = (median(runs) for runs in theirs.values())
        result["speedup_default_batch"] = default_batch.seconds / result["seconds"]
        result["speedup_batch_64"] = batch_64.seconds / result["seconds"]
        result["memory_ratio"] = result["extra_memory_mb"] / default_batch.extra_memory_mb
        result["memory_ratio_batch_64"] = result["extra_memory_mb"] / batch_64.extra_memory_mb
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
    """Compare ``seconds`` with the time that the adjoint's matrix products alone take at ``rate`` FLOP per second."""
    flop = bench.ours.ask(kind="flop", prompt=bench.prompt[:tokens], budget=budget)["flop"]
    print(f"  floor: {flop / 1e9:.1f} GFLOP at {rate / 1e9:.1f} GFLOP/s, {flop / rate:.3f} s")
    return {"floor_ratio": seconds * rate / flop, "gflop": flop / 1e9}


def twin(bench: Bench, arguments: argparse.Namespace, seconds: float) -> dict[str, float]:
    """Compare ``seconds`` with the time of the slow twin, which is measured on some of the rows."""
    settings = {"prompt": bench.prompt[: arguments.tokens], "budget": arguments.budget}
    answer = bench.ours.ask(kind="twin", **settings, rows=arguments.twin_rows)
    all_rows = answer["seconds_a_row"] * answer["rows"]
    print(f"  autograd: {answer['seconds_a_row']:.2f} s per row, {all_rows:.0f} s for all {answer['rows']} rows")
    return {"twin_speedup": all_rows / seconds, "twin_max_abs_diff": answer["max_abs_diff"]}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--peer-python",
        type=Path,
        default=None,
        help="Python of an environment with circuit-tracer",
    )
    add("--device", default="cpu", help="device of both sides: cpu or cuda (default: cpu)")
    add("--threads", type=int, default=torch.get_num_threads(), help="threads of each side (default: PyTorch's)")
    add("--repeats", type=int, default=3, help="runs that each median is taken of (default: 3)")
    add("--layers", type=int, default=12, help="layers of the random model (default: 12)")
    add("--d-model", type=int, default=768, help="width of the random model (default: 768)")
    add("--heads", type=int, default=12, help="attention heads of each layer (default: 12)")
    add("--vocabulary", type=int, default=50257, help="tokens in the vocabulary (default: 50257)")
    add("--features", type=int, default=4096, help="features per layer of the transcoder (default: 4096)")
    add("--active", type=int, default=20, help="active features per layer and position (default: 20)")
    add("--tokens", type=int, default=24, help="tokens of the prompt (default: 24)")
    add("--budget", type=int, default=1024, help="features that are attributed (default: 1024)")
    add("--check-tokens", type=int, default=6, help="tokens of the short prompt (default: 6)")
    add("--long-tokens", type=int, default=128, help="tokens of the long prompt (default: 128)")
    add("--long-budget", type=int, default=2048, help="features that are attributed on the long prompt (default: 2048)")
    add("--twin-rows", type=int, default=8, help="rows that the slow twin computes (default: 8)")
    add("--seed", type=int, default=0, help="seed of the random model (default: 0)")
    return parser.parse_args()


def main() -> None:
    """Measure, and print the numbers beside their aims."""
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
    print(json.dumps({name: float(f"{value:.4g}") for name, value in result.items()}))


if __name__ == "__main__":
    main()
