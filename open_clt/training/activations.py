"""The activations of a training run: those of a language model on texts or contexts, or those of a store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, final

from jaxtyping import Int
from torch import Tensor

from open_clt.config import TrainingConfig, TranscoderConfig
from open_clt.config.json import to_dict
from open_clt.data.contexts import ContextStream, split_contexts
from open_clt.data.harvest import ActivationStore, Harvest
from open_clt.data.texts import TextSource
from open_clt.errors import TextError
from open_clt.language.language_model import LanguageModel


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class RunActivations:
    """Activations to train on, activations that are held out, and where both come from."""

    train: ActivationStore
    held_out: ActivationStore | None = None
    contexts: Int[Tensor, "context position"] | None = None
    """Tokens of the held-out contexts; None if nothing is held out, or activations come from a store."""
    origin: dict[str, Any] = field(default_factory=dict[str, Any])
    """Plain values that say where the activations come from; a resumed run must share them."""


class Shape(NamedTuple):
    """The part of a transcoder's shape that its data decides."""

    n_layers: int
    d_model: int


@final
@dataclass(frozen=True, eq=False)
class ModelOnTexts:
    """A language model that reads texts."""

    model: LanguageModel
    texts: TextSource
    origin: dict[str, Any]

    @property
    def shape(self) -> Shape:
        """Layers and width of the language model."""
        return Shape(self.model.n_layers, self.model.d_model)

    def activations(self, transcoder: TranscoderConfig, training: TrainingConfig) -> RunActivations:
        """Harvests of the contexts that texts fill; raises TextError if they fill fewer than are to be held out."""
        stream = ContextStream(self.texts, self.model, training.data.context_length, training.texts)
        return _harvests(self.model, stream, stream.head(), transcoder, training, self.origin)


@final
@dataclass(frozen=True, eq=False)
class ModelOnContexts:
    """A language model that reads contexts of tokens which were packed before."""

    model: LanguageModel
    contexts: Int[Tensor, "context position"]

    @property
    def shape(self) -> Shape:
        """Layers and width of the language model."""
        return Shape(self.model.n_layers, self.model.d_model)

    def activations(self, transcoder: TranscoderConfig, training: TrainingConfig) -> RunActivations:
        """Harvests of the contexts; raises TextError if none is left to train on."""
        held_out, trained = split_contexts(self.contexts, training.texts)
        digest = hashlib.sha256(self.contexts.cpu().contiguous().numpy().tobytes()).hexdigest()
        origin = {"language_model": self.model.name, "texts": {"tokens": digest, **to_dict(training.texts)}}
        return _harvests(self.model, trained, held_out, transcoder, training, origin)


@final
@dataclass(frozen=True, eq=False)
class OwnStore:
    """A store of activations of the user's own, of which nothing is held out."""

    store: ActivationStore
    origin: dict[str, Any]

    @property
    def shape(self) -> Shape:
        """The shape of the first batch."""
        first = next(iter(self.store), None)
        if first is None:
            raise TextError("The store of activations is empty; give one that yields batches of tokens.")
        return Shape(*first.inputs.shape[1:])

    def activations(self, transcoder: TranscoderConfig, training: TrainingConfig) -> RunActivations:
        """The store, whichever hooks the transcoder names."""
        return RunActivations(train=self.store, origin=self.origin)


Source: TypeAlias = ModelOnTexts | ModelOnContexts | OwnStore
"""Where the activations of a run come from, before it is known at which hooks they are taken."""


def model_on(
    model: LanguageModel, texts_or_contexts: Iterable[str] | Int[Tensor, "context position"], training: TrainingConfig
) -> ModelOnTexts | ModelOnContexts:
    """A language model on texts from Python, or on contexts; raises TextError on a single string."""
    if isinstance(texts_or_contexts, Tensor):
        return ModelOnContexts(model, texts_or_contexts)
    if isinstance(texts_or_contexts, str):
        raise TextError(f"texts is one string, {texts_or_contexts[:40]!r}; give a list of strings.")
    texts = list(texts_or_contexts)
    digest = hashlib.sha256(repr(texts).encode()).hexdigest()
    origin = {"language_model": model.name, "texts": {"digest": digest, **to_dict(training.texts)}}
    return ModelOnTexts(model, lambda: texts, origin)


def _harvests(
    model: LanguageModel,
    trained: ContextStream | Tensor,
    held_out: Tensor,
    transcoder: TranscoderConfig,
    training: TrainingConfig,
    origin: dict[str, Any],
) -> RunActivations:
    train, measured = (
        Harvest(
            model,
            contexts,
            input_hook=transcoder.input_hook,
            target_hook=transcoder.target_hook,
            batch_size=training.data.harvest_batch_size,
        )
        for contexts in (trained, held_out)
    )
    if held_out.shape[0] == 0:
        return RunActivations(train=train, origin=origin)
    return RunActivations(train=train, held_out=measured, contexts=held_out, origin=origin)
