"""Out-of-core benchmark: attribution with a transcoder that is larger than memory, and with one that fits.

    python benchmarks/out_of_core.py
    python benchmarks/out_of_core.py --folder DIR        where the files go; they are sparse, and deleted at the end
    python benchmarks/out_of_core.py --peer-python PATH  the Python of an environment with circuit-tracer 0.5.0

    large          a transcoder of more than 100 GB, in circuit-tracer's layout in bfloat16. Its files are sparse: they
                   hold weights for some features of each layer, which fire, and holes for the others, which are read
                   as zeros. Memory is measured above that of the language model, and the graph is computed twice.
    fits           a transcoder that fits into memory, loaded in float32, and left in its files. Both compute the same
                   graph in turn; its edges are compared, also bit for bit with blocks as large as a layer.
    peer           circuit-tracer with its lazy decoder, which reads decoders from the files too, while its encoders
                   are in memory. Both sides compute graphs in turn at the shape that fits, for a random GPT-2.

Peak memory is anonymous memory (RssAnon): pages of files that are mapped into memory can be dropped at any time. The
peak of RSS, which counts these pages, is printed beside it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from open_clt.attribution.attribute import attribute
from open_clt.graphs.graph import AttributionGraph
from open_clt.language.language_model import load_language_model
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.load import load_transcoder

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent / "sides"))
from attribution import OURS, PEER, Bench, median
from attribution_inputs import write_tokenizer
from attribution_process import Run, Side

HOOK = "mlp.hook_in"
VOCABULARY = 1000
BUDGET = 1024
"""Number of features that are attributed beside circuit-tracer."""
BATCH = 64
"""Number of rows that both sides compute at a time; larger ones need more memory on the side of circuit-tracer."""
_MB = 1e6
AIMS = {"peak_mb": 1500, "ratio_to_memory": 1.3}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of the random language model and of the transcoder."""

    layers: int
    d_model: int
    features: int
    weighted: int
    """Number of features of each layer that have weights in the files."""
    active: int
    """Mean number of active features per layer and position."""
    tokens: int
    """Length of the prompt."""


LARGE = Shape(layers=26, d_model=2304, features=65_536, weighted=512, active=10, tokens=12)
FITS = Shape(layers=12, d_model=768, features=16_384, weighted=16_384, active=24, tokens=24)


class Rows(NamedTuple):
    """A tensor of which some rows are written; the others are holes in the file, which are read as zeros."""

    shape: tuple[int, ...]
    index: Tensor
    rows: Callable[[int], Tensor]
    """The row at each place of ``index``."""


def main() -> None:
    """Run both parts, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="directory for the files; by default a temporary one")
    parser.add_argument("--threads", type=int, default=2, help="number of threads")
    parser.add_argument("--repeats", type=int, default=5, help="number of graphs of each kind in the second part")
    parser.add_argument("--peer-python", type=Path, help="Python of an environment with circuit-tracer")
    parser.add_argument("--part", choices=["large", "fits"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.part is not None:
        part = large if arguments.part == "large" else fits
        print(json.dumps(part(arguments.folder, arguments.repeats)))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for part in ("large", "fits"):
            results |= _in_process(part, Path(folder) / part, arguments)
        results |= peer(Path(folder), arguments)
    for name, aim in AIMS.items():
        print(f"{name:<18}{results[name]:>10.2f}   aim: at most {aim}")
    print(json.dumps(results))


def large(folder: Path, repeats: int) -> dict[str, Any]:
    """Compute a graph twice with a transcoder that is larger than memory."""
    prompt = make_inputs(folder, LARGE)
    size = sum(path.stat().st_size for path in (folder / "transcoder").iterdir())
    model = load_language_model(folder / "model")
    model.logits(torch.tensor(prompt)[None])  # what a pass needs at its peak belongs to the language model
    with peak_memory() as peak:
        transcoder = load_transcoder(folder / "transcoder", memory_limit=2**30)
        seconds: list[float] = []
        for _ in range(2):
            graph, taken = timed(lambda: attribute(model, transcoder, prompt))
            seconds.append(taken)
    print(f"large: {size / 1e9:.1f} GB in files, {graph.info.n_active_features} active features, {len(prompt)} tokens,")
    print(
        f"       {seconds[0]:.1f} s, then {seconds[1]:.1f} s; above the language model, the peak of anonymous memory",
        end="",
    )
    print(f" is {peak.anonymous / _MB:.0f} MB, that of RSS {peak.resident / _MB:.0f} MB")
    return {
        "gb_in_files": size / 1e9,
        "active": graph.info.n_active_features,
        "peak_mb": peak.anonymous / _MB,
        "peak_rss_mb": peak.resident / _MB,
        "seconds_first": seconds[0],
        "seconds_second": seconds[1],
    }


def fits(folder: Path, repeats: int) -> dict[str, Any]:
    """Compare graphs of a transcoder in memory with those of the same transcoder in its files."""
    prompt = make_inputs(folder, FITS)
    model = load_language_model(folder / "model")
    in_memory = load_transcoder(folder / "transcoder", memory_limit=2**40)
    stored = load_transcoder(folder / "transcoder", memory_limit=1)
    assert isinstance(stored, CrossLayerTranscoder)
    assert stored.stored is not None
    graphs = [attribute(model, transcoder, prompt) for transcoder in (in_memory, stored)]  # the first ones
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for transcoder, of_transcoder in zip((in_memory, stored), seconds, strict=True):
            of_transcoder.append(timed(lambda transcoder=transcoder: attribute(model, transcoder, prompt))[1])
    stored.stored = replace(stored.stored, block_numbers=2**40)
    blocks_of_a_layer = attribute(model, stored, prompt)
    medians = [statistics.median(of_transcoder) for of_transcoder in seconds]
    difference = _difference(graphs[0], graphs[1])
    identical = bool(torch.equal(graphs[0].edges.weight, blocks_of_a_layer.edges.weight))
    print(f"fits:  in memory {medians[0]:.2f} s, in files {medians[1]:.2f} s, {graphs[0].n_nodes} nodes,", end="")
    print(f" largest difference of an edge {difference:.1e}, identical with blocks of a layer: {identical}")
    return {
        "ratio_to_memory": medians[1] / medians[0],
        "largest_difference": difference,
        "identical": identical,
    }


def peer(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare the time of a graph with circuit-tracer's, with decoders in their files on both sides."""
    if arguments.peer_python is None:
        return {"speedup_peer": None}
    sizes = {name: getattr(FITS, name) for name in ("layers", "d_model", "features", "active", "tokens")}
    settings = {"heads": 12, "vocabulary": VOCABULARY, "seed": 0, "long_tokens": FITS.tokens, "device": "cpu"}
    bench = Bench(argparse.Namespace(**vars(arguments), **sizes, **settings), folder, stored=True)
    assert bench.peer is not None
    runs: dict[Side, list[Run]] = {bench.ours: [], bench.peer: []}
    try:
        for side in runs:  # the first call starts threads and loads libraries
            bench.run(side, FITS.tokens, BUDGET, BATCH, save=OURS if side is bench.ours else PEER)
        difference = bench.difference(FITS.tokens, BUDGET)
        for _ in range(arguments.repeats):
            for side, of_side in runs.items():
                of_side.append(bench.run(side, FITS.tokens, BUDGET, BATCH))
    finally:
        bench.close()
    ours, theirs = (median(of_side) for of_side in runs.values())
    print(f"peer:  {ours.seconds:.2f} s and {ours.extra_memory_mb:.0f} MB,", end="")
    print(f" circuit-tracer with its lazy decoder {theirs.seconds:.2f} s and {theirs.extra_memory_mb:.0f} MB")
    return {"speedup_peer": theirs.seconds / ours.seconds, "max_abs_diff_peer": difference}


def make_inputs(folder: Path, shape: Shape) -> list[int]:
    """Write a random language model and a sparse transcoder for it; returns a prompt."""
    generator = torch.Generator().manual_seed(0)
    _write_model(folder / "model", shape)
    model = load_language_model(folder / "model")
    prompt = torch.randint(VOCABULARY - 1, (shape.tokens,), generator=generator)
    prompt[0] = VOCABULARY - 1
    inputs = model.capture(prompt[None], HOOK).inputs[0, 1:]
    (folder / "transcoder").mkdir(parents=True)
    settings = f"model_kind: cross_layer_transcoder\nfeature_input_hook: {HOOK}\nfeature_output_hook: hook_mlp_out\n"
    (folder / "transcoder" / "config.yaml").write_text(settings)
    index = torch.arange(shape.weighted) * (shape.features // shape.weighted)
    for layer in range(shape.layers):
        encoder = torch.randn(shape.weighted, shape.d_model, generator=generator)
        encoder = (encoder / inputs[:, layer].norm(dim=1).mean()).bfloat16()
        pre = inputs[:, layer] @ encoder.float().T
        neighbours = pre.flatten().topk(shape.active * len(inputs) + 1).values[-2:]
        width = (shape.layers - layer, shape.d_model)
        _write_sparse(
            folder / "transcoder" / f"W_enc_{layer}.safetensors",
            {
                f"W_enc_{layer}": Rows((shape.features, shape.d_model), index, lambda place, e=encoder: e[place]),
                f"b_enc_{layer}": torch.zeros(shape.features),
                f"b_dec_{layer}": 0.1 * torch.randn(shape.d_model, generator=generator),
                f"threshold_{layer}": torch.full((shape.features,), float(neighbours.mean())),
            },
        )
        decoder = Rows(
            (shape.features, *width),
            index,
            lambda _, width=width: (0.3 / width[1] ** 0.5 * torch.randn(width, generator=generator)).bfloat16(),
        )
        _write_sparse(folder / "transcoder" / f"W_dec_{layer}.safetensors", {f"W_dec_{layer}": decoder})
    return prompt.tolist()


def _write_model(folder: Path, shape: Shape) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=shape.layers, hidden_size=shape.d_model, intermediate_size=256, num_attention_heads=8,
        num_key_value_heads=4, vocab_size=VOCABULARY, max_position_embeddings=shape.tokens + 8,
        bos_token_id=VOCABULARY - 1, eos_token_id=VOCABULARY - 1,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder, VOCABULARY)


def _write_sparse(path: Path, tensors: Mapping[str, Tensor | Rows]) -> None:
    """Write a safetensors file whose large tensors are mostly holes."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        is_rows = isinstance(tensor, Rows)
        size = torch.Size(tensor.shape).numel() * (2 if is_rows else 4)
        header[name] = {
            "dtype": "BF16" if is_rows else "F32", "shape": list(tensor.shape), "data_offsets": [end, end + size],
        }  # fmt: skip
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        file.truncate(start + end)
        for name, tensor in tensors.items():
            begin = start + header[name]["data_offsets"][0]
            for offset, content in _contents(tensor):
                file.seek(begin + offset)
                file.write(content.contiguous().view(torch.uint8).numpy().tobytes())


def _contents(tensor: Tensor | Rows) -> Iterator[tuple[int, Tensor]]:
    if not isinstance(tensor, Rows):
        yield 0, tensor
        return
    width = 2 * torch.Size(tensor.shape[1:]).numel()
    for place, row in enumerate(tensor.index.tolist()):
        yield row * width, tensor.rows(place)


@dataclass
class Peak:
    """Peak memory above the start, in bytes."""

    anonymous: int = 0
    resident: int = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the peak of this process's memory in the block, every few milliseconds."""
    start, peak, ended = _memory(), Peak(), threading.Event()

    def sample() -> None:
        while not ended.wait(0.003):
            anonymous, resident = _memory()
            peak.anonymous = max(peak.anonymous, anonymous - start[0])
            peak.resident = max(peak.resident, resident - start[1])

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield peak
    finally:
        ended.set()
        sampler.join()


def _memory() -> tuple[int, int]:
    """Anonymous and resident memory of this process, in bytes, from Linux's record of it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    numbers = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("RssAnon:", "VmRSS:"))}
    return int(numbers["RssAnon"]) * 1024, int(numbers["VmRSS"]) * 1024


def timed(function: Callable[[], AttributionGraph]) -> tuple[AttributionGraph, float]:
    """A graph, and the seconds that it took."""
    started = time.perf_counter()
    graph = function()
    return graph, time.perf_counter() - started


def _difference(one: AttributionGraph, other: AttributionGraph) -> float:
    """Largest difference between edges of two graphs with the same nodes."""
    assert one.ids() == other.ids(), "the graphs have other nodes"
    return float((one.adjacency() - other.adjacency()).abs().max())


def _in_process(part: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one part in a process of its own, print what it prints, and return its results."""
    folder.mkdir()
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
    command += ["--threads", str(arguments.threads), "--repeats", str(arguments.repeats)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(arguments.threads)}
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout.splitlines()
    print("\n".join(lines[:-1]), flush=True)
    return json.loads(lines[-1])


if __name__ == "__main__":
    main()
