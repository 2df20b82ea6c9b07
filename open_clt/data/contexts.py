"""Contexts of tokens, packed from texts.

A context is ``context_length`` tokens, the first of them the beginning-of-sequence token. Texts follow one another with
an end-of-text token between them, cut wherever a context is full: no token is padding.

``pack_contexts`` packs texts that fit memory; a ``ContextStream`` packs them as they are needed, from any place on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import dropwhile, islice
from typing import NamedTuple, final

import torch
from jaxtyping import Int
from torch import Tensor

from open_clt.config import TextsConfig
from open_clt.data.texts import TextSource
from open_clt.errors import TextError
from open_clt.language.language_model import LanguageModel

logger = logging.getLogger(__name__)

_SHORTEST_CONTEXT = 4
_TEXTS_AT_ONCE = 64
_FEWEST_CONTEXTS = 10
_HELD_OUT = 64
_HELD_OUT_SHARE = 10
"""Without other orders one context in ten is held out, and 64 at most."""


class Place(NamedTuple):
    """A place in a stream of texts or activations, from which it can be read again."""

    item: int = 0
    """Number of a text (of a context, of a batch: whatever the stream is made of)."""
    token: int = 0
    """Tokens of that text that were read before."""
    used: int = 0
    """Usable tokens of the batch that begins here which belong to what was read before."""


_BEGINNING = Place()


class PackedContexts(NamedTuple):
    """Some contexts, and the place where the first of them begins."""

    place: Place
    contexts: Int[Tensor, "context position"]


def pack_contexts(
    texts: Iterable[str],
    model: LanguageModel,
    context_length: int,
    *,
    from_start: bool = False,
    max_contexts: int | None = None,
) -> Int[Tensor, "context position"]:
    """Pack texts into contexts of ``context_length`` tokens; what does not fill the last one is left out.

    A text that is cut goes on in the next context. With ``from_start`` its rest is dropped instead, so that every
    context begins as a text begins: for short texts, and models whose prompts are the beginnings of texts.
    Texts too short to fill ten contexts give ten shorter ones. ``max_contexts`` stops early, so that a streamed data
    set is read no further than needed. Raises TextError if there is hardly any text, or if ``texts`` is one string.
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


class _Plan(NamedTuple):
    """How texts are cut: tokens of a context without BOS, and how many contexts are held out."""

    room: int
    held_out: int


@final
class ContextStream:
    """Contexts packed from texts while they are read: memory holds a few texts, however many there are.

    The first contexts are held out (``head`` gives them), and the others are trained on (``chunks``), at most
    ``max_contexts`` of them. Texts too short to fill ten contexts give ten shorter ones.
    """

    def __init__(self, texts: TextSource, model: LanguageModel, context_length: int, config: TextsConfig) -> None:
        self._texts = texts
        self._model = model
        self._longest = min(context_length, model.context_length) - 1
        self._config = config

    def chunks(self, size: int, place: Place = _BEGINNING) -> Iterator[PackedContexts]:
        """The contexts to train on from ``place`` on, ``size`` at a time; raises TextError if there are none at all."""
        rows = self._trained_from(place)
        empty = place == _BEGINNING
        while some := list(islice(rows, size)):
            empty = False
            yield PackedContexts(some[0].place, self._with_bos(some))
        if empty:
            raise TextError(
                f"The texts fill no context of {self._plan.room + 1} tokens beside those that are held out; give more "
                "text."
            )

    def head(self) -> Int[Tensor, "context position"]:
        """The contexts that are held out; raises TextError if the texts fill fewer than were asked for."""
        rows = list(islice(self._rows(_BEGINNING), self._plan.held_out))
        if len(rows) < self._plan.held_out:
            raise TextError(
                f"The texts fill {len(rows)} contexts, {self._plan.held_out} are to be held out; give more text."
            )
        return self._with_bos(rows)

    @cached_property
    def _plan(self) -> _Plan:
        """Read as far into the texts as it takes to know how to cut them."""
        room = _room_for(_documents(self._texts(), self._model), self._longest)
        wanted = self._config.held_out_contexts
        if wanted is None:
            rows = _rows(_documents(self._texts(), self._model), room, from_start=self._config.from_start)
            wanted = _default_held_out(sum(1 for _ in islice(rows, _HELD_OUT * _HELD_OUT_SHARE)))
        return _Plan(room, wanted)

    def _trained_from(self, place: Place) -> Iterator[_Row]:
        """Rows to train on. Which rows those are is counted from the beginning, if there is a limit."""
        skipped = self._plan.held_out
        if self._config.max_contexts is None:
            return islice(self._rows(place), skipped if place == _BEGINNING else 0, None)
        rows = islice(self._rows(_BEGINNING), skipped, skipped + self._config.max_contexts)
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


def split_contexts(contexts: Int[Tensor, "context position"], config: TextsConfig) -> SplitContexts:
    """Hold out the first contexts, as ``ContextStream`` does; raises TextError if none is left to train on."""
    wanted = config.held_out_contexts
    held_out = _default_held_out(contexts.shape[0]) if wanted is None else wanted
    if held_out >= contexts.shape[0]:
        raise TextError(
            f"There are {contexts.shape[0]} contexts, of which {held_out} are to be held out; give more text."
        )
    return SplitContexts(contexts[:held_out], contexts[held_out:][: config.max_contexts])


def _default_held_out(contexts: int) -> int:
    """How many of the first contexts are held out where no number was asked for; one of two at least."""
    return min(_HELD_OUT, max(contexts // _HELD_OUT_SHARE, int(contexts > 1)))


def _room_for(documents: Iterable[_Document], room: int) -> int:
    """Tokens of a context without BOS: ``room``, or fewer where the texts would not fill ten such contexts."""
    tokens = 0
    for document in documents:
        tokens += len(document.tokens)
        if tokens >= _FEWEST_CONTEXTS * room:
            return room
    shorter = max(tokens // _FEWEST_CONTEXTS, _SHORTEST_CONTEXT)
    logger.warning("The texts hold only %d tokens: contexts are shortened to %d.", tokens, shorter + 1)
    return shorter


class _Document(NamedTuple):
    """Tokens of a text, and its number."""

    number: int
    tokens: list[int]


class _Row(NamedTuple):
    """Tokens of a context without BOS, and where they begin."""

    place: Place
    tokens: list[int]


def _with_bos(rows: list[list[int]], room: int, model: LanguageModel) -> Int[Tensor, "context position"]:
    bos = torch.full((len(rows), 1), model.bos_token_id)
    return torch.cat([bos, torch.tensor(rows, dtype=torch.long).reshape(len(rows), room)], dim=1)


def _documents(texts: Iterable[str], model: LanguageModel, *, first: int = 0) -> Iterator[_Document]:
    """Tokens of each text from the ``first`` on, an end-of-text token after them; empty texts are passed over."""
    remaining = islice(enumerate(texts), first, None)
    while some := list(islice(remaining, _TEXTS_AT_ONCE)):
        for _, text in some:
            if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TextError(f"A text is {text!r}, a {type(text).__name__}; give strings.")
        filled = [(number, text) for number, text in some if text.strip()]
        for (number, _), tokens in zip(filled, model.token_ids([text for _, text in filled]), strict=True):
            yield _Document(number, [*tokens, model.eos_token_id])


def _rows(documents: Iterable[_Document], room: int, *, from_start: bool, skip: int = 0) -> Iterator[_Row]:
    """Rows of ``room`` tokens each, filled with one document after another; ``skip`` tokens of the first are left."""
    row: list[int] = []
    begin = _BEGINNING
    for number, document in documents:
        used, skip = skip, 0
        while used < len(document):
            if not row:
                begin = Place(number, used)
            taken = min(room - len(row), len(document) - used)
            row += document[used : used + taken]
            used += taken
            if len(row) == room:
                yield _Row(begin, row)
                row = []
                used = len(document) if from_start else used
