"""Zoo: every architecture with every nonlinearity, trained on the embedded model and measured on held-out text.

    python benchmarks/zoo.py --output zoo

Each pair of architecture and nonlinearity is trained for the same number of steps on the same tokens in the same order,
and measured on the same held-out text. No setting is tuned for a pair: the coefficient of a penalty belongs to its
nonlinearity. Rows therefore differ in L0; read them as points (L0, FVU), not as a ranking. The directory ``--output``
receives ``zoo.md`` (the table), ``zoo.json`` (all numbers) and ``zoo.png`` (the points). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

# Idle threads sleep instead of spinning, because two training runs share the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

from open_clt.config import (
    BatchTopKConfig,
    CrossLayerConfig,
    JumpReLUConfig,
    L1SparsityConfig,
    LossConfig,
    MoltConfig,
    NonlinearityConfig,
    ReLUConfig,
    SparsityConfig,
    TanhSparsityConfig,
    TopKConfig,
    TrainingConfig,
    TranscoderConfig,
)
from open_clt.data.contexts import pack_contexts
from open_clt.data.harvest import ActivationBatch, Harvest, MemoryStore
from open_clt.embedded.corpus import generate_texts
from open_clt.evaluation.evaluate import Evaluation, measure
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.replacement.model import ReplacementModel
from open_clt.training.run import train_on_activations

CONTEXT_LENGTH = 40
DOCUMENTS, HELD_OUT_DOCUMENTS = 4_000, 300
TRAINING_SEED, HELD_OUT_SEED = 500_000_001, 500_000_002
K = 16
SAE_HOOK = "hook_mlp_out"


class Recipe(NamedTuple):
    """A nonlinearity, the penalty that keeps its features sparse, and their firing rate before the first step."""

    nonlinearity: NonlinearityConfig
    sparsity: SparsityConfig | None = None
    firing_rate: float | None = 0.02


RECIPES = {
    "ReLU, L1": Recipe(ReLUConfig(), L1SparsityConfig(coefficient=1.5)),
    "ReLU, tanh": Recipe(ReLUConfig(), TanhSparsityConfig(coefficient=1.0)),
    "JumpReLU, tanh": Recipe(JumpReLUConfig(), TanhSparsityConfig(coefficient=0.4)),
    "TopK": Recipe(TopKConfig(k=K)),
    "TopK, annealed": Recipe(TopKConfig(k=K, initial_k=4 * K)),
    "BatchTopK": Recipe(BatchTopKConfig(k=K)),
    "BatchTopK across layers": Recipe(BatchTopKConfig(k=K, across_layers=True)),
}


class Row(NamedTuple):
    """The numbers of one pair of architecture and nonlinearity."""

    architecture: str
    nonlinearity: str
    parameters: int
    evaluation: Evaluation
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """All fields as plain values for JSON; the numbers of the evaluation stand beside the others."""
        row = self._asdict()
        return {**row, **row.pop("evaluation").as_dict()}


class Data(NamedTuple):
    """The language model, the contexts that every pair is trained on, and those that every pair is measured on."""

    model: LanguageModel
    contexts: Tensor
    held_out: Tensor


def architectures(model: LanguageModel, n_features: int) -> dict[str, TranscoderConfig]:
    """Each architecture by its name, with about the same number of features."""
    clt = CrossLayerConfig(
        n_layers=model.n_layers, d_model=model.d_model, n_features=n_features, language_model=model.name
    )
    molt = MoltConfig(
        n_layers=model.n_layers,
        d_model=model.d_model,
        ranks=(1, 4, 16),
        counts=(n_features // 2, n_features // 8, n_features // 32),
        language_model=model.name,
    )
    return {
        "CLT": clt,
        "CLT, reach 2": replace(clt, reach=2),
        "CLT with skip": replace(clt, skip=True),
        "per-layer": replace(clt, reach=1),
        "per-layer with skip": replace(clt, reach=1, skip=True),
        "Matryoshka CLT": replace(clt, prefixes=(n_features // 16, n_features // 4)),
        "MOLT": molt,
        "SAE of MLP outputs": replace(clt, reach=1, input_hook=SAE_HOOK, target_hook=SAE_HOOK),
    }


@cache
def data() -> Data:
    """The language model and its contexts, which each process makes once."""
    torch.set_num_threads(1)
    model = load_language_model("embedded")
    contexts, held_out = (
        pack_contexts(generate_texts(count, seed), model, CONTEXT_LENGTH, from_start=True)
        for count, seed in ((DOCUMENTS, TRAINING_SEED), (HELD_OUT_DOCUMENTS, HELD_OUT_SEED))
    )
    return Data(model, contexts, held_out)


@cache
def activations(input_hook: str, target_hook: str) -> MemoryStore:
    """Activations of all training contexts at two hooks, which each process harvests once."""
    model, contexts, _ = data()
    harvest = Harvest(model, contexts, input_hook=input_hook, target_hook=target_hook, batch_size=64)
    batches: list[ActivationBatch] = list(harvest)
    return MemoryStore(batches)


def run(architecture: str, nonlinearity: str, n_features: int, steps: int) -> Row:
    """Train and measure one pair."""
    started = time.monotonic()
    model, _, held_out = data()
    recipe = RECIPES[nonlinearity]
    config = replace(architectures(model, n_features)[architecture], nonlinearity=recipe.nonlinearity)
    settings = TrainingConfig.of(
        max_steps=steps,
        learning_rate=2e-3,
        loss=LossConfig(sparsity=recipe.sparsity, auxiliary=1.0, dead_after_tokens=20_000),
        initial_firing_rate=recipe.firing_rate,
        seed=0,
    )
    store = activations(config.input_hook, config.target_hook)
    transcoder = train_on_activations(store, config, settings, progress=False).transcoder
    return Row(
        architecture=architecture,
        nonlinearity=nonlinearity,
        parameters=sum(parameter.numel() for parameter in transcoder.parameters()),
        evaluation=measure(ReplacementModel(model, transcoder), held_out, batch_size=32),
        seconds=time.monotonic() - started,
    )


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| architecture | nonlinearity | parameters | FVU | worst layer | L0 | dead | CE | CE recovered | agreement |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = row.evaluation.totals()
        lines.append(
            f"| {row.architecture} | {row.nonlinearity} | {row.parameters / 1e6:.2f} M | {numbers['fvu']:.4f} "
            f"| {numbers['worst_fvu']:.4f} | {numbers['l0']:.1f} | {numbers['dead_share']:.1%} "
            f"| {numbers['ce_replacement']:.3f} | {numbers['ce_recovered']:.1%} | {numbers['top1_agreement']:.1%} |"
        )
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw L0 against FVU, with one colour for each architecture and one marker for each nonlinearity."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    ax = figure.add_subplot()
    architecture_names = list(dict.fromkeys(row.architecture for row in rows))
    nonlinearity_names = list(dict.fromkeys(row.nonlinearity for row in rows))
    colours = {name: colormaps["tab10"](index) for index, name in enumerate(architecture_names)}
    markers = dict(zip(nonlinearity_names, "os^DvP*X", strict=False))
    for row in rows:
        numbers = row.evaluation.reconstruction
        ax.scatter(numbers.l0, numbers.fvu, color=colours[row.architecture], marker=markers[row.nonlinearity], s=36)
    keys = [ax.scatter([], [], color=colours[name], marker="s", label=name) for name in architecture_names]
    keys += [ax.scatter([], [], color="0.4", marker=markers[name], label=name) for name in nonlinearity_names]
    ax.set(xscale="log", yscale="log", xlabel="active features per token and layer (L0)", ylabel="FVU")
    figure.legend(handles=keys, loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and measure the pairs, print the table, and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--output", type=Path, default=None, help="directory for the table, the numbers and the figure")
    option("--steps", type=int, default=400, help="training steps of each pair (default: 400)")
    option("--features", type=int, default=384, help="features per layer (default: 384)")
    option("--jobs", type=int, default=2, help="training runs at a time (default: 2)")
    option("--architectures", nargs="+", default=None, help="architectures to train (default: all)")
    option("--nonlinearities", nargs="+", default=None, choices=RECIPES, help="nonlinearities to train (default: all)")
    options = parser.parse_args(arguments)
    known = architectures(load_language_model("embedded"), options.features)
    pairs = [
        (architecture, nonlinearity)
        for architecture in options.architectures or known
        for nonlinearity in options.nonlinearities or RECIPES
    ]
    started, rows = time.monotonic(), []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run, *pair, options.features, options.steps) for pair in pairs]
        for future in futures:
            rows.append(future.result())
            row, numbers = rows[-1], rows[-1].evaluation.reconstruction
            scores = f"FVU {numbers.fvu:.4f}, L0 {numbers.l0:.1f}"
            print(f"{row.architecture}, {row.nonlinearity}: {scores}, {row.seconds:.0f} s")
    print(table(rows))
    seconds = round(time.monotonic() - started, 1)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"steps": options.steps, "features": options.features, "seconds": seconds}
        content["rows"] = [row.as_dict() for row in rows]
        (options.output / "zoo.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (options.output / "zoo.md").write_text(table(rows) + "\n", encoding="utf-8")
        draw(rows, options.output / "zoo.png")
    best = min(rows, key=lambda row: row.evaluation.reconstruction.fvu)
    print(json.dumps({"pairs": len(rows), "seconds": seconds, "best": [best.architecture, best.nonlinearity]}))


if __name__ == "__main__":
    main()
