"""Feature benchmark: all features of the embedded transcoder, measured on generated sentences.

    python benchmarks/features.py                     500,000 tokens; and --tokens 1000000 for the memory

``tokens_per_second`` counts everything from the first text to the last byte of the feature files. ``model_share`` is
the share of the pass over the text that is the language model's own forward pass, and ``floor_tokens_per_second`` the
speed of that forward pass alone. Memory is anonymous memory above that of the loaded model and transcoder: at its peak,
and at the peak of the first tenth of the text, which shows that it does not grow with the text. ``ms_per_record`` is
the time to read a record from its files. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from open_clt import OpenCrossLayerTranscoder
from open_clt.config import FeatureRecordsConfig
from open_clt.embedded.corpus import generate_texts
from open_clt.features.collecting.collect import collect_features
from open_clt.features.collecting.measured import feature_records
from open_clt.features.feature_files import FeatureFiles, write_feature_files

sys.path.append(str(Path(__file__).parent))
from out_of_core import peak_memory

AIMS = {"tokens_per_second": 2800, "model_share": 0.5}


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=500_000, help="tokens that are measured")
    parser.add_argument("--threads", type=int, default=2, help="number of threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(arguments.tokens)
    for name, aim in AIMS.items():
        print(f"{name:18} {result[name]:10.2f}   aim: at least {aim}")
    print(json.dumps(result))


def measure(tokens: int) -> dict[str, Any]:
    """Measure and write all features, then read some of them."""
    clt = OpenCrossLayerTranscoder.from_pretrained("embedded")
    model, transcoder = clt.language_model, clt.transcoder
    forward = Timed(model.capture)
    model.capture = forward  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as directory:
        with peak_memory() as first:
            collect_features(model, transcoder, texts(), settings(tokens // 10))
        forward.seconds = 0.0
        with peak_memory() as peak:
            started = time.perf_counter()
            collection = collect_features(model, transcoder, texts(), settings(tokens))
            collected = time.perf_counter()
            n_layers, n_features = collection.n_layers, collection.n_features
            records = feature_records(model, transcoder, collection)
            folder = write_feature_files(records, directory, n_layers=n_layers, n_features=n_features)
            written = time.perf_counter()
        size = sum(path.stat().st_size for path in folder.iterdir())
        stored = FeatureFiles(directory)
        chosen = stored.features()[::20]
        read = [seconds_to_read(stored, feature) for feature in chosen]
    return {
        "tokens": collection.n_tokens,
        "tokens_per_second": collection.n_tokens / (written - started),
        "model_share": forward.seconds / (collected - started),
        "floor_tokens_per_second": collection.n_tokens / forward.seconds,
        "seconds_pass": collected - started,
        "seconds_files": written - collected,
        "peak_mb": peak.anonymous / 1e6,
        "peak_mb_first_tenth": first.anonymous / 1e6,
        "ms_per_record": 1000 * statistics.median(read),
        "mb_of_files": size / 1e6,
    }


def settings(tokens: int) -> FeatureRecordsConfig:
    """Contexts as the embedded model was trained on."""
    return FeatureRecordsConfig(context_length=40, from_start=True, max_tokens=tokens)


def texts() -> Iterator[str]:
    """Sentences without an end, a part at a time."""
    seed = 1
    while True:
        yield from generate_texts(1000, seed=seed)
        seed += 1


def seconds_to_read(stored: FeatureFiles, feature: Any) -> float:
    """Time to read one record."""
    started = time.perf_counter()
    stored.record(feature)
    return time.perf_counter() - started


class Timed:
    """The forward pass of a language model, and the time that it took so far."""

    def __init__(self, capture: Any) -> None:
        self._capture = capture
        self.seconds = 0.0

    def __call__(self, tokens: Tensor, *hooks: str) -> Any:
        started = time.perf_counter()
        captured = self._capture(tokens, *hooks)
        self.seconds += time.perf_counter() - started
        return captured


if __name__ == "__main__":
    main()
