"""The source of activations that flags name: a dataset, a user's own store, or a language model on texts."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TypeAlias

import torch
from jsonargparse import ArgumentParser

from open_clt.config import DataConfig, DatasetConfig, TextsConfig
from open_clt.config.ignored import DATASET_SETTINGS
from open_clt.data.harvest import ActivationStore
from open_clt.data.texts import TextSource, open_texts
from open_clt.errors import ConfigError
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.training.data.activations import ModelOnTexts, OwnStore, Source
from open_clt.training.data.stored import StoredActivations
from open_clt.training.flags.settings import add_class, add_settings, read_settings, user_class
from open_clt.training.trainer import Settings

MODEL, DTYPE = "gpt2", "float32"
"""Name and precision of the language model where no flag gives them."""
FlagSource: TypeAlias = Source | StoredActivations


def add_source_flags(parser: ArgumentParser) -> None:
    """Add the flags of the group ``data``, apart from the length and the seed of a run."""
    add_settings(parser, "data", DataConfig, skip=("epochs", "max_steps", "seed"))
    add_settings(parser, "data", DatasetConfig)
    add_settings(parser, "data.texts", TextsConfig)
    add_class(parser, "data.texts", "Texts of your own: a function that returns the same strings at every call.")
    add_class(parser, "data", "Activations of your own (an ActivationStore), in place of a language model and texts.")
    for name, default, text in (
        ("language_model", MODEL, "Language model: a name, a directory, a .gguf file, or 'embedded'"),
        ("dtype", DTYPE, "Precision in which the language model computes: float32 or bfloat16"),
    ):
        help_text = f"{text} (default: {default})."
        parser.add_argument(f"--data.{name}", type=str, default=argparse.SUPPRESS, help=help_text)


def source_of(data: Settings, device: torch.device) -> tuple[FlagSource, LanguageModel | None]:
    """The source of activations, and the language model if there is one.

    ``data`` are the settings of the group ``data``. Those that are not fields of ``DataConfig`` or ``DatasetConfig``
    are removed.
    """
    texts: Settings = data.setdefault("texts", {})
    if not isinstance(data.get("language_model", ""), str):
        raise ConfigError(
            f"data.language_model is {data['language_model']!r}; it must be the name of a language model."
        )
    name, dtype = data.pop("language_model", None), data.pop("dtype", DTYPE)
    if data.get("path") is not None:
        return _dataset(data, name, dtype, device)
    name = MODEL if name is None else name
    origin = {"language_model": name, "texts": dict(texts), "activations": data.get("class_path")}
    own_store = user_class(data, "data")
    if own_store is None:
        texts_of = _texts(texts)
        model = load_language_model(name, device=device, dtype=dtype)
        return ModelOnTexts(model, texts_of, origin), model
    store = own_store()
    if not isinstance(store, ActivationStore):
        raise ConfigError(
            f"data.class_path is {origin['activations']!r}, which is not an ActivationStore; name a class that has "
            "n_tokens and __iter__."
        )
    return OwnStore(store, origin), None


def _dataset(
    data: Settings, name: str | None, dtype: str, device: torch.device
) -> tuple[StoredActivations, LanguageModel | None]:
    """A dataset of activations; with a language model, also the texts on which it is evaluated after training."""
    config = read_settings(DatasetConfig, {key: data[key] for key in DATASET_SETTINGS if key in data}, "data")
    if name is None:
        return StoredActivations(config=config), None
    texts_of = _texts(data["texts"])
    model = load_language_model(name, device=device, dtype=dtype)
    return StoredActivations(config=config, model=model, texts=texts_of), model


def _texts(texts: Settings) -> TextSource:
    """The texts that the settings name; ``class_path`` and its arguments are removed from the settings."""
    own_texts = user_class(texts, "data.texts")
    if own_texts is None and texts.get("source") is None:
        raise ConfigError("data.texts.source is missing; name a file or a data set of texts.")
    texts_config: TextsConfig = read_settings(TextsConfig, texts, "data.texts")
    return own_texts or partial(open_texts, texts_config)
