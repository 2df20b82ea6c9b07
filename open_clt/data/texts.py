"""Texts, read from a file or from a Hugging Face data set."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, cast

from open_clt import files
from open_clt.config import TextsConfig
from open_clt.data.dataset_card import check_card
from open_clt.errors import CheckpointError, TextError
from open_clt.language.model_source import answers

_ROWS_AT_ONCE = 16
"""Number of rows that are unpacked at once: few, because equal rows of a Parquet file take no space in the file."""
_FILE_SUFFIXES = (".txt", ".jsonl", ".parquet")

TextSource: TypeAlias = Callable[[], Iterable[str]]
"""A function that returns the same texts from the first to the last, each time it is called."""


def open_texts(config: TextsConfig) -> Iterator[str]:
    """Return the texts of the file or data set that a config names; raises TextError if they cannot be read."""
    if config.source is None:
        raise TextError("The source of texts is missing; give a file or a Hugging Face data set.")
    if Path(config.source).is_file() or Path(config.source).suffix in _FILE_SUFFIXES:
        return read_texts(config.source, column=config.column)
    return dataset_texts(
        config.source, subset=config.subset, split=config.split, column=config.column, streaming=config.streaming
    )


def read_texts(path: str | Path, *, column: str = "text") -> Iterator[str]:
    """Return the texts of a file: one per row of a ``.jsonl`` or ``.parquet`` file, or one text for any other file.

    ``column`` names the column that holds the text of a row. Raises TextError if the file is missing, has another
    format than its name says, or lacks the column.
    """
    path = Path(path)
    if not path.is_file():
        raise TextError(f"There is no file {path}; give the path of a text, .jsonl or .parquet file.")
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is not None:
        return reader(path, column)
    with _as_text_errors():
        return iter([files.read_text(path, "UTF-8 text", limit=files.LARGEST_TEXT)])


def dataset_texts(
    name: str, *, subset: str | None = None, split: str = "train", column: str = "text", streaming: bool = True
) -> Iterator[str]:
    """Return the texts of a Hugging Face data set, given by its name on the hub or by its local directory.

    With ``streaming``, rows are downloaded as they are needed. Raises TextError if the data set cannot be reached, or
    lacks the subset, split or column.
    """
    import datasets
    from huggingface_hub import constants

    if not (Path(name).exists() or constants.HF_HUB_OFFLINE or answers(constants.ENDPOINT)):
        raise TextError(
            f"There is no local file or directory {name!r}, and {constants.ENDPOINT}, which may have a data set of "
            "that name, does not answer; check the connection, set HF_HUB_OFFLINE=1 if the data set is already "
            "downloaded, or give the path of a text, .jsonl or .parquet file."
        )
    if Path(name).is_dir():
        with _as_text_errors():
            check_card(Path(name))
    try:
        rows = datasets.load_dataset(name, subset, split=split, streaming=streaming, trust_remote_code=False)
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, FileNotFoundError | ConnectionError) and not Path(name).exists():
            raise TextError(
                f"There is no local file or directory {name!r}, and no data set of that name can be loaded ({error}); "
                "check the name, or give the path of a text, .jsonl or .parquet file."
            ) from error
        raise TextError(
            f"The data set {name!r} (subset {subset!r}, split {split!r}) cannot be loaded: {error}. "
            "Check its name, subset and split."
        ) from error
    return (_text_in(cast(dict[str, Any], row), column, name) for row in rows)


def _read_jsonl(path: Path, column: str) -> Iterator[str]:
    with _as_text_errors():
        for line_number, line in enumerate(files.read_lines(path), start=1):
            if not line.strip():
                continue
            row_name = f"{path}, line {line_number}"
            try:
                row = files.parse_json(line)
            except ValueError as error:
                raise TextError(f"{row_name} is not JSON ({error}); each line must be a JSON object.") from error
            if not isinstance(row, dict):
                raise TextError(f"{row_name} is a JSON {type(row).__name__}; each line must be a JSON object.")
            yield _text_in(cast(dict[str, Any], row), column, row_name)


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise TextError(f"{path} has no column {column!r}; it has {', '.join(file.schema_arrow.names)}.")
            with _as_text_errors():
                files.check_row_groups(file.metadata, column, path)
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[column]):
                for row in batch.to_pylist():
                    yield _text_in(row, column, str(path))
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise TextError(f"{path} is not a readable Parquet file ({error}); check how it was written.") from error


@contextmanager
def _as_text_errors() -> Generator[None]:
    """Raise the errors of ``files`` as TextErrors."""
    try:
        yield
    except CheckpointError as error:
        raise TextError(str(error)) from error


def _text_in(row: dict[str, Any], column: str, row_name: str) -> str:
    """Return the text in a column of a row; raises TextError, which names the columns of the row, if there is none."""
    if column not in row:
        raise TextError(f"{row_name} has no column {column!r}; it has {', '.join(row)}.")
    text = row[column]
    if not isinstance(text, str):
        raise TextError(f"Column {column!r} of {row_name} holds {text!r}, which is not text; choose another column.")
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise TextError(
            f"Column {column!r} of {row_name} holds half a character (a lone surrogate), which is not text."
        )
    return text
