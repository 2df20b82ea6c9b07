"""Training of the embedded model's transcoder: the cross-layer transcoder that OpenCLT includes.

    python examples/train_embedded_transcoder.py --output open_clt/embedded/transcoder

The script uses OpenCLT's ``train_transcoder``. It writes the transcoder (``config.json`` and safetensors) and
``training.json``, which holds the settings, the training curves, and the scores of the stored transcoder on text that
it was not trained on: reconstruction, sparsity, and how well the language model does its tasks when every MLP is
replaced. Training takes some minutes on two CPU cores. The same seed on the same machine with the same versions of the
libraries gives the same transcoder.
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

# Idle threads sleep instead of spinning, which is much faster on a machine that also does other work.
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
# The language model was trained on texts of the seeds 1, 2, ..., so it has not seen the texts of these two seeds.
TRAINING_TEXT_SEED = 500_000_001
HELD_OUT_TEXT_SEED = 500_000_002
BARS = {"fvu": 0.10, "l0": 20.0, "dead_share": 0.05, "top1_agreement": 0.90}


def transcoder_settings(model: LanguageModel) -> CrossLayerConfig:
    """The shape of the transcoder that OpenCLT includes."""
    return CrossLayerConfig(
        n_layers=model.n_layers,
        n_features=768,
        d_model=model.d_model,
        nonlinearity=BatchTopKConfig(k=19, layer_weights=(36.0, 24.0, 14.0, 11.0, 10.0)),
        language_model="embedded",
    )


def training_settings(arguments: argparse.Namespace) -> TrainingConfig:
    """How the transcoder is trained; no context is held out, because the script measures on separate texts."""
    return TrainingConfig.of(
        max_steps=arguments.steps,
        batch_size=1024,
        learning_rate=2e-3,
        # Dead features are revived early and with full weight; otherwise one feature in ten stays dead.
        loss=LossConfig(auxiliary=1.0, dead_after_tokens=20_000),
        initial_firing_rate=0.02,
        held_out_contexts=0,
        harvest_batch_size=32,
        seed=arguments.seed,
    )


@torch.no_grad()
def scores_of(transcoder: Transcoder, model: LanguageModel, contexts: Tensor) -> dict[str, Any]:
    """The numbers of a transcoder on contexts, and the scores of the model on its tasks with and without its MLPs."""
    replacement = ReplacementModel(model, transcoder)

    def right_answers(logits: Any) -> dict[str, float]:
        def next_tokens(prompts: list[str]) -> list[int]:
            return [int(logits(model.tokenize(prompt)[None])[0, -1].argmax()) for prompt in prompts]

        rows = evaluate(next_tokens, lambda text: model.token_ids([text])[0], limit=150)
        return {row.task: row.top1 for row in rows}

    numbers = measure(replacement, contexts, batch_size=32).as_dict()
    return {**numbers, "tasks_original": right_answers(model.logits), "tasks": right_answers(replacement.logits)}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="the language model (default: the embedded one)")
    parser.add_argument("--output", type=Path, default=TRANSCODER_DIRECTORY, help="directory for the transcoder")
    parser.add_argument("--steps", type=int, default=3_000, help="training steps (default: 3000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and of the order of tokens (default: 0)")
    return parser.parse_args()


def main() -> None:
    """Make the texts, train, write the files, and measure the transcoder that the files hold."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = parse_arguments()
    started = time.monotonic()
    model = load_language_model(arguments.model)
    # As in the training of the language model, a context begins where a document begins, and is hardly longer than one.
    contexts, held_out = (
        pack_contexts(generate_texts(n_documents, seed), model, CONTEXT_LENGTH, from_start=True)
        for n_documents, seed in ((DOCUMENTS, TRAINING_TEXT_SEED), (HELD_OUT_DOCUMENTS, HELD_OUT_TEXT_SEED))
    )
    log.info("%d tokens to train on, %d held out", contexts.numel(), held_out.numel())
    settings = training_settings(arguments)
    result = train_transcoder(model, contexts, transcoder_settings(model), settings)

    save_transcoder(result.transcoder, arguments.output, dtype=torch.float16)
    stored = load_transcoder(arguments.output)
    scores = scores_of(stored, model, held_out)
    summary = result.summary()
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
