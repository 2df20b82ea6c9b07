"""Train the cross-layer transcoder that ships with OpenCLT, on the language model that ships with it.

    python examples/train_embedded_transcoder.py --output open_clt/embedded/transcoder

It uses the package's own trainer and nothing else, and writes the transcoder (``config.json`` and safetensors) and
``training.json``: settings, curves, and what the stored transcoder scores on text it never saw, reconstruction and
sparsity as well as how far the language model still works when every MLP is replaced. It takes some minutes on two
CPU cores, and the same seed on the same machine and library versions gives the same transcoder.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import time
from pathlib import Path
from typing import Any

# Idle threads sleep instead of spinning, which on a machine that does other work too is much faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

from open_clt.config import BatchTopKConfig, CrossLayerConfig, LossConfig, TrainingConfig
from open_clt.config.json import to_dict
from open_clt.data.contexts import pack_contexts
from open_clt.embedded import TRANSCODER_DIRECTORY
from open_clt.embedded.corpus import generate_texts
from open_clt.embedded.evaluation import evaluate
from open_clt.evaluation.evaluate import measure
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.replacement.model import ReplacementModel
from open_clt.training.run import train_transcoder
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.transcoder import Transcoder

log = logging.getLogger("train_embedded_transcoder")

DOCUMENTS = 16_000
HELD_OUT_DOCUMENTS = 1_500
CONTEXT_LENGTH = 40
# The language model learned from seeds 1, 2, ...: these two are text that neither it nor the transcoder saw before.
TRAINING_TEXT_SEED = 500_000_001
HELD_OUT_TEXT_SEED = 500_000_002
BARS = {"fvu": 0.10, "l0": 20.0, "dead_share": 0.05, "top1_agreement": 0.90}


def transcoder_settings(model: LanguageModel) -> CrossLayerConfig:
    """The shape of the transcoder that ships."""
    return CrossLayerConfig(
        n_layers=model.n_layers,
        n_features=768,
        d_model=model.d_model,
        nonlinearity=BatchTopKConfig(k=19),
        language_model="embedded",
    )


def training_settings(arguments: argparse.Namespace) -> TrainingConfig:
    """How it is trained. Nothing is held out here: the script has held-out text of its own."""
    return TrainingConfig.of(
        max_steps=arguments.steps,
        batch_size=1024,
        learning_rate=2e-3,
        # Dead features are revived soon and with full weight: otherwise one in ten stays dead.
        loss=LossConfig(auxiliary=1.0, dead_after_tokens=20_000),
        initial_firing_rate=0.02,
        held_out_contexts=0,
        harvest_batch_size=32,
        seed=arguments.seed,
    )


@torch.no_grad()
def scores_of(transcoder: Transcoder, model: LanguageModel, contexts: Tensor) -> dict[str, Any]:
    """Numbers on some contexts, and whether the model with every MLP replaced still knows its tasks."""
    replaced = ReplacementModel(model, transcoder)

    def right_answers(logits: Any) -> dict[str, float]:
        def next_tokens(prompts: list[str]) -> list[int]:
            return [int(logits(model.tokenize(prompt)[None])[0, -1].argmax()) for prompt in prompts]

        found = evaluate(next_tokens, lambda text: model.token_ids([text])[0], limit=150)
        return {row.task: row.top1 for row in found}

    numbers = measure(replaced, contexts, batch_size=32).as_dict()
    return {**numbers, "tasks_original": right_answers(model.logits), "tasks": right_answers(replaced.logits)}


def parse_arguments() -> argparse.Namespace:
    """What can be set from outside."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="the language model (default: the embedded one)")
    parser.add_argument("--output", type=Path, default=TRANSCODER_DIRECTORY, help="where the transcoder goes")
    parser.add_argument("--steps", type=int, default=3_000, help="training steps (default: 3000)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Texts, training, files, and the scores of what stands in the files."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = parse_arguments()
    started = time.monotonic()
    model = load_language_model(arguments.model)
    # Every context begins as a document begins and is hardly longer than one, as in the language model's training.
    contexts, held_out = (
        pack_contexts(generate_texts(number, seed), model, CONTEXT_LENGTH, from_start=True)
        for number, seed in ((DOCUMENTS, TRAINING_TEXT_SEED), (HELD_OUT_DOCUMENTS, HELD_OUT_TEXT_SEED))
    )
    log.info("%d tokens to train on, %d held out", contexts.numel(), held_out.numel())
    settings = training_settings(arguments)
    record = train_transcoder(model, contexts, transcoder_settings(model), settings)

    save_transcoder(record.transcoder, arguments.output, dtype=torch.float16)
    stored = load_transcoder(arguments.output)
    scores = scores_of(stored, model, held_out)
    summary = record.summary()
    summary.pop("held_out")
    content = {
        "format_version": 1,
        "made_by": "examples/train_embedded_transcoder.py",
        "settings": to_dict(settings),
        "documents": DOCUMENTS,
        "held_out": scores,
        "bars": BARS,
        "seconds_in_all": round(time.monotonic() - started),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        **summary,
    }
    (arguments.output / "training.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for name, value in scores.items():
        print(f"{name:<28}{value}")
    failed = [name for name, bar in BARS.items() if (scores[name] < bar) == (name == "top1_agreement")]
    print(f"bars missed: {', '.join(failed) or 'none'}; written to {arguments.output}")


if __name__ == "__main__":
    main()
