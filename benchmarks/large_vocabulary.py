"""Large-vocabulary benchmark: memory of an evaluation and of a comparison, for a language model with 262,144 tokens.

    python benchmarks/large_vocabulary.py
    python benchmarks/large_vocabulary.py --vocabulary 32000 --positions 256

The language model is a small random Gemma-2, whose logits are bounded, and the transcoder is random too, because only
the sizes matter.

    measure        `measure` on one batch of contexts, with as many positions as `--positions`
    compare        `compare` on a text of an eighth as many tokens
    intervene      `intervene` on a text of the same length
    generate       the first token after such a text

Peak memory is anonymous memory (RssAnon) above that of the model, in MB. All logits of the positions at once, in one
copy, take `logits_mb`. The last line is JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from out_of_core import peak_memory

from open_clt.config import CrossLayerConfig, SamplingConfig, TopKConfig
from open_clt.evaluation.evaluate import measure
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.replacement.interventions.intervene import intervene
from open_clt.replacement.interventions.intervention import Intervention
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.make import make_transcoder

sys.path.append(str(Path(__file__).parent / "sides"))
from attribution_inputs import write_tokenizer

CONTEXTS = 8
_MB = 1e6


def main() -> None:
    """Run the jobs, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=2**18, help="number of tokens of the language model")
    parser.add_argument("--positions", type=int, default=1024, help="number of positions that are evaluated")
    parser.add_argument("--threads", type=int, default=2, help="number of threads")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(arguments.threads)
    length = arguments.positions // CONTEXTS
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(Path(folder), arguments.vocabulary, 2 * length)
    replacement = ReplacementModel(model, random_transcoder(model))
    contexts = torch.randint(model.vocab_size, (CONTEXTS, length), generator=torch.Generator().manual_seed(0))
    jobs: dict[str, Callable[[], object]] = {
        "measure": lambda: measure(replacement, contexts, batch_size=CONTEXTS),
        "compare": lambda: replacement.compare(contexts[0], SamplingConfig(max_new_tokens=1)),
        "intervene": lambda: intervene(replacement, contexts[0], Intervention(1, -1, 2, value=1.0)).summary(),
        "generate": lambda: replacement.generate(contexts[0], max_new_tokens=1),
    }
    results: dict[str, Any] = {"logits_mb": arguments.positions * model.vocab_size * 4 / _MB}
    print(
        f"{model.vocab_size} tokens, {CONTEXTS} contexts of {length} positions: {results['logits_mb']:.0f} MB of logits"
    )
    for name, job in jobs.items():
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory that an earlier job freed would hide what this job needs
        started = time.perf_counter()
        with peak_memory() as peak:
            job()
        results[f"{name}_seconds"] = time.perf_counter() - started
        results[f"{name}_mb"] = peak.anonymous / _MB
        print(f"{name:<10}{results[f'{name}_mb']:>8.0f} MB {results[f'{name}_seconds']:>8.1f} s")
    print(json.dumps({**results, "peak_mb": max(results[f"{name}_mb"] for name in jobs)}))


def random_model(folder: Path, vocabulary: int, context_length: int) -> LanguageModel:
    """A random Gemma-2 with two small layers, whose unembedding is its largest part."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=vocabulary,
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=context_length,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    Gemma2ForCausalLM(config).save_pretrained(folder)
    return load_language_model(write_tokenizer(folder, min(vocabulary, 1000)))


def random_transcoder(model: LanguageModel) -> Any:
    """A random transcoder of all layers of a model."""
    config = CrossLayerConfig(
        n_layers=model.n_layers, n_features=256, d_model=model.d_model, nonlinearity=TopKConfig(k=8)
    )
    return make_transcoder(config, seed=0)


if __name__ == "__main__":
    main()
