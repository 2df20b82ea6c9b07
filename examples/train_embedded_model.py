"""Training of the embedded model: the small GPT-2 that OpenCLT includes, trained on the package's own text only.

    python examples/train_embedded_model.py --output open_clt/embedded/model

The script writes a GPT-2 in Hugging Face's format (weights, tokenizer, and ``training.json``, which records how the
model was made) and prints the evaluation table at the end. The defaults are those of the model that OpenCLT includes.
Training takes less than an hour on two CPU cores. The same seed on the same machine with the same versions of the
libraries gives the same model.
"""

import argparse
import json
import logging
import os
import platform
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

# Idle threads sleep instead of spinning; spinning is ten times slower on a machine that also does other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from open_clt.embedded import MODEL_DIRECTORY, facts, tasks
from open_clt.embedded.corpus import COPYING, MIXTURE, generate_texts
from open_clt.embedded.evaluation import EvaluationRow, evaluate, format_table

log = logging.getLogger("train_embedded_model")
END_OF_TEXT = "<|endoftext|>"
CHUNK = 100
"""Steps for which text is generated at a time."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """All settings that determine the trained model."""

    seed: int = 0
    layers: int = 5
    d_model: int = 128
    heads: int = 4
    context: int = 128
    steps: int = 6_000
    copying_steps: int = 1_500
    documents: int = 64
    learning_rate: float = 2e-3
    warmup: int = 300
    cooling: float = 0.4
    weight_decay: float = 0.1
    initial_scale: float = 0.06
    precision: str = "bf16"


HELP = {
    "seed": "seed of the texts, of their order and of the first weights",
    "layers": "layers of the model",
    "d_model": "width of the model",
    "heads": "attention heads of each layer",
    "context": "longest context in tokens",
    "steps": "training steps",
    "copying_steps": "first steps, whose text teaches only copying",
    "documents": "documents of a batch",
    "learning_rate": "learning rate of AdamW at its peak",
    "warmup": "steps over which the learning rate rises",
    "cooling": "final share of the steps, over which the learning rate falls to zero",
    "weight_decay": "weight decay of the layers' matrices",
    "initial_scale": "standard deviation of the first weights",
    "precision": "bf16 for bfloat16 autocast, any other text for float32",
}
"""What each setting means, as the command line's help says it."""


class TrainingOutcome(NamedTuple):
    """The number of tokens that were trained on, without padding, and the mean loss of the last 200 steps in nats."""

    tokens: int
    loss: float


def key_words() -> list[str]:
    """Every entity and every answer: the words that must each be one token."""
    words = [*facts.WOMEN, *facts.MEN, *facts.DAYS, *facts.MONTHS, *facts.NUMBERS, *facts.OPPOSITES]
    for country in facts.COUNTRIES:
        words += [country.name, country.capital, country.language, country.currency, *country.cities]
    for state in facts.STATES:
        words += [state.name, state.capital, *state.cities, *state.attributes.values()]
    return list(dict.fromkeys([*words, *tasks.list_words(), "is", "are", "was", "were", "has", "have"]))


def train_tokenizer(seed: int, documents: int = 60_000, merges: int = 300) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer whose vocabulary also contains whole words of the corpus.

    Merges alone would cut every name into several pieces that mean nothing. With ``ignore_merges``, as in Llama 3's
    tokenizer, a word in the vocabulary is one token, and only other words are built from merges.
    """
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    counts: Counter[str] = Counter()
    for text in generate_texts(documents, seed + 1_000_003):
        counts.update(word for word, _ in splitter.pre_tokenize_str(text))
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = splitter
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=257 + merges, initial_alphabet=alphabet, special_tokens=[END_OF_TEXT])
    pieces.train_from_iterator(generate_texts(documents // 4, seed + 1_000_004), trainer)
    bpe = json.loads(pieces.to_str())["model"]
    vocabulary: dict[str, int] = dict(bpe["vocab"])
    frequent = [word for word, count in sorted(counts.items()) if count >= 5 and word.lstrip("Ġ").isalpha()]
    for word in ["Ġ" + word for word in key_words()] + frequent:
        vocabulary.setdefault(word, len(vocabulary))
    merge_pairs = [tuple(pair) for pair in bpe["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merge_pairs, ignore_merges=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def check_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise ValueError unless every entity is one token and every text is the same after encoding and decoding."""
    split = [word for word in key_words() if len(tokenizer.encode(" " + word)) != 1]
    if split:
        raise ValueError(f"These words are more than one token: {split}.")
    for text in ("The keys to the cabinet are here.", "Zürich, 東京 & naïve\n\tcode_42!", " two  spaces"):
        if tokenizer.decode(tokenizer.encode(text)) != text:
            raise ValueError(f"{text!r} is another text after encoding and decoding.")


def batches(tokenizer: PreTrainedTokenizerFast, settings: TrainingSettings) -> Iterator[Tensor]:
    """Yield one batch of tokens per step, padded with -1; no document is used twice.

    A row holds one whole document from position 0, as a prompt does. The first steps teach only copying, whose circuit
    forms slowly and only if much of the text needs it. In the second half of the steps half of the batches hold packed
    rows, so that the model learns to use its whole context.
    """
    rng = random.Random(settings.seed)
    for chunk, first in enumerate(range(0, settings.steps, CHUNK), start=1):
        n_packed = 0 if first < settings.steps / 2 else CHUNK // 2
        mixture = COPYING if first < settings.copying_steps else MIXTURE
        n_texts = (CHUNK - n_packed) * settings.documents + n_packed * 100
        texts = generate_texts(n_texts, settings.seed * 10_000 + chunk, mixture)
        documents = [[tokenizer.bos_token_id, *ids] for ids in encode(tokenizer, list(texts))]
        one_per_row = documents[: (CHUNK - n_packed) * settings.documents]
        chunk_batches = group(one_per_row, settings.documents, settings.context)
        if n_packed:
            rows = pack(documents[len(one_per_row) :], settings.context)
            chunk_batches += rows.split(settings.documents // 4)[:n_packed]
        rng.shuffle(chunk_batches)
        yield from chunk_batches


def group(documents: list[list[int]], size: int, context: int) -> list[Tensor]:
    """Batches of ``size`` documents of similar length, padded with -1."""
    grouped = []
    for start in range(0, len(documents), size * 20):
        by_length = sorted(documents[start : start + size * 20], key=len)
        for first in range(0, len(by_length), size):
            rows = [torch.tensor(document[:context]) for document in by_length[first : first + size]]
            grouped.append(pad_sequence(rows, batch_first=True, padding_value=-1))
    return grouped


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def pack(documents: list[list[int]], context: int) -> Tensor:
    """Fill rows with documents, and cut off the part of a document that does not fit into its row."""
    rows: list[list[int]] = [[]]
    for document in documents:
        if len(rows[-1]) >= context:
            rows.append([])
        rows[-1] += document[: context - len(rows[-1])]
    return torch.tensor([row for row in rows if len(row) == context])


def build_model(tokenizer: PreTrainedTokenizerFast, settings: TrainingSettings) -> GPT2LMHeadModel:
    """A GPT-2 with new weights and without dropout.

    GPT-2's initial scale of 0.02 suits d_model = 768 and more. In a model of this size it leaves attention so flat that
    the model had learned the facts before it began to copy from the context (induction, the indirect object).
    """
    torch.manual_seed(settings.seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=settings.context,
        n_embd=settings.d_model,
        n_layer=settings.layers,
        n_head=settings.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=settings.initial_scale,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wpe.weight.copy_(sinusoids(settings))
    return model


def sinusoids(settings: TrainingSettings) -> Tensor:
    """Initial position embeddings: sinusoids, for which "one token before" is the same rotation at every position."""
    frequencies = 1000.0 ** (-torch.arange(0, settings.d_model, 2) / settings.d_model)
    angles = torch.arange(settings.context)[:, None] * frequencies
    return 1.5 * settings.initial_scale * torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def build_optimizer(model: GPT2LMHeadModel, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW with weight decay on the layers' matrices only; decay makes composing cheaper than memorising."""
    parameters = list(model.named_parameters())
    decayed = [parameter for name, parameter in parameters if parameter.ndim == 2 and ".h." in name]
    others = [parameter for name, parameter in parameters if not (parameter.ndim == 2 and ".h." in name)]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)


def learning_rate_factor(step: int, settings: TrainingSettings) -> float:
    """Linear warm-up, a long plateau, on which circuits form because steps are large, and linear decay to zero."""
    cooling = settings.cooling * settings.steps
    return min(1.0, (step + 1) / settings.warmup, (settings.steps - step) / cooling)


@torch.no_grad()
def evaluate_model(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, limit: int | None = None
) -> list[EvaluationRow]:
    """The rows of the evaluation table; prompts begin with the same token as the documents of training."""

    def next_token_ids(prompts: list[str]) -> list[int]:
        predictions: list[int] = []
        for start in range(0, len(prompts), 100):
            ids = [[tokenizer.bos_token_id, *row] for row in encode(tokenizer, prompts[start : start + 100])]
            longest = max(len(row) for row in ids)
            padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
            last = torch.tensor([len(row) - 1 for row in ids])
            logits = model(padded).logits[torch.arange(len(ids)), last]
            predictions += logits.argmax(dim=-1).tolist()
        return predictions

    return evaluate(next_token_ids, lambda text: encode(tokenizer, [text])[0], limit)


def train(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    settings: TrainingSettings,
    output: Path,
    every: int,
) -> TrainingOutcome:
    """Run all steps; every ``every`` steps the model is evaluated and saved."""
    optimizer = build_optimizer(model, settings)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, settings))
    losses, n_tokens, started = [], 0, time.time()
    for step, tokens in enumerate(batches(tokenizer, settings), start=1):
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
            logits = model(tokens.clamp(min=0)).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), ignore_index=-1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        n_tokens += int((tokens >= 0).sum())
        losses.append(loss.item())
        if step % 100 == 0:
            speed = n_tokens / (time.time() - started)
            log.info("step %d/%d loss %.4f, %.0f tokens/s", step, settings.steps, sum(losses[-100:]) / 100, speed)
        if step % every == 0 and step < settings.steps:
            log.info("after step %d:\n%s", step, format_table(evaluate_model(model, tokenizer, limit=150)))
            model.save_pretrained(output)
    return TrainingOutcome(tokens=n_tokens, loss=sum(losses[-200:]) / len(losses[-200:]))


def write_record(
    path: Path,
    settings: TrainingSettings,
    rows: list[EvaluationRow],
    outcome: TrainingOutcome,
    seconds: float,
) -> None:
    """Write how the model was made and how well it does its tasks."""
    record = {
        "format_version": 1,
        "made_by": "examples/train_embedded_model.py",
        "settings": asdict(settings),
        "tokens": outcome.tokens,
        "seconds": round(seconds),
        "tokens_per_second": round(outcome.tokens / seconds),
        "final_loss": round(outcome.loss, 4),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "evaluation": [row._asdict() for row in rows],
    }
    path.write_text(json.dumps(record, indent=2) + "\n")


def parse_arguments() -> tuple[TrainingSettings, argparse.Namespace]:
    """Read the command line, which has one option for each setting; returns the settings and the other options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = asdict(TrainingSettings())
    for name, value in defaults.items():
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=type(value), default=value, help=f"{HELP[name]} (default: {value})")
    parser.add_argument("--output", type=Path, default=MODEL_DIRECTORY, help="directory for the model")
    parser.add_argument("--evaluate-every", type=int, default=500, help="steps between evaluations")
    arguments = parser.parse_args()
    return TrainingSettings(**{name: getattr(arguments, name) for name in defaults}), arguments


def main() -> None:
    """Make the tokenizer and the model, train, evaluate, and write the files."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    settings, arguments = parse_arguments()
    started = time.time()
    tokenizer = train_tokenizer(settings.seed)
    check_tokenizer(tokenizer)
    model = build_model(tokenizer, settings)
    log.info("%d words in the vocabulary, %d parameters", len(tokenizer), model.num_parameters())
    arguments.output.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(arguments.output)
    outcome = train(model, tokenizer, settings, arguments.output, arguments.evaluate_every)
    model.save_pretrained(arguments.output)
    rows = evaluate_model(model, tokenizer)
    seconds = time.time() - started
    write_record(arguments.output / "training.json", settings, rows, outcome, seconds)
    print(format_table(rows))
    print(f"loss {outcome.loss:.4f}, {seconds / 60:.1f} minutes; written to {arguments.output}")


if __name__ == "__main__":
    main()
