"""Texts, read from a file or from a Hugging Face data set."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

from open_clt import files
from open_clt.config import TextsConfig
from open_clt.data.dataset_card import check_card
from open_clt.errors import CheckpointError, ConfigError, OpenCLTError, TextError, short_value
from open_clt.hub.reachable import answers
from open_clt.language.language_model import is_text
from open_clt.memory import is_failed_allocation
from open_clt.progress import without_widget_advice
from open_clt.short_repr import short_repr

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 16
"""Number of rows that are unpacked at once: few, because equal rows of a Parquet file take no space in the file."""

_OF_DATA_SETS, _OF_ROWS = ("subset", "split", "streaming"), ("column", "bad_rows")
"""Settings of a TextsConfig that only data sets use, and those that only sources with rows use."""

TextSource: TypeAlias = Callable[[], Iterable[str]]
"""A function that returns the same texts from the first to the last, each time it is called."""


class IgnoredSettings(NamedTuple):
    """Settings of texts that a source does not use, and the reason in words."""

    names: tuple[str, ...] = ()
    reason: str = ""

    __repr__ = short_repr


def ignored_settings(source: str) -> IgnoredSettings:
    """The settings of a TextsConfig that a source of texts does not use; raises TextError if it may not be read."""
    path = Path(source)
    _check_readable(path)
    if not path.is_file():
        return IgnoredSettings()
    if _suffix(path) in _READERS:
        return IgnoredSettings(_OF_DATA_SETS, f"{short_value(path.name)} is a file, not a data set")
    return IgnoredSettings((*_OF_DATA_SETS, *_OF_ROWS), f"{short_value(path.name)} is read as one text, without rows")


def open_texts(config: TextsConfig) -> Iterator[str]:
    """Return the texts of the file or data set that a config names; raises TextError if they cannot be read.

    Settings of data sets may stand beside a file, so that a ready configuration can be used with texts of one's own.
    """
    if config.source is None:
        raise TextError("The source of texts is missing; give a file or a Hugging Face data set.")
    _check_readable(Path(config.source))
    if Path(config.source).is_file() or _suffix(Path(config.source)) in (*_READERS, ".txt"):
        return read_texts(config.source, column=config.column, bad_rows=config.bad_rows)
    return dataset_texts(
        config.source,
        subset=config.subset,
        split=config.split,
        column=config.column,
        streaming=config.streaming,
        bad_rows=config.bad_rows,
    )


def read_texts(path: str | Path, *, column: str = "text", bad_rows: int = TextsConfig.bad_rows) -> Iterator[str]:
    """Return the texts of a file: one per row of a file of rows, or one text for any other file.

    The suffix names a file of rows: ``.jsonl`` (an object on each line), ``.json`` (an array of objects or texts),
    ``.csv``, ``.tsv`` and ``.parquet``. With a further suffix ``.gz``, a file is unpacked as it is read. Text is UTF-8,
    with or without a byte-order mark. ``column`` names the column that holds the text of a row; at most ``bad_rows``
    rows without a text are skipped. Raises TextError if the file is missing, has another format than its name says,
    lacks the column, or has more bad rows, and ConfigError if a column of one text is named.
    """
    path = Path(path)
    _check_readable(path)
    if not path.is_file():
        raise TextError(
            f"The file {path} does not exist; give the path of a text, .jsonl, .json, .csv or .parquet file."
        )
    reader = _READERS.get(_suffix(path))
    if reader is not None:
        return _without_bad_rows(reader(path, column), path, bad_rows)
    if column != TextsConfig.column:
        raise ConfigError(f"column is {short_value(column)}, but {path} is read as one text, without rows; remove it.")
    with _as_text_errors():
        content = files.read_unpacked(path, "UTF-8 text", limit=files.LARGEST_TEXT)
    try:
        return iter([content.decode("utf-8-sig")])
    except UnicodeDecodeError as error:
        raise TextError(f"{path} is not UTF-8 text ({error.reason}); convert it, or give another file.") from error


def dataset_texts(
    name: str,
    *,
    subset: str | None = None,
    split: str = "train",
    column: str = "text",
    streaming: bool = True,
    bad_rows: int = TextsConfig.bad_rows,
) -> Iterator[str]:
    """Return the texts of a Hugging Face data set, given by its name on the hub or by its local directory.

    With ``streaming``, rows are downloaded as they are needed. At most ``bad_rows`` rows without a text are skipped.
    Raises TextError if the data set cannot be reached, lacks the subset, split or column, or has more bad rows.
    """
    if not name.strip():
        raise TextError(f"The name of the data set is {name!r}; give a file, a directory or a name on the hub.")
    _check_readable(Path(name))
    without_widget_advice()
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
        _check_number_of_files(Path(name))
    described = f"The data set {name!r} (subset {subset!r}, split {split!r})"
    with _library_errors(f"{described} cannot be loaded", "Check its name, subset and split."):
        try:
            rows = datasets.load_dataset(name, subset, split=split, streaming=streaming, trust_remote_code=False)
        except (FileNotFoundError, ConnectionError) as error:
            if Path(name).exists():
                raise
            raise TextError(
                f"There is no local file or directory {name!r}, and no data set of that name can be loaded ({error}); "
                "check the name, or give the path of a text, .jsonl or .parquet file."
            ) from error
    return _without_bad_rows(_read_dataset(rows, column, name), name, bad_rows)


def _check_readable(path: Path) -> None:
    """Raise TextError if the user may not read a file or directory."""
    with _as_text_errors():
        files.check_readable(path)


def _check_number_of_files(directory: Path) -> None:
    """Raise TextError if a directory holds too many files for a data set; the library would look at all of them."""
    count = 0
    for _, folders, names in os.walk(directory):
        count += len(folders) + len(names)
        if count > files.MOST_FILES:
            raise TextError(
                f"The directory {str(directory)!r} holds more than {files.MOST_FILES:,} files and folders, so it is "
                "not read as a data set; give a file of texts, or the directory of one data set."
            )


def _read_dataset(rows: Iterable[Any], column: str, name: str) -> Iterator[str | TextError]:
    with _library_errors(f"The data set {name!r} cannot be read", "Check its files."):
        for number, row in enumerate(rows, start=1):
            yield _text_in(row, column, f"{name}, row {number}")


def _suffix(path: Path) -> str:
    """The suffix that says the format of a file: the last one, without ``.gz``."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _without_bad_rows(rows: Iterable[str | TextError], source: object, limit: int) -> Iterator[str]:
    """Yield the texts of rows; a row without a text is a TextError, and more than ``limit`` of them end the reading."""
    errors = texts = 0
    first: TextError | None = None
    for row in rows:
        if isinstance(row, str):
            texts += 1
            yield row
            continue
        errors += 1
        if first is None:
            first = row
            logger.warning("A row without a text is skipped. %s", row)
        if errors > limit:
            reason = f"More than {limit} rows hold no text (the setting bad_rows). The first: {first}"
            raise row if limit == 0 else TextError(reason)
    if first is not None and not texts:
        raise first
    if errors:
        logger.warning("%s: %d rows without a text were skipped, and %d texts were read.", source, errors, texts)


def _read_jsonl(path: Path, column: str) -> Iterator[str | TextError]:
    with _as_text_errors():
        for line_number, line in enumerate(files.read_lines(path), start=1):
            if not line.strip():
                continue
            row_name = f"{path}, line {line_number}"
            try:
                row = files.parse_json(line)
            except ValueError as error:
                yield TextError(f"{row_name} is not JSON ({error}); each line must be a JSON object.")
                continue
            yield _text_in(row, column, row_name)


def _read_json(path: Path, column: str) -> Iterator[str | TextError]:
    with _as_text_errors():
        rows = files.read_json(path)
    if not isinstance(rows, list):
        raise TextError(f"{path} is not a JSON array of rows; write an array, or one object on each line of a .jsonl.")
    for number, row in enumerate(cast(list[Any], rows), start=1):
        row_name = f"{path}, row {number}"
        yield _text_in({column: row} if isinstance(row, str) else row, column, row_name)


def _read_csv(path: Path, column: str) -> Iterator[str | TextError]:
    csv.field_size_limit(max(csv.field_size_limit(), files.LARGEST_TEXT))
    with _as_text_errors():
        # Bytes that are not UTF-8 become lone surrogates, which make their row a bad one.
        lines = (line.decode(errors="surrogateescape") for line in files.read_lines(path))
        first = next(lines, "").removeprefix("\ufeff")
        delimiter = "\t" if _suffix(path) == ".tsv" else ","
        reader = csv.DictReader(chain([first], lines), delimiter=delimiter)
        try:
            _check_column(column, reader.fieldnames or [], path)
            for row in reader:
                yield _text_in(row, column, f"{path}, line {reader.line_num}")
        except csv.Error as error:
            raise TextError(f"{path} is not a readable CSV file ({error}); check how it was written.") from error


def _read_parquet(path: Path, column: str) -> Iterator[str | TextError]:
    from pyarrow import ArrowException, parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            _check_column(column, file.schema_arrow.names, path)
            _check_text_type(file.schema_arrow.field(column), path)
            with _as_text_errors():
                files.check_row_groups(file.metadata, path)
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[column]):
                for row in batch.to_pylist():
                    number += 1
                    yield _text_in(row, column, f"{path}, row {number}")
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise TextError(f"{path} is not a readable Parquet file ({error}); check how it was written.") from error


_READERS: dict[str, Callable[[Path, str], Iterator[str | TextError]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
"""The readers of files of rows, by suffix; each yields a text, or the error of a row without a text."""


def _check_column(column: str, names: Sequence[str], path: Path) -> None:
    """Raise TextError unless exactly one of the columns of a file has this name."""
    match names.count(column):
        case 0:
            raise TextError(f"{path} has no column {column!r}; it has {', '.join(names) or 'no columns'}.")
        case 1:
            return
        case count:
            raise TextError(f"{path} has {count} columns {column!r}; give each column a name of its own.")


def _check_text_type(field: Any, path: Path) -> None:
    """Raise TextError if a column of a Parquet file holds no texts: values of some types cannot even be read."""
    from pyarrow import types

    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind)):
        raise TextError(
            f"Column {field.name!r} of {path} holds values of the type {field.type}, not texts; choose another column."
        )


@contextmanager
def _as_text_errors() -> Generator[None]:
    """Raise the errors of ``files`` as TextErrors."""
    try:
        yield
    except CheckpointError as error:
        raise TextError(str(error)) from error


@contextmanager
def _library_errors(problem: str, advice: str) -> Generator[None]:
    """Raise the errors of the library datasets, which are of many kinds, as TextErrors."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OpenCLTError) or is_failed_allocation(error):
            raise
        raise TextError(f"{problem} ({str(error) or type(error).__name__}). {advice}") from error


def _text_in(row: Any, column: str, row_name: str) -> str | TextError:
    """The text in a column of a row, or the error that the row has none."""
    if not isinstance(row, dict):
        return TextError(f"{row_name} is a JSON {type(row).__name__}; each row must be an object.")
    if column not in row:
        names = ", ".join(map(str, cast(dict[Any, Any], row)))
        return TextError(f"{row_name} has no column {column!r}; it has {names}.")
    text: Any = row[column]
    if not isinstance(text, str):
        return TextError(f"Column {column!r} of {row_name} holds {text!r}, which is not text; choose another column.")
    if not is_text(text):
        return TextError(f"Column {column!r} of {row_name} holds bytes that are not UTF-8, or half a character.")
    return text
