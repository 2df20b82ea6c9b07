"""Ignored settings: a setting that a run would not use, because something else takes its place, is refused."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, fields
from operator import attrgetter
from typing import Any, NamedTuple

from open_clt.config.dataset import DatasetConfig
from open_clt.config.texts import TextsConfig
from open_clt.config.training import LossConfig, TrainingConfig
from open_clt.config.transcoder import CrossLayerConfig, TranscoderConfig
from open_clt.errors import ConfigError, short_value
from open_clt.short_repr import short_repr

SOURCE_SETTINGS = ("source", "column", "subset", "split", "streaming", "bad_rows")
"""Settings of texts that are read from a file or a data set."""
MODEL_SETTINGS = ("language_model", "dtype", "context_length", "harvest_batch_size", "harvest_process")
"""Settings of the language model that activations come from."""
DATASET_SETTINGS = tuple(field.name for field in fields(DatasetConfig))
"""Settings of a dataset of activations."""
LOSS_SETTINGS = tuple(field.name for field in fields(LossConfig) if field.name != "dead_after_tokens")
"""Settings of the terms of the built-in loss; every run counts dead features."""
OPTIMIZER_SETTINGS = ("learning_rate", "betas", "weight_decay")
"""Settings of Adam; the schedule scales the learning rate of any optimizer."""
_PACKED = "the contexts are packed already"
_STORED = "the activations are given, and no text is read"


def refuse_given(values: Mapping[str, Any], names: Collection[str], key: str, reason: str) -> None:
    """Raise ConfigError if settings below ``key`` are given that the run would ignore for this reason."""
    if ignored := [name for name in values if name in names]:
        raise ConfigError(f"{key}.{ignored[0]} is given, but {reason}; remove one of the two settings.")


def refuse_changed(config: object, names: Collection[str], part: str, reason: str) -> None:
    """Raise ConfigError if settings of a config differ from their defaults, but the run would ignore them.

    ``part`` is the name of the config in a TrainingConfig. A default beside what replaces it cannot be noticed.
    """
    for field in fields(config):  # pyright: ignore[reportArgumentType]  (it is a config)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(config, field.name)
        if field.name in names and value != default:
            raise ConfigError(f"{part}.{field.name} is {short_value(value)}, but {reason}; remove this setting.")


class Unused(NamedTuple):
    """Settings that a run does not use, because another setting turns off what they belong to."""

    part: str
    """Name of their config in a TrainingConfig."""
    names: tuple[str, ...]
    reason: str

    __repr__ = short_repr


def unused_settings(training: TrainingConfig) -> Iterator[Unused]:
    """The settings that no run with this config uses."""
    loss = training.learning.loss
    if training.dataset.path is None:
        yield Unused("dataset", DATASET_SETTINGS[1:], "no dataset is given (path)")
    if loss.preactivation == 0:
        yield Unused("learning.loss", ("preactivation_on",), "the coefficient preactivation is 0")
    if loss.auxiliary == 0:
        yield Unused("learning.loss", ("auxiliary_k",), "the coefficient auxiliary is 0")
    if loss.sparsity is not None and loss.sparsity.coefficient == 0:
        yield Unused("learning.loss.sparsity", ("steepness", "warmup"), "the coefficient is 0")


def check_unused(training: TrainingConfig) -> None:
    """Raise ConfigError for a setting that another setting of the same run turns off."""
    for unused in unused_settings(training):
        refuse_changed(attrgetter(unused.part)(training), unused.names, unused.part, unused.reason)


def check_distance(training: TrainingConfig, transcoder: TranscoderConfig) -> None:
    """Raise ConfigError if the distance between layers has a price, but no feature writes to another layer."""
    loss = training.learning.loss
    if loss.distance_penalty and not (isinstance(transcoder, CrossLayerConfig) and transcoder.reach != 1):
        reason = "features of this transcoder write to their own layer only"
        refuse_changed(loss, ["distance_penalty"], "learning.loss", reason)


def check_no_output(training: TrainingConfig) -> None:
    """Raise ConfigError for settings of checkpoints, where a run has no output directory and writes none."""
    names = [field.name for field in fields(training.checkpoints)]
    refuse_changed(training.checkpoints, names, "checkpoints", "the run has no output directory")


def check_own_texts(training: TrainingConfig) -> None:
    """Raise ConfigError for settings of a source of texts, where texts are given."""
    refuse_changed(training.texts, SOURCE_SETTINGS, "texts", "the texts are given")
    refuse_changed(training.dataset, DATASET_SETTINGS, "dataset", "the texts are given")


def check_own_contexts(training: TrainingConfig, length: int) -> None:
    """Raise ConfigError for settings that say how texts become contexts, where contexts of a length are given."""
    refuse_changed(training.texts, (*SOURCE_SETTINGS, "from_start"), "texts", _PACKED)
    refuse_changed(training.dataset, DATASET_SETTINGS, "dataset", _PACKED)
    if training.data.context_length != length:
        refuse_changed(training.data, ["context_length"], "data", f"the given contexts have {length} tokens")


def check_own_activations(training: TrainingConfig) -> None:
    """Raise ConfigError for settings of texts, of a language model and of a dataset, where activations are given."""
    check_stored_activations(training)
    refuse_changed(training.dataset, DATASET_SETTINGS, "dataset", _STORED)


def check_stored_activations(training: TrainingConfig) -> None:
    """Raise ConfigError for settings of texts and of a language model, where a dataset has the activations."""
    refuse_changed(training.texts, [field.name for field in fields(TextsConfig)], "texts", _STORED)
    refuse_changed(training.data, MODEL_SETTINGS, "data", _STORED)


def check_own_parts(training: TrainingConfig, *, loss: bool, optimizer: bool) -> None:
    """Raise ConfigError for settings of the built-in loss or of Adam, where the user brings one of their own."""
    if loss:
        refuse_changed(training.learning.loss, LOSS_SETTINGS, "learning.loss", "the run has a loss of its own")
    if optimizer:
        reason = "the run has an optimizer of its own, which has its own settings"
        refuse_changed(training.learning, OPTIMIZER_SETTINGS, "learning", reason)
