"""Dictionaries for the truth suite: main kinds of transcoder, trained alike on the embedded model.

    python benchmarks/truth/train_dictionaries.py --output dictionaries
    python benchmarks/truth/suite.py $(for d in dictionaries/*; do echo --transcoder $d; done)

All have the same number of features per layer and the same mean number of active features (BatchTopK), and are trained
for the same number of steps on the same tokens in the same order. They differ in what a feature writes to: all later
layers, two layers or its own layer, also with a skip path or with nested prefixes. An SAE and a MOLT have no graphs, so
the suite says only how well they reconstruct. Two more are trained with a price for the distance between layers
(``LossConfig.distance_penalty``).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from zoo import activations, architectures, data

from open_clt.config import BatchTopKConfig, LossConfig, TrainingConfig
from open_clt.training.run import train_on_activations
from open_clt.transcoders.formats.native import save_transcoder

KINDS = {
    "clt": ("CLT", 0.0),
    "clt-reach-2": ("CLT, reach 2", 0.0),
    "per-layer": ("per-layer", 0.0),
    "clt-skip": ("CLT with skip", 0.0),
    "matryoshka": ("Matryoshka CLT", 0.0),
    "sae": ("SAE of MLP outputs", 0.0),
    "molt": ("MOLT", 0.0),
    "clt-distance-0.1": ("CLT", 0.1),
    "clt-distance-0.3": ("CLT", 0.3),
}
"""For each name of a directory: the architecture of the zoo, and the price of distance."""


def train(name: str, output: Path, *, n_features: int, k: int, steps: int, seed: int) -> float:
    """Train one dictionary, save it, and return its FVU over the last steps of training."""
    architecture, price = KINDS[name]
    config = replace(architectures(data().model, n_features)[architecture], nonlinearity=BatchTopKConfig(k=k))
    settings = TrainingConfig.of(
        max_steps=steps,
        learning_rate=2e-3,
        loss=LossConfig(auxiliary=1.0, dead_after_tokens=20_000, distance_penalty=price),
        initial_firing_rate=0.02,
        seed=seed,
    )
    store = activations(config.input_hook, config.target_hook)
    result = train_on_activations(store, config, settings, progress=False)
    save_transcoder(result.transcoder, output / name)
    return result.curves.fvu[-1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the dictionaries that the output directory does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--output", type=Path, required=True, help="directory that receives a directory for each dictionary")
    option("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="dictionaries to train (default: all)")
    option("--features", type=int, default=768, help="features per layer (default: 768)")
    option("--k", type=int, default=19, help="mean number of active features per token and layer (default: 19)")
    option("--steps", type=int, default=600, help="training steps (default: 600)")
    option("--seed", type=int, default=0, help="seed of weights and of the order of tokens (default: 0)")
    chosen = parser.parse_args(arguments)
    trained: dict[str, float] = {}
    for name in chosen.kinds:
        if not (chosen.output / name).exists():
            fvu = train(
                name, chosen.output, n_features=chosen.features, k=chosen.k, steps=chosen.steps, seed=chosen.seed
            )
            trained[name] = round(fvu, 4)
            print(f"{name}: FVU {fvu:.4f} in training", flush=True)
    print(json.dumps(trained))


if __name__ == "__main__":
    main()
