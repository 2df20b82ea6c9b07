"""Encoded text: which features are active at every token of a text, and which words stand near.

A word is the text of a token without the spaces around it. It is near a token if it stands at most ``REACH`` tokens
before or after it, in the same document. Both tables are sparse, so the text can be long.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from scipy.sparse import csc_array
from scipy.stats import rankdata
from torch import Tensor

from open_clt.config.arguments import checked_arguments
from open_clt.features.firing import encode_contexts
from open_clt.language.language_model import LanguageModel
from open_clt.progress import report_progress
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.transcoder import Transcoder

REACH = 6
"""Largest distance in tokens at which a word is near."""
_AT_ONCE = 64
"""Number of contexts that are encoded at once."""
_RIDGE = 1.0
"""Share of each feature's variance that is added to it, so that few examples of a feature do not decide."""


class NearbyWords(NamedTuple):
    """How the activations of some features go together, and with which words near."""

    words: tuple[str, ...]
    """The words of the text."""
    chance: Float[Tensor, "word"]
    """Share of the tokens that each word is near."""
    covariance: Float[Tensor, "feature feature"]
    """Covariances of the features' activations over the tokens."""
    with_words: Float[Tensor, "feature word"]
    """Covariances of the features' activations with whether each word is near."""

    __repr__ = short_repr

    def direction(self, rows: Sequence[int], change: Float[Tensor, "row"]) -> Float[Tensor, "row"]:
        """The weights of some features that tell a change of their activations from what varies anyway (ridge)."""
        among = self.covariance[rows][:, rows]
        diagonal = among.diagonal().clamp(min=1e-9)
        return torch.linalg.solve(among + torch.diag(_RIDGE * diagonal + 1e-9), change.double())

    def rise(self, rows: Sequence[int], change: Float[Tensor, "row"]) -> Float[Tensor, "row word"]:
        """How much a change of some features' activations raises the chance that each word is near: a linear estimate.

        Row i is the share of feature i in the rise; their sum is the rise. The estimate is that of ridge regression.
        """
        among = self.covariance[rows][:, rows]
        diagonal = among.diagonal().clamp(min=1e-9)
        weights = torch.linalg.solve(among + torch.diag(_RIDGE * diagonal + 1e-9), self.with_words[rows])
        return change.double()[:, None] * weights


@final
class EncodedText:
    """The active features of all layers at every token of some contexts, and the words near every token."""

    @checked_arguments
    def __init__(self, model: LanguageModel, transcoder: Transcoder, contexts: Int[Tensor, "context position"]) -> None:
        self.contexts = contexts.cpu()
        names = [text.strip() for text in model.token_strings(torch.arange(model.vocab_size))]
        self.words = tuple(sorted(set(names) - {""}))
        numbers = {word: number for number, word in enumerate(self.words)}
        self._word_of = np.array([numbers.get(name, -1) for name in names])
        self._word_of[model.bos_token_id] = -1
        self._bos = model.bos_token_id
        self._config = transcoder.config
        self._activations = _activations(model, transcoder, self.contexts)

    @property
    def n_tokens(self) -> int:
        """Number of tokens of the text."""
        return self.contexts.numel()

    @cached_property
    def _near(self) -> Any:
        """Whether each word is near each token: a sparse array of ones, (token, word)."""
        tokens = self.contexts.numpy()
        n_contexts, length = tokens.shape
        document = (tokens == self._bos).cumsum(1)
        rows: list[npt.NDArray[Any]] = []
        columns: list[npt.NDArray[Any]] = []
        for distance in range(-REACH, REACH + 1):
            places = np.arange(max(0, -distance), min(length, length - distance))
            words = self._word_of[tokens[:, places + distance]]
            counts = (document[:, places + distance] == document[:, places]) & (words >= 0)
            rows.append((np.arange(n_contexts)[:, None] * length + places)[counts])
            columns.append(words[counts])
        keys = np.unique(np.concatenate(rows).astype(np.int64) * len(self.words) + np.concatenate(columns))
        shape = self.n_tokens, len(self.words)
        return csc_array((np.ones(len(keys)), np.divmod(keys, len(self.words))), shape=shape)

    def nearby(self, chosen: Sequence[Feature]) -> NearbyWords:
        """Which words are near where some features are active."""
        columns = self._columns(chosen)
        mean, chance = (np.asarray(table.mean(0)).ravel() for table in (columns, self._near))
        covariance = (columns.T @ columns).toarray() / self.n_tokens - np.outer(mean, mean)
        with_words = (columns.T @ self._near).toarray() / self.n_tokens - np.outer(mean, chance)
        tables = (torch.from_numpy(table) for table in (chance, covariance, with_words))
        return NearbyWords(self.words, *tables)

    def support(self, beside: Sequence[str], words: Sequence[str]) -> Float[Tensor, "word"]:
        """How often each word is near some tokens: the share of a token's occurrences, then the mean over the tokens.

        A token that the text lacks, and one that is the word itself, does not count; if none counts, the support is 0.
        """
        number_of = {word: number for number, word in enumerate(self.words)}
        anchors = {number_of[token.strip()] for token in beside if token.strip() in number_of}
        numbers = self._word_of[self.contexts.numpy().ravel()]
        near = self._near[:, [number_of[word] for word in words]].tocsr()
        total, counted = np.zeros(len(words)), np.zeros(len(words))
        for anchor in sorted(anchors & set(numbers.tolist())):
            others = np.array([number_of[word] != anchor for word in words])
            total += np.where(others, np.asarray(near[numbers == anchor].mean(0)).ravel(), 0)
            counted += others
        return torch.from_numpy(total / np.maximum(counted, 1))

    def tells(self, chosen: Sequence[Feature], direction: Float[Tensor, "feature"], word: str) -> tuple[float, int]:
        """How well a weighted sum of features tells the tokens near a word from the others, and how many are near.

        The first number is the area under the ROC curve: 0.5 is chance. It is 0.5 if the word is near no token.
        """
        if word not in self.words:
            return 0.5, 0
        near = np.zeros(self.n_tokens, dtype=bool)
        near[self._near[:, [self.words.index(word)]].tocoo().row] = True
        count = int(near.sum())
        if count in (0, len(near)):
            return 0.5, count
        ranks = rankdata(self._columns(chosen) @ direction.double().numpy())
        area = (ranks[near].sum() - count * (count + 1) / 2) / (count * (len(near) - count))
        return float(area), count

    def _columns(self, chosen: Sequence[Feature]) -> Any:
        places = [self._config.place_of(feature.layer) for feature in chosen]
        columns = [p * self._config.n_features + feature.index for p, feature in zip(places, chosen, strict=True)]
        return self._activations[:, columns]

    __repr__ = short_repr


@torch.no_grad()
def _activations(model: LanguageModel, transcoder: Transcoder, contexts: Int[Tensor, "context position"]) -> Any:
    """The activations of all features: a sparse array, (token, place and feature), whose unused positions are empty."""
    length, config, unused = contexts.shape[1], transcoder.config, transcoder.first_position
    rows: list[npt.NDArray[Any]] = []
    columns: list[npt.NDArray[Any]] = []
    values: list[npt.NDArray[Any]] = []
    for first in range(0, len(contexts), _AT_ONCE):
        report_progress("encoding the text", first, len(contexts))
        encoded = encode_contexts(model, transcoder, contexts[first : first + _AT_ONCE].to(model.device))
        for place, active in enumerate(encoded):
            context, position = np.divmod(active.rows.cpu().numpy(), length - unused)
            rows.append((first + context) * length + position + unused)
            columns.append(place * config.n_features + active.features.cpu().numpy())
            values.append(active.values.float().cpu().numpy())
    shape = contexts.numel(), config.n_layers * config.n_features
    places = np.concatenate(rows), np.concatenate(columns)
    return csc_array((np.concatenate(values).astype(np.float64), places), shape=shape)
