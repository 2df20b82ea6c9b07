"""Texts from files and data sets, packed into contexts of tokens.

A context is ``context_length`` tokens, the first of them the beginning-of-sequence token. Texts follow one another with
an end-of-text token between them, cut wherever a context is full: no token is padding.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor

from open_clt.activations.language_model import LanguageModel
from open_clt.activations.model_source import answers
from open_clt.errors import TextError

logger = logging.getLogger(__name__)

_SHORTEST_CONTEXT = 4
_TEXTS_AT_ONCE = 64
_FEWEST_CONTEXTS = 10


def read_texts(path: str | Path, *, column: str = "text") -> Iterator[str]:
    """Texts of a file: ``.jsonl`` and ``.parquet`` give one per row, from ``column``; any other file is one text.

    Raises TextError if the file is missing, is not what its name says, or has no such column.
    """
    path = Path(path)
    if not path.is_file():
        raise TextError(f"There is no file {path}; give the path of a text, .jsonl or .parquet file.")
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is not None:
        return reader(path, column)
    try:
        return iter([path.read_text(encoding="utf-8")])
    except UnicodeDecodeError as error:
        raise TextError(f"{path} is no UTF-8 text ({error.reason}); convert it, or give another file.") from error


def dataset_texts(
    name: str, *, subset: str | None = None, split: str = "train", column: str = "text", streaming: bool = True
) -> Iterator[str]:
    """Texts of a Hugging Face data set, by its name on the hub or its local directory; streamed unless told otherwise.

    Raises TextError if it cannot be reached, or has no such subset, split or column.
    """
    import datasets
    from huggingface_hub import constants

    if not (Path(name).exists() or constants.HF_HUB_OFFLINE or answers(constants.ENDPOINT)):
        raise TextError(
            f"The data set {name!r} is no local path, and {constants.ENDPOINT} does not answer; check the connection, "
            "set HF_HUB_OFFLINE=1 if it was downloaded before, or give a local file to read_texts."
        )
    try:
        rows = datasets.load_dataset(name, subset, split=split, streaming=streaming)
    except (OSError, ValueError) as error:
        raise TextError(
            f"The data set {name!r} (subset {subset!r}, split {split!r}) cannot be loaded: {error}. "
            "Check its name, subset and split."
        ) from error
    return (_value(cast(dict[str, Any], row), column, name) for row in rows)


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
        tokens = sum(map(len, documents))
        if tokens < _FEWEST_CONTEXTS * room:
            room = max(tokens // _FEWEST_CONTEXTS, _SHORTEST_CONTEXT)
            logger.warning("The texts hold only %d tokens: contexts are shortened to %d.", tokens, room + 1)
    rows = list(islice(_rows(documents, room, from_start=from_start), max_contexts))
    if not rows:
        raise TextError(f"The texts do not fill a context of {room} tokens; give more text.")
    return torch.cat([torch.full((len(rows), 1), model.bos_token_id), torch.tensor(rows)], dim=1)


def _documents(texts: Iterable[str], model: LanguageModel) -> Iterator[list[int]]:
    """Tokens of each text, an end-of-text token after them; empty texts are passed over."""
    remaining = iter(texts)
    while some := list(islice(remaining, _TEXTS_AT_ONCE)):
        for text in some:
            if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TextError(f"A text is {text!r}, a {type(text).__name__}; give strings.")
        for tokens in model.token_ids([text for text in some if text.strip()]):
            yield [*tokens, model.eos_token_id]


def _rows(documents: Iterable[list[int]], room: int, *, from_start: bool) -> Iterator[list[int]]:
    """Rows of ``room`` tokens each, filled with one document after another."""
    row: list[int] = []
    for document in documents:
        rest = document
        while rest:
            taken = room - len(row)
            row += rest[:taken]
            rest = rest[taken:]
            if len(row) == room:
                yield row
                row = []
                rest = [] if from_start else rest


def _read_jsonl(path: Path, column: str) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise TextError(f"{where} is no JSON ({error}); each line must be one object.") from error
            if not isinstance(row, dict):
                raise TextError(f"{where} is a JSON {type(row).__name__}; each line must be one object.")
            yield _value(cast(dict[str, Any], row), column, where)


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    from pyarrow import ArrowInvalid, parquet

    try:
        file = parquet.ParquetFile(path)
    except ArrowInvalid as error:
        raise TextError(f"{path} is no Parquet file ({error}); check how it was written.") from error
    with file:
        if column not in file.schema_arrow.names:
            raise TextError(f"{path} has no column {column!r}; it has {', '.join(file.schema_arrow.names)}.")
        for batch in file.iter_batches(columns=[column]):
            for row in batch.to_pylist():
                yield _value(row, column, str(path))


def _value(row: dict[str, Any], column: str, where: str) -> str:
    """The text in a row, or a TextError that says which columns there are."""
    if column not in row:
        raise TextError(f"{where} has no column {column!r}; it has {', '.join(row)}.")
    value = row[column]
    if not isinstance(value, str):
        raise TextError(f"Column {column!r} of {where} holds {value!r}, which is no text; choose another column.")
    return value
