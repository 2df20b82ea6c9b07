"""Training on a dataset of activations that was harvested before: no language model computes anything.

The manifest of the dataset decides the number of layers, the width and the hooks of the transcoder. A dataset does not
say to which context a token belongs, and mixes the tokens of many contexts. So held-out tokens are the first tokens of
the dataset, whose contexts may also have tokens to train on, or all tokens of a second dataset of other text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, final

import torch

from open_clt.config import DatasetConfig, TrainingConfig, TranscoderConfig
from open_clt.config.json import to_dict
from open_clt.data.contexts import ContextStream, Place
from open_clt.data.dataset.fits import check_dataset_fits
from open_clt.data.dataset.from_model import vocabulary_hash
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.dataset.shards import Rows, batch_of
from open_clt.data.dataset.statistics import Moments
from open_clt.data.harvest import ActivationBatch, Placed
from open_clt.data.texts import TextSource
from open_clt.errors import ConfigError, TextError
from open_clt.language.language_model import LanguageModel
from open_clt.short_repr import short_repr
from open_clt.training.data.activations import RunActivations, Shape
from open_clt.training.data.preparation import DataStatistics
from open_clt.transcoders.standardisation import Statistics, statistics_of

_CHUNK = 1024
"""Number of tokens that are read at once."""
_HELD_OUT = 8192
_TOKENS_PER_HELD_OUT = 10
"""By default one token in ten is held out, and at most 8,192."""


class Piece(NamedTuple):
    """Consecutive tokens of one shard."""

    shard: int
    begin: int
    end: int


@final
class DatasetTokens:
    """A store of consecutive tokens of a dataset, which are read from their files shard by shard.

    The shards are read in sequence, or in a random order that depends on a seed only.
    """

    def __init__(
        self,
        dataset: ActivationDataset,
        pieces: Sequence[Piece],
        layers: tuple[int, ...] | None = None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """``layers`` are the layers of the dataset that are read; None is all of them.

        Shards that are fetched from a server are given up soon after ``is_stopped`` returns True.
        """
        self.dataset = dataset
        self.layers = layers
        self._is_stopped = is_stopped
        self.n_tokens = sum(piece.end - piece.begin for piece in pieces)
        self._pieces = pieces

    @staticmethod
    def of(
        dataset: ActivationDataset,
        tokens: range,
        *,
        layers: tuple[int, ...] | None = None,
        random_seed: int | None = None,
    ) -> DatasetTokens:
        """The store of these tokens and layers of a dataset; a seed puts the shards in a random order."""
        sizes = [shard.tokens for shard in dataset.manifest.shards]
        pieces = _cut([Piece(index, 0, size) for index, size in enumerate(sizes)], tokens)
        if random_seed is not None:
            generator = torch.Generator().manual_seed(random_seed)
            pieces = [pieces[index] for index in torch.randperm(len(pieces), generator=generator).tolist()]
        return DatasetTokens(dataset, pieces, layers)

    def share(self, part: int, parts: int, is_stopped: Callable[[], bool] = lambda: False) -> DatasetTokens:
        """One of ``parts`` shares: consecutive tokens in the order in which they are read."""
        first, last = (self.n_tokens * end // parts for end in (part, part + 1))
        return DatasetTokens(self.dataset, _cut(self._pieces, range(first, last)), self.layers, is_stopped)

    def holds_more_than(self, tokens: int) -> bool:
        """Whether there are more tokens than this number."""
        return self.n_tokens > tokens

    def __iter__(self) -> Iterator[ActivationBatch]:
        return (batch for _, batch in self.read_from(Place()))

    def read_from(self, place: Place) -> Iterator[Placed]:
        """Yield the activations from a place on: ``item`` counts shards, and ``token`` the tokens of that shard."""
        pieces = self._pieces[place.item :]
        shards = self.dataset.manifest.shards
        opened = self.dataset.opened((shards[piece.shard] for piece in pieces), self._is_stopped)
        for item, (piece, tensors) in enumerate(zip(pieces, opened, strict=True), start=place.item):
            first = max(piece.begin, place.token if item == place.item else 0)
            for begin in range(first, piece.end, _CHUNK):
                end = min(begin + _CHUNK, piece.end)
                batch = batch_of([Rows(tensors, slice(begin, end), end - begin)], self.layers)
                yield Placed(Place(item, begin), batch)


def _cut(pieces: Sequence[Piece], tokens: range) -> list[Piece]:
    """The parts of a sequence of pieces that hold some of its tokens."""
    parts: list[Piece] = []
    before = 0
    for shard, first, last in pieces:
        begin, end = max(tokens.start - before, 0), min(tokens.stop - before, last - first)
        if begin < end:
            parts.append(Piece(shard, first + begin, first + end))
        before += last - first
    return parts


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class StoredActivations:
    """A dataset of activations, and what is held out; with a model and texts, the model is evaluated on the texts."""

    config: DatasetConfig
    model: LanguageModel | None = None
    """Language model for the evaluation after training, if there is one."""
    texts: TextSource | None = None
    """Texts for the evaluation, whose first contexts are used."""

    __repr__ = short_repr

    @cached_property
    def dataset(self) -> ActivationDataset:
        """The dataset.

        Raises CheckpointError if it is missing or damaged, ServiceError if its server does not answer, and ConfigError
        if it is of another model.
        """
        assert self.config.path is not None, "a dataset is given"
        dataset = ActivationDataset(self.config.path)
        if self.model is not None:
            _check_model(dataset, self.model)
        dataset.check()
        return dataset

    @property
    def shape(self) -> Shape:
        """The settings of a transcoder that the dataset decides."""
        harvested = self.dataset.manifest.harvested
        return Shape(harvested.n_layers, harvested.d_model, harvested.input_hook, harvested.target_hook)

    @property
    def language_model(self) -> str:
        """Name of the language model whose activations the dataset holds."""
        return self.dataset.manifest.harvested.model

    def activations(self, transcoder: TranscoderConfig, training: TrainingConfig) -> RunActivations:
        """The tokens to train on and the held-out ones; raises ConfigError if the transcoder does not fit the dataset.

        Raises TextError if no token is left to train on.
        """
        dataset, config = self.dataset, self.config
        check_dataset_fits(dataset.manifest.harvested, transcoder, dataset.source)
        held_out, kept = self._held_out(transcoder.layers)
        tokens = range(kept, len(dataset))
        if not tokens:
            raise TextError(
                f"{config.path} has {len(dataset):,} tokens, and {kept:,} are held out; hold out fewer "
                "(held_out_tokens)."
            )
        seed = training.data.seed if config.order == "random" else None
        return RunActivations(
            train=DatasetTokens.of(dataset, tokens, layers=transcoder.layers, random_seed=seed),
            held_out=held_out,
            contexts=self._contexts(training),
            origin={
                "dataset": dataset_digest(dataset),
                "held_out": dataset_digest(held_out.dataset) if config.held_out_path and held_out else kept,
                "order": config.order,
                "statistics": config.statistics,
            },
            statistics=self._statistics(transcoder) if config.statistics == "stored" else None,
            about=about_dataset(dataset),
        )

    def _held_out(self, layers: tuple[int, ...] | None) -> tuple[DatasetTokens | None, int]:
        """The held-out tokens, and the number of tokens at the beginning of the dataset that they take."""
        config, dataset = self.config, self.dataset
        if config.held_out_path is not None:
            other = ActivationDataset(config.held_out_path)
            _check_alike(dataset, other)
            return DatasetTokens.of(other, range(len(other)), layers=layers), 0
        kept = config.held_out_tokens
        if kept is None:
            kept = min(_HELD_OUT, len(dataset) // _TOKENS_PER_HELD_OUT)
        kept = min(kept, len(dataset))
        return (DatasetTokens.of(dataset, range(kept), layers=layers), kept) if kept else (None, 0)

    def _contexts(self, training: TrainingConfig) -> Any:
        """Contexts of the texts on which the language model and the transcoder are evaluated."""
        if self.model is None or self.texts is None:
            return None
        head = ContextStream(self.texts, self.model, training.data.context_length, training.texts).head()
        return head if len(head) else None

    def _statistics(self, transcoder: TranscoderConfig) -> DataStatistics:
        """The statistics that the dataset stores, with or without first positions."""
        stored, first = self.dataset.statistics, transcoder.use_first_position
        moments = stored.inputs(use_first_position=first), stored.targets(use_first_position=first)
        layers = list(transcoder.model_layers)
        return DataStatistics(*(_standardising(of_hook, layers) for of_hook in moments))


def _standardising(moments: Moments, layers: list[int]) -> Statistics:
    return statistics_of(moments.mean[layers], moments.variance[layers].sum(1))


def complete_config(transcoder: TranscoderConfig, source: StoredActivations) -> TranscoderConfig:
    """The config of a transcoder with the name of the dataset's language model, unless it names one."""
    return replace(transcoder, language_model=transcoder.language_model or source.language_model)


def dataset_digest(dataset: ActivationDataset) -> str:
    """SHA-256 of what the manifest says: the same for every copy of a dataset, on disk or on a server."""
    return hashlib.sha256(json.dumps(to_dict(dataset.manifest), sort_keys=True).encode()).hexdigest()


def about_dataset(dataset: ActivationDataset) -> dict[str, Any]:
    """What the record of a training run says of its dataset."""
    harvested = dataset.manifest.harvested
    names = ("model", "input_hook", "target_hook", "dtype")
    return {
        "sha256": dataset_digest(dataset),
        "tokens": len(dataset),
        **{name: getattr(harvested, name) for name in names},
        "text": to_dict(harvested.text),
    }


def _check_model(dataset: ActivationDataset, model: LanguageModel) -> None:
    """Raise ConfigError if a dataset does not hold activations of a language model."""
    harvested, place = dataset.manifest.harvested, dataset.source
    if (harvested.n_layers, harvested.d_model) != (model.n_layers, model.d_model):
        raise ConfigError(
            f"{place} holds activations of {harvested.model!r}, with n_layers = {harvested.n_layers} and d_model = "
            f"{harvested.d_model}, but the language model {model.name!r} has n_layers = {model.n_layers} and d_model = "
            f"{model.d_model}; use the model of the dataset, or harvest this model."
        )
    if harvested.vocabulary and harvested.vocabulary != vocabulary_hash(model):
        raise ConfigError(
            f"{place} holds activations of {harvested.model!r}, whose vocabulary is not that of the language model "
            f"{model.name!r}; use the model of the dataset, or harvest this model."
        )


def _check_alike(dataset: ActivationDataset, other: ActivationDataset) -> None:
    """Raise ConfigError if the activations of two datasets are not of the same kind."""
    ours, theirs = dataset.manifest.harvested, other.manifest.harvested
    for name in ("n_layers", "d_model", "input_hook", "target_hook", "vocabulary"):
        if getattr(ours, name) != getattr(theirs, name):
            raise ConfigError(
                f"{other.source} has {name} = {getattr(theirs, name)!r}, but {dataset.source} has "
                f"{getattr(ours, name)!r}; hold out a dataset of the same model and hooks."
            )
