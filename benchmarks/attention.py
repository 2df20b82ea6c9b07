"""Cost of explaining attention: a sweep over a graph's heads, and one layer beside the adjoint rows that it needs.

    python benchmarks/attention.py

The sweep takes the graph of the embedded model's two-hop prompt, pruned with the default thresholds, and explains every
look of a head that carries at least 1 % of any kept edge: ``with_attention`` (which also splits the edges by heads and
positions) and the explanations alone, with a new explainer. The aim for the sweep is under 3 s on two idle cores.

The second part explains all heads of one layer for one query and one key. Each needs two vectors of ``d_head`` numbers,
and each number is one row of the adjoint walk. So the same number of rows is walked from random linear functions of the
stream at the same positions, in turns with the explanations, and the ratio of the medians is printed.

All times are wall and processor seconds, medians of ``--repeats`` runs. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from open_clt.attribution.adjoint import before, walk
from open_clt.attribution.attribute import attribute
from open_clt.attribution.graph_attention import with_attention
from open_clt.attribution.qk import AttentionExplainer
from open_clt.attribution.sources import Sources, attributable, find_sources
from open_clt.embedded import START_PROMPT
from open_clt.graphs.attention import Look
from open_clt.language.linear_path import read_linear_path
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder

AIM_SECONDS = 3.0
SHARE = 0.01


class Times(NamedTuple):
    """Medians of some runs, in seconds."""

    wall: float
    processor: float


def in_turns(repeats: int, *works: Callable[[], object]) -> list[Times]:
    """The times of some works that run in turns, after one run of each that is not counted."""
    runs: list[list[Times]] = [[] for _ in works]
    for repeat in range(repeats + 1):
        for work, of_work in zip(works, runs, strict=True):
            wall, processor = time.perf_counter(), time.process_time()
            work()
            if repeat:
                of_work.append(Times(time.perf_counter() - wall, time.process_time() - processor))
    return [Times(*(statistics.median(column) for column in zip(*of_work, strict=True))) for of_work in runs]


class Bench:
    """The embedded model on the two-hop prompt."""

    def __init__(self) -> None:
        clt = OpenCrossLayerTranscoder.from_pretrained("embedded")
        self.model, self.transcoder = clt.language_model, clt.transcoder
        self.graph = attribute(self.model, self.transcoder, START_PROMPT)
        self.pruned = self.graph.prune()
        self.explainer = AttentionExplainer(self.model, self.transcoder, START_PROMPT)

    def sweep(self) -> list[Look]:
        """Explain the heads of all kept edges, and return what was explained."""
        explained = with_attention(self.model, self.transcoder, self.graph, part=self.pruned, share=SHARE)
        assert explained.attention is not None
        return [look.look for look in explained.attention.looks]

    def explain(self, looks: Sequence[Look]) -> int:
        """Explain some looks with a new explainer, and return how many."""
        explainer = AttentionExplainer(self.model, self.transcoder, START_PROMPT)
        return sum(bool(explanation.pairs(10, constants=False)) for explanation in explainer.explain_all(looks))

    def sources(self) -> Sources:
        """The sources of the prompt."""
        config = self.transcoder.config
        path = read_linear_path(self.model, self.model.tokenize(START_PROMPT), config.input_hook, config.target_hook)
        return find_sources(path, attributable(self.transcoder, self.model))


def rows_of(sources: Sources, layer: int, query: int, key: int, rows: int) -> Callable[[], object]:
    """A work that walks as many rows at each of two positions, from random functions of the stream before a layer."""
    positions = torch.tensor([query] * rows + [key] * rows)
    functions = torch.randn(2 * rows, sources.path.d_model, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def work() -> object:
        cotangents = torch.zeros(2 * rows, max(query, key) + 1, sources.path.d_model)
        cotangents[torch.arange(2 * rows), positions] = functions
        return walk(sources, cotangents, torch.full_like(positions, before(layer)), positions=positions)

    return work


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both parts, and print the times and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each work (default: 5)")
    parser.add_argument("--layer", type=int, default=4, help="layer whose heads are explained (default: 4, the last)")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default: 2)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    bench = Bench()
    looks = bench.sweep()
    sweep, alone = in_turns(chosen.repeats, bench.sweep, lambda: bench.explain(looks))
    query, key, scores = len(bench.explainer.token_strings) - 1, 7, bench.explainer.scores[chosen.layer]
    heads = [Look(chosen.layer, head, query, key) for head in range(scores.n_heads)]
    d_head = scores.q.shape[-1]
    walked = rows_of(bench.sources(), chosen.layer, query, key, scores.n_heads * d_head)
    layer, rows = in_turns(4 * chosen.repeats, lambda: list(bench.explainer.explain_all(heads)), walked)
    load = os.getloadavg()[0]
    print(f"sweep: {len(looks)} looks, {bench.pruned.n_edges} edges kept, load {load:.1f}")
    lines = {"sweep": sweep, "explanations alone": alone, "heads of a layer": layer, "their rows": rows}
    for name, times in lines.items():
        print(f"{name:<20}{times.wall:>9.4f} s wall{times.processor:>9.4f} s processor")
    ratio, processor_ratio = layer.wall / rows.wall, layer.processor / rows.processor
    print(f"one layer beside 2 x {d_head} rows a head: {ratio:.2f} (processor {processor_ratio:.2f})")
    print(f"aim: the sweep in under {AIM_SECONDS:.0f} s on two idle cores; {sweep.wall:.2f} s at load {load:.1f}")
    content = {
        "looks": len(looks),
        "sweep_seconds": round(sweep.wall, 3),
        "sweep_processor_seconds": round(sweep.processor, 3),
        "explain_seconds": round(alone.wall, 3),
        "explain_processor_seconds": round(alone.processor, 3),
        "layer_seconds": round(layer.wall, 5),
        "rows_seconds": round(rows.wall, 5),
        "ratio": round(ratio, 3),
        "processor_ratio": round(processor_ratio, 3),
        "load": round(load, 1),
    }
    print(json.dumps(content))


if __name__ == "__main__":
    main()
