"""Train the language model that ships with OpenCLT, from nothing but the package's own text.

    python examples/train_embedded_model.py --output open_clt/embedded/model

It writes a GPT-2 in Hugging Face's format (weights, tokenizer, and ``training.json`` with how it came about),
and prints the evaluation table at the end. The defaults are those of the model that ships. On two CPU cores
it takes under an hour; the same seed on the same machine and library versions gives the same model.
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

# Idle threads sleep instead of spinning, which on a machine that does other work too is ten times slower.
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
"""For how many steps text is generated at a time."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Everything that decides what model comes out."""

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


class TrainingOutcome(NamedTuple):
    """How many tokens were seen (no padding), and the mean loss over the last 200 steps, in nats."""

    tokens: int
    loss: float


def key_words() -> list[str]:
    """Every entity and answer: words that must be one token each."""
    words = [*facts.WOMEN, *facts.MEN, *facts.DAYS, *facts.MONTHS, *facts.NUMBERS, *facts.OPPOSITES]
    for country in facts.COUNTRIES:
        words += [country.name, country.capital, country.language, country.currency, *country.cities]
    for state in facts.STATES:
        words += [state.name, state.capital, *state.cities, *state.attributes.values()]
    return list(dict.fromkeys([*words, *tasks.list_words(), "is", "are", "was", "were", "has", "have"]))


def train_tokenizer(seed: int, documents: int = 60_000, merges: int = 300) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose vocabulary also holds the corpus's whole words.

    Merges alone would need several useless pieces for every name. Instead a word that stands in the
    vocabulary is taken whole (``ignore_merges``, as in Llama 3's tokenizer), and only unknown words are built
    from the merges.
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
    """Every entity is one token, and any text comes back as it went in."""
    split = [word for word in key_words() if len(tokenizer.encode(" " + word)) != 1]
    if split:
        raise ValueError(f"these words are more than one token: {split}")
    for text in ("The keys to the cabinet are here.", "Zürich, 東京 & naïve\n\tcode_42!", " two  spaces"):
        if tokenizer.decode(tokenizer.encode(text)) != text:
            raise ValueError(f"{text!r} does not survive the tokenizer")


def batches(tokenizer: PreTrainedTokenizerFast, settings: TrainingSettings) -> Iterator[Tensor]:
    """Yield token batches without end, -1 where a row is over; no document is seen twice.

    Whole documents, one to a row, begin at position 0 and see nothing but themselves: that is how prompts are
    asked. The first steps teach nothing but copying, whose circuit forms slowly and only where much of the
    text needs it. After half of the steps every other batch is packed, to get used to the whole context.
    """
    rng = random.Random(settings.seed)
    for chunk, first in enumerate(range(0, settings.steps, CHUNK), start=1):
        wholes, packs = CHUNK, 0 if first < settings.steps / 2 else CHUNK // 2
        mixture = COPYING if first < settings.copying_steps else MIXTURE
        number = (wholes - packs) * settings.documents + packs * 100
        texts = generate_texts(number, settings.seed * 10_000 + chunk, mixture)
        documents = [[tokenizer.bos_token_id, *ids] for ids in encode(tokenizer, list(texts))]
        alone = documents[: (wholes - packs) * settings.documents]
        made = group(alone, settings.documents, settings.context)
        if packs:
            rows = pack(documents[len(alone) :], settings.context)
            made += rows.split(settings.documents // 4)[:packs]
        rng.shuffle(made)
        yield from made


def group(documents: list[list[int]], size: int, context: int) -> list[Tensor]:
    """Batches of ``size`` documents of similar length, padded with -1."""
    batches = []
    for start in range(0, len(documents), size * 20):
        by_length = sorted(documents[start : start + size * 20], key=len)
        for at in range(0, len(by_length), size):
            rows = [torch.tensor(document[:context]) for document in by_length[at : at + size]]
            batches.append(pad_sequence(rows, batch_first=True, padding_value=-1))
    return batches


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, nothing added."""
    return [found.ids for found in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def pack(documents: list[list[int]], context: int) -> Tensor:
    """Fill rows with documents; what does not fit at the end of a row is cut off."""
    rows: list[list[int]] = [[]]
    for document in documents:
        if len(rows[-1]) >= context:
            rows.append([])
        rows[-1] += document[: context - len(rows[-1])]
    return torch.tensor([row for row in rows if len(row) == context])


def build_model(tokenizer: PreTrainedTokenizerFast, settings: TrainingSettings) -> GPT2LMHeadModel:
    """A GPT-2 with fresh weights and without dropout.

    GPT-2's own initial scale (0.02) suits d_model = 768 and more. Here it leaves attention so flat that
    copying from the context (induction, the indirect object) had not begun when the facts were learned.
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
    """Where the learned positions start from: "one token before" is then the same rotation everywhere."""
    frequencies = 1000.0 ** (-torch.arange(0, settings.d_model, 2) / settings.d_model)
    angles = torch.arange(settings.context)[:, None] * frequencies
    return 1.5 * settings.initial_scale * torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def build_optimizer(model: GPT2LMHeadModel, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW; only the layers' matrices decay: decay is what makes composing cheaper than memorising."""
    decayed = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and ".h." in name)]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)


def learning_rate_factor(step: int, settings: TrainingSettings) -> float:
    """Linear warm-up, a long plateau (circuits form while steps are large), and a linear way down to zero."""
    cooling = settings.cooling * settings.steps
    return min(1.0, (step + 1) / settings.warmup, (settings.steps - step) / cooling)


@torch.no_grad()
def evaluate_model(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, limit: int | None = None
) -> list[EvaluationRow]:
    """The evaluation table of a model; prompts begin with the token that begins documents in training."""

    def next_token_ids(prompts: list[str]) -> list[int]:
        found: list[int] = []
        for start in range(0, len(prompts), 100):
            ids = [[tokenizer.bos_token_id, *row] for row in encode(tokenizer, prompts[start : start + 100])]
            longest = max(len(row) for row in ids)
            padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
            last = torch.tensor([len(row) - 1 for row in ids])
            logits = model(padded).logits[torch.arange(len(ids)), last]
            found += logits.argmax(dim=-1).tolist()
        return found

    return evaluate(next_token_ids, lambda text: encode(tokenizer, [text])[0], limit)


def train(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    settings: TrainingSettings,
    output: Path,
    every: int,
) -> TrainingOutcome:
    """Run all steps, logging and saving as it goes."""
    optimizer = build_optimizer(model, settings)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, settings))
    losses, seen, started = [], 0, time.time()
    for step, tokens in enumerate(batches(tokenizer, settings), start=1):
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
            logits = model(tokens.clamp(min=0)).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), ignore_index=-1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        seen += int((tokens >= 0).sum())
        losses.append(loss.item())
        if step % 100 == 0:
            speed = seen / (time.time() - started)
            log.info("step %d/%d loss %.4f, %.0f tokens/s", step, settings.steps, sum(losses[-100:]) / 100, speed)
        if step % every == 0 and step < settings.steps:
            log.info("after step %d:\n%s", step, format_table(evaluate_model(model, tokenizer, limit=150)))
            model.save_pretrained(output)
    return TrainingOutcome(tokens=seen, loss=sum(losses[-200:]) / len(losses[-200:]))


def write_record(
    path: Path,
    settings: TrainingSettings,
    rows: list[EvaluationRow],
    outcome: TrainingOutcome,
    seconds: float,
) -> None:
    """Write down how the model came about, and how well it does."""
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
    """The settings, each of which is an option of its own, and where to write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = asdict(TrainingSettings())
    for name, value in defaults.items():
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=type(value), default=value, help=f"default {value}")
    parser.add_argument("--output", type=Path, default=MODEL_DIRECTORY, help="where the model goes")
    parser.add_argument("--evaluate-every", type=int, default=500, help="steps between evaluations")
    arguments = parser.parse_args()
    return TrainingSettings(**{name: getattr(arguments, name) for name in defaults}), arguments


def main() -> None:
    """Tokenizer, model, training, evaluation, files."""
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
