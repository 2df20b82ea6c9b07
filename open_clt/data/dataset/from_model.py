"""Datasets of a language model: the settings of one, and the store of activations that it is written from.

harvested = harvest_settings(model, text, tokens=1_000_000, shard_tokens=16_384, dtype="bfloat16")
write_dataset(store_of(model, texts, harvested), harvested, directory)
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from open_clt.config import TextsConfig
from open_clt.data.contexts import ContextStream
from open_clt.data.dataset.manifest import Harvested, HarvestedText
from open_clt.data.harvest import Harvest
from open_clt.data.texts import TextSource
from open_clt.language.language_model import LanguageModel


def harvest_settings(model: LanguageModel, text: HarvestedText, **settings: Any) -> Harvested:
    """The settings of a dataset of a language model's activations; ``settings`` are those of ``Harvested``.

    Raises ConfigError for an illegal setting, and LanguageModelError if the model lacks a hook, or if a hook does not
    carry ``d_model`` numbers per token.
    """
    shape = {"n_layers": model.n_layers, "d_model": model.d_model}
    harvested = Harvested(model=model.name, vocabulary=vocabulary_hash(model), text=text, **shape, **settings)
    model.capture(torch.tensor([[model.bos_token_id]]), harvested.input_hook, harvested.target_hook)
    return harvested


def vocabulary_hash(model: LanguageModel) -> str:
    """SHA-256 of the tokens of a language model as texts, so that a dataset is not used with another tokenizer."""
    tokens = model.token_strings(range(model.vocab_size))
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def store_of(model: LanguageModel, texts: TextSource, harvested: Harvested) -> Harvest:
    """The store of a language model's activations on texts, of which no context is held out."""
    config = TextsConfig(from_start=harvested.text.from_start, held_out_contexts=0)
    contexts = ContextStream(texts, model, harvested.text.context_length, config)
    return Harvest(model, contexts, input_hook=harvested.input_hook, target_hook=harvested.target_hook)
