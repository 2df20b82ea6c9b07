"""Texts from files and data sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias, cast

from open_clt.config import TextsConfig
from open_clt.errors import TextError
from open_clt.language.model_source import answers

_FILE_SUFFIXES = (".txt", ".jsonl", ".parquet")

TextSource: TypeAlias = Callable[[], Iterable[str]]
"""Opens some texts anew, from the first on; each time the same."""


def open_texts(config: TextsConfig) -> Iterator[str]:
    """Texts of a file or a data set, from the first on; raises TextError if they cannot be read."""
    if config.source is None:
        raise TextError("No source of texts is named; give a file or a Hugging Face data set.")
    if Path(config.source).is_file() or Path(config.source).suffix in _FILE_SUFFIXES:
        return read_texts(config.source, column=config.column)
    return dataset_texts(
        config.source, subset=config.subset, split=config.split, column=config.column, streaming=config.streaming
    )


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
            f"There is no file or directory {name!r} here, and {constants.ENDPOINT}, which may have a data set of that "
            "name, does not answer; check the connection, set HF_HUB_OFFLINE=1 if it was downloaded before, or give "
            "the path of a text, .jsonl or .parquet file."
        )
    try:
        rows = datasets.load_dataset(name, subset, split=split, streaming=streaming)
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError | ConnectionError) and not Path(name).exists():
            raise TextError(
                f"There is neither a file or directory {name!r} here, nor a data set of that name to be had ({error}); "
                "give the path of a text, .jsonl or .parquet file, or check the name."
            ) from error
        raise TextError(
            f"The data set {name!r} (subset {subset!r}, split {split!r}) cannot be loaded: {error}. "
            "Check its name, subset and split."
        ) from error
    return (_value(cast(dict[str, Any], row), column, name) for row in rows)


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
