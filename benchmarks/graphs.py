"""Graphs benchmark: time and memory from a prompt to its pruned and scored graph, and how both grow.

    python benchmarks/graphs.py --figure docs/graphs.png           everything but the study of the limit
    python benchmarks/graphs.py --figure docs/graphs.png --limit   whole graphs of GPT-2's shape up to --memory-gb
    python benchmarks/graphs.py --parts budget whole               some of the parts

    whole      whole graphs of the embedded model, against the commit --before, which is checked out into a temporary
               directory; both sides take turns, and medians are compared. Edges, their order and scores must not differ
    budget     with a budget, from the prompt to the layout of the graph's picture, the language model loaded
    growth     the embedded model, and a random model of GPT-2-small's shape, whole and with a budget

Each side and each model has its own process. Memory is the peak of resident memory during a call minus the memory
before it. The last line is JSON: the seconds of the budget at 50 and at 120 tokens, and the smallest speedup and the
largest ratio of memory of whole graphs. On a loaded machine, ratios of processor time (``speedup_cpu``) vary less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parent / "sides"))
from attribution_process import Side

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "sides" / "graphs_case.py"
BEFORE = "4caabcf"
"""The commit before edges were stored by rows."""
PARTS = ("budget", "whole", "growth")
COMPARED = (50, 120)
EMBEDDED = (10, 20, 35, 50, 70, 90, 120, 127)
BUDGETED, WHOLE = (10, 30, 100, 250, 500), (10, 20, 35)
GPT2 = {
    "layers": 12,
    "d_model": 768,
    "heads": 12,
    "vocabulary": 50257,
    "features": 2048,
    "active": 20,
    "context": 512,
    "seed": 0,
}
TINY = {
    "layers": 2,
    "d_model": 32,
    "heads": 4,
    "vocabulary": 200,
    "features": 64,
    "active": 4,
    "context": 64,
    "seed": 0,
}
_TICKS = (10, 20, 50, 100, 200, 500)
_STEP = 1.4
"""Factor between the lengths of the study of the limit."""


class Point(NamedTuple):
    """The cost of one graph."""

    model: str
    budget: int | None
    tokens: int
    active: int
    edges: int
    seconds: float
    mb: float


@contextmanager
def tree_of(revision: str) -> Iterator[Path]:
    """The files of a commit in a temporary directory."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(tree), revision], check=True, capture_output=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True, capture_output=True)


@contextmanager
def side(tree: Path, threads: int, **first: Any) -> Iterator[Side]:
    """The process of one version and one model."""
    with tempfile.TemporaryDirectory() as folder:
        process = Side(Path(sys.executable), SCRIPT, Path(folder), "cpu", threads, str(tree))
        try:
            process.ask(**first)
            yield process
        finally:
            process.close()


def compare(arguments: argparse.Namespace) -> dict[str, float]:
    """Let both versions compute whole graphs in turns; returns ratios of their medians."""
    result: dict[str, float] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trees = {"before": stack.enter_context(tree_of(arguments.before)), "now": ROOT}
        sides = {
            name: stack.enter_context(side(tree, arguments.threads, kind="embedded")) for name, tree in trees.items()
        }
        for tokens in arguments.compared:
            runs: dict[str, list[dict[str, Any]]] = {"before": [], "now": []}
            for name, process in sides.items():  # a first run, which is compared but not counted
                runs[name].append(process.ask(kind="graph", tokens=tokens, budget=None, save=str(folder / name)))
            same(runs["before"].pop(), runs["now"].pop(), folder)
            for _ in range(arguments.repeats):
                for name, process in sides.items():
                    answer = process.ask(kind="graph", tokens=tokens, budget=None)
                    runs[name].append(answer)
                    print(f"  {name:<8}{tokens:>4} tokens {answer['edges']:>12,} edges  {costs(answer)}", flush=True)
            keys = ("seconds", "cpu_seconds", "extra_memory_mb")
            ratios = {key: median(runs["before"], key) / median(runs["now"], key) for key in keys}
            result[f"speedup_{tokens}"] = ratios["seconds"]
            result[f"speedup_cpu_{tokens}"] = ratios["cpu_seconds"]
            result[f"memory_ratio_{tokens}"] = 1 / ratios["extra_memory_mb"]
            memory = result[f"memory_ratio_{tokens}"]
            print(f"  {tokens} tokens: {ratios['seconds']:.1f} times as fast, {memory:.2f} of the memory", flush=True)
    result["speedup_whole"] = min(result[f"speedup_{tokens}"] for tokens in arguments.compared)
    result["memory_ratio"] = max(result[f"memory_ratio_{tokens}"] for tokens in arguments.compared)
    return result


def same(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """End the program if the graphs of the two versions differ."""
    edges = {name: load_file(folder / name) for name in ("before", "now")}
    is_same = before["ids"] == now["ids"]
    for column in ("target", "source"):
        is_same &= torch.equal(*(columns[column] for columns in edges.values()))
    difference = edges["before"]["weight"].sub_(edges["now"]["weight"]).abs_().max() if is_same else torch.inf
    scores = max(abs(first - second) for first, second in zip(before["scores"], now["scores"], strict=True))
    print(f"  the same nodes and edges: {is_same}; weights differ by {difference:.1e}, scores by {scores:.1e}")
    if not (is_same and difference < 1e-6 and scores < 1e-6):
        raise SystemExit("The graphs of the two versions differ.")


def median(runs: Sequence[dict[str, Any]], key: str) -> float:
    """The median of one number of several runs."""
    return statistics.median(run[key] for run in runs)


def costs(answer: dict[str, Any]) -> str:
    """The times and the memory of one answer."""
    parts = [f"{name.removesuffix('_seconds')} {value:.2f}" for name, value in answer.items() if "_seconds" in name]
    return f"{answer['seconds']:7.2f} s ({', '.join(parts)}) {answer['extra_memory_mb']:7.0f} MB"


def painted(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds from a prompt to the layout of its graph's picture, with a budget."""
    with side(ROOT, arguments.threads, kind="embedded") as process:
        result: dict[str, float] = {}
        for tokens in arguments.compared:
            request = {"kind": "graph", "tokens": tokens, "budget": arguments.budget, "paint": True}
            answers = [process.ask(**request) for _ in range(1 + arguments.repeats)][1:]
            result[f"seconds_{tokens}"] = median(answers, "seconds")
            print(f"  budget {arguments.budget}, {tokens} tokens: {costs(answers[-1])}", flush=True)
    return result


def growth(arguments: argparse.Namespace) -> list[Point]:
    """The cost of graphs of growing length, of both models."""
    points: list[Point] = []

    def add(process: Side, model: str, tokens: int, budget: int | None) -> None:
        answer = process.ask(kind="graph", tokens=tokens, budget=budget)
        point = Point(
            model, budget, tokens, answer["active"], answer["edges"], answer["seconds"], answer["extra_memory_mb"]
        )
        points.append(point)
        what = "whole" if budget is None else f"budget {budget}"
        print(f"  {model:<9}{what:<12}{tokens:>4} tokens {point.active:>7,} features  {costs(answer)}", flush=True)

    with side(ROOT, arguments.threads, kind="embedded") as process:
        for budget in (None, arguments.budget):
            process.ask(kind="graph", tokens=10, budget=budget)  # the first call starts threads and loads libraries
            for tokens in arguments.embedded:
                add(process, "embedded", tokens, budget)
    shape = {**(TINY if arguments.tiny else GPT2), "tokens": min(arguments.budgeted[-1], 64)}
    with side(ROOT, arguments.threads, kind="random", shape=shape) as process:
        for tokens in arguments.budgeted:
            add(process, "GPT-2", tokens, arguments.budget)
        for tokens in arguments.whole:
            add(process, "GPT-2", tokens, None)
        limit = longest(process, shape["context"], arguments.memory_gb)
        where = "the longest that the model reads" if limit == shape["context"] else "longer ones do not"
        print(
            f"  whole graphs of {limit} tokens fit into {arguments.memory_gb} GB; {where} (edges counted, not computed)"
        )
        tokens = arguments.whole[-1]
        while arguments.limit and (tokens := int(tokens * _STEP)) <= limit:
            add(process, "GPT-2", tokens, None)
    return points


def longest(process: Side, context: int, memory_gb: float) -> int:
    """The longest whole graph whose edges fit into memory, by bisection."""
    fits, fails = 2, context + 1
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if process.ask(kind="edges", tokens=middle)["mb"] <= 1000 * memory_gb:
            fits = middle
        else:
            fails = middle
    return fits


def draw(points: Sequence[Point], path: Path) -> None:
    """Time and memory, against the tokens of both models and against the number of active features."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes = figure.subplots(2, 3, sharey="row")
    panels = (("embedded", "tokens"), ("GPT-2", "tokens"), (None, "active"))
    for column, (model, across) in enumerate(panels):
        longest_prompt = max(point.tokens for point in points if model in (None, point.model))
        for series in dict.fromkeys((point.model, point.budget) for point in points):
            if model not in (None, series[0]):
                continue
            line = sorted((p for p in points if (p.model, p.budget) == series), key=lambda point: point.tokens)
            style = {
                "color": "#0072B2" if series[0] == "embedded" else "#D55E00",
                "linestyle": "-" if series[1] is None else "--",
                "marker": "o" if series[1] is None else "s",
                "label": f"{series[0]}, {'whole' if series[1] is None else f'budget {series[1]}'}",
            }
            places = [getattr(point, across) for point in line]
            axes[0, column].plot(places, [point.seconds for point in line], markersize=4, **style)
            axes[1, column].plot(places, [point.mb for point in line], markersize=4, **style)
        name = {"embedded": "embedded model", "GPT-2": "GPT-2-small's shape", None: "both models"}[model]
        axes[0, column].set_title(name, fontsize=10)
        axes[1, column].set_xlabel("tokens of the prompt" if across == "tokens" else "active features")
        for row in axes[:, column]:
            row.set(xscale="log", yscale="log")
            row.grid(alpha=0.3)
            row.xaxis.set_minor_formatter(NullFormatter())
            row.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            if across == "tokens":
                row.set_xticks([tick for tick in _TICKS if tick <= longest_prompt])
    axes[0, 0].set_ylabel("seconds to the pruned,\nscored graph")
    axes[1, 0].set_ylabel("extra memory, MB")
    lines, names = axes[0, 2].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--before", default=BEFORE, help=f"commit that whole graphs are compared with (default: {BEFORE})")
    add("--parts", nargs="+", default=PARTS, choices=PARTS, help="parts to measure (default: all)")
    add("--limit", action="store_true", help="compute ever longer whole graphs of GPT-2's shape, up to --memory-gb")
    add("--memory-gb", type=float, default=12.0, help="memory of the longest whole graph (default: 12)")
    add("--figure", type=Path, default=None, help="file of the figure")
    add("--repeats", type=int, default=5, help="counted runs that each median is taken of (default: 5)")
    add("--threads", type=int, default=2, help="threads of each process (default: 2)")
    add("--budget", type=int, default=500, help="features that are attributed with a budget (default: 500)")
    add("--compared", type=int, nargs="+", default=COMPARED, help="tokens of the compared graphs (default: 50 120)")
    add("--embedded", type=int, nargs="+", default=EMBEDDED, help="tokens of the embedded model's graphs")
    add("--budgeted", type=int, nargs="+", default=BUDGETED, help="tokens of GPT-2's graphs with a budget")
    add("--whole", type=int, nargs="+", default=WHOLE, help="tokens of GPT-2's whole graphs")
    add("--tiny", action="store_true", help="use a tiny random model instead of one of GPT-2's shape")
    return parser.parse_args()


def main() -> None:
    """Measure, draw, and print the numbers."""
    arguments = parse()
    result = painted(arguments) if "budget" in arguments.parts else {}
    if "whole" in arguments.parts:
        result |= compare(arguments)
    if "growth" in arguments.parts:
        points = growth(arguments)
        if arguments.figure is not None:
            draw(points, arguments.figure)
    print(json.dumps({name: float(f"{value:.4g}") for name, value in result.items()}))


if __name__ == "__main__":
    main()
