"""Encoder benchmark: the sparse encoder against the matrix product and the top-k that it cannot do without.

    python benchmarks/encoder.py

    ours    SparseEncoder.encode_layer, with thresholds, on a random layer in memory
    floor   for each chunk of positions, the product of hidden states and encoder, and torch.topk of the result

The sides take turns, and medians are reported. Memory is the peak of anonymous memory during a call minus that before
it, without the results. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from open_clt.transcoders.encoder.layers import LayerEncoder
from open_clt.transcoders.encoder.sparse_encoder import SparseEncoder

sys.path.append(str(Path(__file__).parent))
from out_of_core import peak_memory

AIMS = {"ratio_to_floor": 1.3}


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=2048, help="positions that are encoded")
    parser.add_argument("--d-model", type=int, default=4096, help="width of the hidden states")
    parser.add_argument("--features", type=int, default=32_768, help="features of the layer")
    parser.add_argument("--active", type=int, default=64, help="mean number of active features at each position")
    parser.add_argument("--top-k", type=int, default=20, help="features that are kept at each position")
    parser.add_argument("--chunk-size", type=int, default=512, help="positions that are encoded at once")
    parser.add_argument("--threads", type=int, default=2, help="number of threads")
    parser.add_argument("--repeats", type=int, default=5, help="number of calls of each side")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(arguments)
    print(f"ratio_to_floor    {result['ratio_to_floor']:.3f}   aim: at most {AIMS['ratio_to_floor']}")
    print(json.dumps(result))


@torch.no_grad()
def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Let the sides take turns on the same layer and the same hidden states."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, arguments.positions, arguments.d_model, generator=generator)
    weight = torch.randn(arguments.features, arguments.d_model, generator=generator) / arguments.d_model**0.5
    bias = torch.zeros(arguments.features)
    sample = functional.linear(hidden[0, :64], weight)
    threshold = sample.flatten().topk(64 * arguments.active).values[-1]  # so that this many features are active
    layer = LayerEncoder(weight=weight, bias=bias, thresholds=threshold.expand(arguments.features).contiguous())
    encoder = SparseEncoder({0: layer}, top_k=arguments.top_k, chunk_size=arguments.chunk_size)
    sides: dict[str, Callable[[], object]] = {
        "ours": lambda: encoder.encode_layer(0, hidden),
        "floor": lambda: plain(hidden[0], weight, bias, arguments.top_k, arguments.chunk_size),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    memory: dict[str, list[float]] = {name: [] for name in sides}
    for function in sides.values():  # the first call starts threads
        function()
    for _ in range(arguments.repeats):
        for name, function in sides.items():
            with peak_memory() as peak:
                started = time.perf_counter()
                function()
                seconds[name].append(time.perf_counter() - started)
            memory[name].append(peak.anonymous / 1e6)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    extra = {name: statistics.median(peaks) for name, peaks in memory.items()}
    dense = arguments.positions * arguments.features * 4 / 1e6
    print(f"{arguments.positions} positions, width {arguments.d_model}, {arguments.features} features,", end=" ")
    print(f"chunks of {arguments.chunk_size}; all pre-activations would take {dense:.0f} MB")
    for name in sides:
        print(f"  {name:<6}{medians[name]:>8.3f} s{extra[name]:>8.0f} MB")
    return {
        "ratio_to_floor": medians["ours"] / medians["floor"],
        "extra_memory_mb": extra["ours"],
        "floor_extra_memory_mb": extra["floor"],
        "seconds": medians["ours"],
        "speedup_peer": None,
    }


def plain(hidden: Tensor, weight: Tensor, bias: Tensor, top_k: int, chunk_size: int) -> list[Tensor]:
    """The least that an encoder with a top-k has to do."""
    return [
        functional.linear(hidden[start : start + chunk_size], weight, bias).topk(top_k, dim=1).values
        for start in range(0, len(hidden), chunk_size)
    ]


if __name__ == "__main__":
    main()
