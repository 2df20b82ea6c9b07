"""Activations of a training run: those of a language model on texts or contexts, or those of a user's own store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeAlias, final

from jaxtyping import Int
from torch import Tensor

from open_clt.config import TrainingConfig, TranscoderConfig
from open_clt.config.ignored import check_own_contexts, check_own_texts
from open_clt.config.json import to_dict
from open_clt.data.contexts import ContextStream, split_contexts
from open_clt.data.harvest import ActivationStore, Harvest
from open_clt.data.texts import TextSource
from open_clt.errors import TextError
from open_clt.language.language_model import LanguageModel
from open_clt.short_repr import short_repr
from open_clt.training.data.preparation import DataStatistics


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class RunActivations:
    """Activations to train on, activations that are held out, and the origin of both."""

    train: ActivationStore
    held_out: ActivationStore | None = None
    contexts: Int[Tensor, "context position"] | None = None
    """Tokens of the held-out contexts; None if no contexts are held out, or if the activations come from a store."""
    origin: dict[str, Any] = field(default_factory=dict[str, Any])
    """Plain values that say where the activations come from; a resumed run must have the same values."""
    statistics: DataStatistics | None = None
    """Statistics for standardisation; None estimates them."""
    about: dict[str, Any] = field(default_factory=dict[str, Any])
    """What the record of the run says of its dataset; empty without a dataset."""

    __repr__ = short_repr


class Shape(NamedTuple):
    """The settings of a transcoder that its training data decides."""

    n_layers: int
    """Number of layers of the language model."""
    d_model: int
    input_hook: str | None = None
    """Hook of the inputs; None if the transcoder decides it."""
    target_hook: str | None = None
    """Hook of the targets; None if the transcoder decides it."""

    def settings(self) -> dict[str, Any]:
        """The settings by name, without those that the data leaves open."""
        return {name: value for name, value in self._asdict().items() if value is not None}


@final
@dataclass(frozen=True, eq=False)
class ModelOnTexts:
    """A language model that reads texts."""

    model: LanguageModel
    texts: TextSource
    origin: dict[str, Any]

    __repr__ = short_repr

    @property
    def shape(self) -> Shape:
        """Number of layers and width of the language model."""
        return Shape(self.model.n_layers, self.model.d_model)

    def activations(self, transcoder: TranscoderConfig, training: TrainingConfig) -> RunActivations:
        """Pack the texts into contexts, and harvest them; raises TextError if too few contexts are left to train on."""
        stream = ContextStream(self.texts, self.model, training.data.context_length, training.texts)
        harvester = _Harvester(self.model, transcoder, training.data.harvest_batch_size)
        return harvester.activations(stream, stream.head(), self.origin)


@final
@dataclass(frozen=True, eq=False)
class ModelOnContexts:
    """A language model that reads contexts of tokens that are packed already."""

    model: LanguageModel
    contexts: Int[Tensor, "context position"]

    @property
    def shape(self) -> Shape:
        """Number of layers and width of the language model."""
        return Shape(self.model.n_layers, self.model.d_model)

    def activations(self, transcoder: TranscoderConfig, training: TrainingConfig) -> RunActivations:
        """Harvest the contexts; raises TextError if no context is left to train on."""
        held_out, train = split_contexts(self.contexts, training.texts)
        digest = hashlib.sha256(self.contexts.cpu().contiguous().numpy().tobytes()).hexdigest()
        origin = {"language_model": self.model.name, "texts": {"tokens": digest, **to_dict(training.texts)}}
        harvester = _Harvester(self.model, transcoder, training.data.harvest_batch_size)
        return harvester.activations(train, held_out, origin)

    __repr__ = short_repr


@final
@dataclass(frozen=True, eq=False)
class OwnStore:
    """A store of activations that a user brings; none of them are held out."""

    store: ActivationStore
    origin: dict[str, Any]

    __repr__ = short_repr

    @property
    def shape(self) -> Shape:
        """Number of layers and width of the first batch; raises TextError if the store is empty."""
        first_batch = next(iter(self.store), None)
        if first_batch is None:
            raise TextError("The store of activations is empty; give a store that yields batches of tokens.")
        n_layers, d_model = first_batch.inputs.shape[1:]
        return Shape(n_layers, d_model)

    def activations(self, transcoder: TranscoderConfig, training: TrainingConfig) -> RunActivations:
        """The activations of the store; the hooks that the transcoder names do not change them."""
        return RunActivations(train=self.store, origin=self.origin)


Source: TypeAlias = ModelOnTexts | ModelOnContexts | OwnStore
"""The source of a run's activations; the transcoder's config then says at which hooks they are harvested."""


def model_on(
    model: LanguageModel, texts_or_contexts: Iterable[str] | Int[Tensor, "context position"], training: TrainingConfig
) -> ModelOnTexts | ModelOnContexts:
    """The source for texts or contexts that are given in Python; raises TextError for a single string.

    Raises ConfigError if ``training`` has settings that say where texts come from.
    """
    if isinstance(texts_or_contexts, Tensor):
        check_own_contexts(training, texts_or_contexts.shape[-1])
        return ModelOnContexts(model, texts_or_contexts)
    if isinstance(texts_or_contexts, str):
        raise TextError(f"texts is one string, {texts_or_contexts[:40]!r}; give a list of strings.")
    if not isinstance(texts_or_contexts, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TextError(f"texts is {texts_or_contexts!r}; give a list of strings.")
    check_own_texts(training)
    texts = list(texts_or_contexts)
    digest = hashlib.sha256(repr(texts).encode()).hexdigest()
    origin = {"language_model": model.name, "texts": {"digest": digest, **to_dict(training.texts)}}
    return ModelOnTexts(model, partial(list, texts), origin)


class _Harvester(NamedTuple):
    """A language model, and the hooks of the transcoder that it harvests activations for."""

    model: LanguageModel
    transcoder: TranscoderConfig
    batch_size: int
    """Contexts per forward pass of the language model."""

    def harvest(self, contexts: ContextStream | Int[Tensor, "context position"]) -> Harvest:
        """The activations of the model on some contexts."""
        config = self.transcoder
        hooks = {"input_hook": config.input_hook, "target_hook": config.target_hook}
        return Harvest(self.model, contexts, **hooks, layers=config.layers, batch_size=self.batch_size)

    def activations(
        self,
        train: ContextStream | Int[Tensor, "trained position"],
        held_out: Int[Tensor, "held_out position"],
        origin: dict[str, Any],
    ) -> RunActivations:
        """The activations on contexts to train on and on contexts that are held out, of which there may be none."""
        if held_out.shape[0] == 0:
            return RunActivations(train=self.harvest(train), origin=origin)
        measured = self.harvest(held_out)
        return RunActivations(train=self.harvest(train), held_out=measured, contexts=held_out, origin=origin)
