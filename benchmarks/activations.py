"""Activations benchmark: reading a dataset beside copying its bytes and beside HDF5, and harvesting one.

    python benchmarks/activations.py
    python benchmarks/activations.py --dtype int8 --batch-tokens 4096

The dataset has random numbers in the shape of GPT-2-small. The sides take turns on one core, and medians are reported.
The files are in the page cache.

    read        `open_clt.data.dataset.read` in random order, one batch ahead in a thread
    sequence    the same in the order of the files
    copy        the bytes of the same shards, mapped into memory and copied in the order of the files
    h5py        the same number of rows in random order from one HDF5 file per shard, in the layout of
                crosslayer-coding: one data set for each layer and kind, in chunks of at least 1,000 rows, without
                compression. A data set is read whole, and the rows are taken from it
    h5py rows   the same, but only the rows of a batch are asked for, in the order of the file

Each side makes a batch in new memory. A rate counts the bytes of the shards. `harvest` is the harvest of the embedded
model on generated sentences. The last line is JSON; without h5py, `speedup_h5py` is null.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from open_clt.data.dataset import read
from open_clt.data.dataset.from_model import harvest_settings, store_of
from open_clt.data.dataset.manifest import DatasetManifest, Harvested, HarvestedText
from open_clt.data.dataset.writer import write_dataset
from open_clt.data.harvest import ActivationBatch
from open_clt.embedded.corpus import generate_texts
from open_clt.files import open_tensors
from open_clt.language.language_model import load_language_model

AIMS = {"read_mb_per_second": 500}
_SEED = 1


def main() -> None:
    """Write the files, let the sides take turns, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="number of layers")
    parser.add_argument("--d-model", type=int, default=768, help="width of the language model")
    parser.add_argument("--dtype", default="bfloat16", help="type of the shards")
    parser.add_argument("--tokens", type=int, default=16_384, help="number of tokens of the dataset")
    parser.add_argument("--shard-tokens", type=int, default=4096, help="number of tokens of a shard")
    parser.add_argument("--batch-tokens", type=int, default=1024, help="number of tokens of a batch")
    parser.add_argument("--harvest-tokens", type=int, default=100_000, help="number of tokens that are harvested")
    parser.add_argument("--repeats", type=int, default=7, help="number of turns of each side")
    parser.add_argument("--keep-cores", action="store_true", help="use all cores, not one")
    arguments = parser.parse_args()
    if not arguments.keep_cores:
        use_one_core()
    with tempfile.TemporaryDirectory() as folder:
        result = {**measure_reading(Path(folder), arguments), **measure_harvest(Path(folder), arguments.harvest_tokens)}
    print(json.dumps(result))


def use_one_core() -> None:
    """Let this process run on one core, with one thread of PyTorch."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def measure_reading(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Let the sides read the same dataset in turns."""
    directory, size = folder / "dataset", arguments.batch_tokens
    manifest = write_dataset(RandomStore(arguments), settings(arguments), directory)
    sides: dict[str, Callable[[], int]] = {
        "read": lambda: count(read(directory, size, seed=_SEED)),
        "sequence": lambda: count(read(directory, size, order="sequence")),
        "copy": lambda: copy(directory, manifest, size),
        **h5py_sides(folder, manifest, size),
    }
    n_bytes = arguments.tokens * manifest.harvested.bytes_per_token
    print(
        f"{arguments.tokens} tokens of {manifest.harvested.bytes_per_token} bytes, {n_bytes / 1e6:.0f} MB, in", end=" "
    )
    print(f"{len(manifest.shards)} shards; batches of {size} tokens")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():  # the first turn fills the page cache
        side()
    for _ in range(arguments.repeats):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"  {name:<12}{median:>8.3f} s{n_bytes / median / 1e6:>8.0f} MB/s")
    theirs = [median for name, median in medians.items() if name.startswith("h5py")]
    return {
        "read_mb_per_second": n_bytes / medians["read"] / 1e6,
        "sequence_mb_per_second": n_bytes / medians["sequence"] / 1e6,
        "ratio_to_copy": medians["read"] / medians["copy"],
        "speedup_h5py": min(theirs) / medians["read"] if theirs else None,
        "speedup_h5py_rows": max(theirs) / medians["read"] if theirs else None,
        "aim_mb_per_second": AIMS["read_mb_per_second"],
    }


class RandomStore:
    """Random activations, made a part at a time."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.n_tokens: int = arguments.tokens
        self.shape = (arguments.layers, arguments.d_model)

    def __iter__(self) -> Iterator[ActivationBatch]:
        generator = torch.Generator().manual_seed(0)
        for begin in range(0, self.n_tokens, 1024):
            tokens = torch.arange(begin, min(begin + 1024, self.n_tokens))
            inputs, targets = (torch.randn(len(tokens), *self.shape, generator=generator) for _ in range(2))
            yield ActivationBatch(inputs, targets, tokens, tokens % 128)


def settings(arguments: argparse.Namespace) -> Harvested:
    """The settings of the dataset of random numbers."""
    return Harvested(
        model="random numbers",
        vocabulary="",
        n_layers=arguments.layers,
        d_model=arguments.d_model,
        input_hook="hook_resid_mid",
        target_hook="hook_mlp_out",
        text=HarvestedText(source="random numbers", context_length=128),
        dtype=arguments.dtype,
        tokens=arguments.tokens,
        shard_tokens=arguments.shard_tokens,
        shards_mixed=1,
    )


def count(batches: Any) -> int:
    """Use batches up, and count their tokens."""
    return sum(batch.size for batch in batches)


def copy(directory: Path, manifest: DatasetManifest, batch_tokens: int) -> int:
    """Copy the bytes of all shards, as many at once as a batch has."""
    step, copied = batch_tokens * manifest.harvested.bytes_per_token, 0
    for shard in manifest.shards:
        mapped = np.memmap(directory / shard.file, dtype=np.uint8, mode="r")
        for begin in range(0, len(mapped), step):
            copied += len(np.array(mapped[begin : begin + step]))
    return copied


def h5py_sides(folder: Path, manifest: DatasetManifest, batch_tokens: int) -> dict[str, Callable[[], int]]:
    """Write the shards as HDF5 files, and return the functions that read them; none without h5py."""
    try:
        import h5py
    except ImportError:
        print("h5py is not installed, so there is no comparison with it; run: pip install h5py")
        return {}
    paths: list[Path] = []
    for shard in manifest.shards:
        paths.append(folder / f"{shard.file}.h5")
        rows = shard.tokens
        chunk_rows = rows if rows < 10_000 else max(1000, rows // 10)
        with h5py.File(paths[-1], "w") as file:
            for kind, tensor in open_tensors(folder / "dataset" / shard.file).items():
                numbers = tensor.read()
                numbers = (numbers.view(torch.uint16) if numbers.dtype == torch.bfloat16 else numbers).numpy()
                if numbers.ndim < 3:
                    file.create_dataset(kind, data=numbers)
                    continue
                for layer in range(numbers.shape[1]):
                    data = numbers[:, layer]
                    file.create_dataset(f"layer_{layer}/{kind}", data=data, chunks=(chunk_rows, data.shape[1]))
    return {
        "h5py": lambda: sum(read_h5py(path, batch_tokens, whole=True) for path in paths),
        "h5py rows": lambda: sum(read_h5py(path, batch_tokens, whole=False) for path in paths),
    }


def read_h5py(path: Path, batch_tokens: int, *, whole: bool) -> int:
    """Read the rows of an HDF5 file in random batches, and return their number."""
    import h5py

    with h5py.File(path, "r") as file:
        names = list[str]()
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        opened: dict[str, Any] = {name: file[name] for name in names}
        data = {name: numbers[:] for name, numbers in opened.items()} if whole else opened
        order = np.random.default_rng(_SEED).permutation(len(data["tokens"]))
        for begin in range(0, len(order), batch_tokens):
            rows = order[begin : begin + batch_tokens]
            batch = {name: numbers[rows if whole else np.sort(rows)] for name, numbers in data.items()}
            assert len(batch["tokens"]) == len(rows)
    return len(order)


def measure_harvest(folder: Path, tokens: int) -> dict[str, Any]:
    """Harvest the embedded model on generated sentences."""
    model = load_language_model("embedded")
    text = HarvestedText(source="generated sentences", context_length=40, from_start=True)
    harvested = harvest_settings(
        model, text, input_hook="hook_resid_mid", target_hook="hook_mlp_out", tokens=tokens, shard_tokens=16_384
    )
    texts = list(generate_texts(tokens // 8, seed=_SEED))
    started = time.perf_counter()
    write_dataset(store_of(model, lambda: texts, harvested), harvested, folder / "harvested")
    seconds = time.perf_counter() - started
    print(f"  {'harvest':<12}{seconds:>8.3f} s{tokens / seconds:>8.0f} tokens/s of the embedded model")
    return {"harvest_tokens_per_second": tokens / seconds}


if __name__ == "__main__":
    main()
