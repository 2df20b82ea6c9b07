"""Contexts of tokens, packed from texts.

A context is ``context_length`` tokens, and its first token is the beginning-of-sequence token (BOS). The tokens of the
texts follow one another, with an end-of-text token after each text, and are cut wherever a context is full. No token
is padding.

``pack_contexts`` packs texts that fit in memory, and ``stream_contexts`` packs texts as they are read, once. A
``ContextStream`` packs texts that can be read again, from any ``Place`` on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain, dropwhile, islice
from typing import NamedTuple, final

import torch
from jaxtyping import Int
from torch import Tensor

from open_clt.config import TextsConfig
from open_clt.data.texts import TextSource
from open_clt.errors import TextError
from open_clt.language.language_model import LanguageModel
from open_clt.short_repr import short_repr

logger = logging.getLogger(__name__)

_SHORTEST_CONTEXT = 4
_TEXTS_AT_ONCE = 64
_FEWEST_CONTEXTS = 10
_HELD_OUT = 64
_CONTEXTS_PER_HELD_OUT = 10
"""By default one context in ten is held out, and at most 64."""


class Place(NamedTuple):
    """A place in a stream of texts or activations, from which the stream can be read again."""

    item: int = 0
    """Index of the stream's item (a text, a context or a batch) in which the place lies."""
    token: int = 0
    """Number of tokens of that item that lie before the place."""
    used: int = 0
    """Number of usable tokens before the place in the batch that begins at ``item`` and ``token``."""


_BEGINNING = Place()


class PackedContexts(NamedTuple):
    """Consecutive contexts, and the place where the first of them begins."""

    place: Place
    contexts: Int[Tensor, "context position"]

    __repr__ = short_repr


def pack_contexts(
    texts: Iterable[str],
    model: LanguageModel,
    context_length: int,
    *,
    from_start: bool = False,
    max_contexts: int | None = None,
) -> Int[Tensor, "context position"]:
    """Pack texts into contexts of ``context_length`` tokens; tokens that do not fill a last context are left out.

    A text that is cut goes on in the next context. With ``from_start`` the rest of the text is dropped instead, so
    that every context begins where a text begins. This suits short texts, and models whose prompts are beginnings of
    texts. Texts too short to fill ten contexts give ten shorter ones. With ``max_contexts``, texts are read only until
    that many contexts are full. Raises TextError if the texts do not fill a context, or if ``texts`` is one string.
    """
    if isinstance(texts, str):
        raise TextError(f"texts is one string, {texts[:40]!r}; give a list of strings.")
    room = min(context_length, model.context_length) - 1
    documents = _documents(texts, model)
    if max_contexts is None:
        documents = list(documents)
        room = _room_for(documents, room)
    rows = [row.tokens for row in islice(_rows(documents, room, from_start=from_start), max_contexts)]
    if not rows:
        raise TextError(f"The texts do not fill a context of {room} tokens; give more text.")
    return _with_bos(rows, room, model)


def stream_contexts(
    texts: Iterable[str],
    model: LanguageModel,
    context_length: int,
    size: int,
    *,
    from_start: bool = False,
    max_contexts: int | None = None,
) -> Iterator[Int[Tensor, "context position"]]:
    """Yield the contexts that ``pack_contexts`` packs, ``size`` at a time, while the texts are read once.

    Raises TextError if the texts do not fill a context, or if ``texts`` is one string.
    """
    if isinstance(texts, str):
        raise TextError(f"texts is one string, {texts[:40]!r}; give a list of strings.")
    room = min(context_length, model.context_length) - 1
    documents = _documents(texts, model)
    beginning: list[_Document] = []
    room = _room_for(_kept(documents, beginning), room)
    rows = islice(_rows(chain(beginning, documents), room, from_start=from_start), max_contexts)
    empty = True
    while chunk := [row.tokens for row in islice(rows, size)]:
        empty = False
        yield _with_bos(chunk, room, model)
    if empty:
        raise TextError(f"The texts do not fill a context of {room} tokens; give more text.")


def _kept(documents: Iterable[_Document], kept: list[_Document]) -> Iterator[_Document]:
    """Yield documents, and keep those that were read."""
    for document in documents:
        kept.append(document)
        yield document


class _Plan(NamedTuple):
    """How texts are split."""

    room: int
    """Number of tokens of a context, BOS not counted."""
    held_out: int
    """Number of contexts that are held out."""


@final
class ContextStream:
    """Contexts packed from texts while the texts are read; memory holds only a few texts at a time.

    The first contexts are held out (``head`` returns them). The contexts after them are trained on (``chunks`` yields
    them), at most ``max_contexts`` of them. Texts too short to fill ten contexts give ten shorter ones.
    """

    def __init__(self, texts: TextSource, model: LanguageModel, context_length: int, config: TextsConfig) -> None:
        self._texts = texts
        self._model = model
        self._longest = min(context_length, model.context_length) - 1
        self._config = config

    @property
    def recipe(self) -> tuple[TextSource, int, TextsConfig]:
        """The texts, the context length and the settings, from which another process makes the same stream."""
        return self._texts, self._longest + 1, self._config

    def chunks(self, size: int, place: Place = _BEGINNING) -> Iterator[PackedContexts]:
        """Yield the contexts to train on, from ``place`` on, ``size`` at a time; raises TextError if there are none."""
        rows = self._rows_to_train_on(place)
        empty = place == _BEGINNING
        while chunk := list(islice(rows, size)):
            empty = False
            yield PackedContexts(chunk[0].place, self._with_bos(chunk))
        if empty:
            raise TextError(
                f"The texts do not fill a context of {self._plan.room + 1} tokens after {self._plan.held_out} held-out "
                "contexts; give more text."
            )

    def head(self) -> Int[Tensor, "context position"]:
        """Return the contexts that are held out; raises TextError if the texts do not fill that many."""
        rows = list(islice(self._rows(_BEGINNING), self._plan.held_out))
        if len(rows) < self._plan.held_out:
            raise TextError(
                f"The texts fill {len(rows)} contexts, but {self._plan.held_out} are to be held out; give more text."
            )
        return self._with_bos(rows)

    @cached_property
    def _plan(self) -> _Plan:
        """The plan for these texts; texts are read only as far as the plan depends on them."""
        room = _room_for(_documents(self._texts(), self._model), self._longest)
        held_out = self._config.held_out_contexts
        if held_out is None:
            rows = _rows(_documents(self._texts(), self._model), room, from_start=self._config.from_start)
            held_out = _default_held_out(sum(1 for _ in islice(rows, _HELD_OUT * _CONTEXTS_PER_HELD_OUT)))
        return _Plan(room, held_out)

    def _rows_to_train_on(self, place: Place) -> Iterator[_Row]:
        """Yield the rows to train on, from a place on; a limit counts rows from the beginning of the texts."""
        held_out = self._plan.held_out
        if self._config.max_contexts is None:
            return islice(self._rows(place), held_out if place == _BEGINNING else 0, None)
        rows = islice(self._rows(_BEGINNING), held_out, held_out + self._config.max_contexts)
        return dropwhile(lambda row: row.place < place, rows)

    def _rows(self, place: Place) -> Iterator[_Row]:
        documents = _documents(self._texts(), self._model, first=place.item)
        return _rows(documents, self._plan.room, from_start=self._config.from_start, skip=place.token)

    def _with_bos(self, rows: list[_Row]) -> Int[Tensor, "context position"]:
        return _with_bos([row.tokens for row in rows], self._plan.room, self._model)


class SplitContexts(NamedTuple):
    """Contexts that are held out, and contexts that are trained on."""

    held_out: Int[Tensor, "held_out position"]
    trained: Int[Tensor, "trained position"]

    __repr__ = short_repr


def split_contexts(contexts: Int[Tensor, "context position"], config: TextsConfig) -> SplitContexts:
    """Hold out the first contexts, as ``ContextStream`` does; raises TextError if none is left to train on."""
    held_out = config.held_out_contexts
    if held_out is None:
        held_out = _default_held_out(contexts.shape[0])
    if held_out >= contexts.shape[0]:
        raise TextError(
            f"There are {contexts.shape[0]} contexts, of which {held_out} are to be held out; give more text."
        )
    return SplitContexts(contexts[:held_out], contexts[held_out:][: config.max_contexts])


def _default_held_out(n_contexts: int) -> int:
    """Return how many contexts are held out if the config does not say; at least one if there are two or more."""
    return min(_HELD_OUT, max(n_contexts // _CONTEXTS_PER_HELD_OUT, int(n_contexts > 1)))


def _room_for(documents: Iterable[_Document], room: int) -> int:
    """Return how many tokens a context has besides BOS: ``room``, or fewer if the texts do not fill ten contexts."""
    tokens = 0
    for document in documents:
        tokens += len(document.tokens)
        if tokens >= _FEWEST_CONTEXTS * room:
            return room
    shorter = max(tokens // _FEWEST_CONTEXTS, _SHORTEST_CONTEXT)
    logger.warning("The texts have only %d tokens; contexts are shortened to %d tokens.", tokens, shorter + 1)
    return shorter


class _Document(NamedTuple):
    """The tokens of a text, and the index of the text among all texts."""

    text_index: int
    tokens: list[int]


class _Row(NamedTuple):
    """The tokens of a context without BOS, and the place in the texts where they begin."""

    place: Place
    tokens: list[int]


def _with_bos(rows: list[list[int]], room: int, model: LanguageModel) -> Int[Tensor, "context position"]:
    bos = torch.full((len(rows), 1), model.bos_token_id)
    return torch.cat([bos, torch.tensor(rows, dtype=torch.long).reshape(len(rows), room)], dim=1)


def _documents(texts: Iterable[str], model: LanguageModel, *, first: int = 0) -> Iterator[_Document]:
    """Yield the tokens and an end-of-text token of each text from index ``first`` on; blank texts are skipped."""
    remaining = islice(enumerate(texts), first, None)
    while group := list(islice(remaining, _TEXTS_AT_ONCE)):
        for _, text in group:
            if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TextError(f"texts holds {text!r}, which is of type {type(text).__name__}; give strings.")
        filled = [(index, text) for index, text in group if text.strip()]
        for (index, _), tokens in zip(filled, model.token_ids([text for _, text in filled]), strict=True):
            yield _Document(index, [*tokens, model.eos_token_id])


def _rows(documents: Iterable[_Document], room: int, *, from_start: bool, skip: int = 0) -> Iterator[_Row]:
    """Yield rows of ``room`` tokens from the documents in order, without ``skip`` tokens of the first document."""
    row: list[int] = []
    begin = _BEGINNING
    for text_index, document in documents:
        used, skip = skip, 0
        while used < len(document):
            if not row:
                begin = Place(text_index, used)
            taken = min(room - len(row), len(document) - used)
            row += document[used : used + taken]
            used += taken
            if len(row) == room:
                yield _Row(begin, row)
                row = []
                used = len(document) if from_start else used
