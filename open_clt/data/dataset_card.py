"""The card of a local data set: the file in which a data set may name the files of its rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml

from open_clt import files

_NAMES = ("data_files", "data_dir")
"""Keys of a config in a card; below them, every text is a pattern of names, or the name of a split."""


def check_card(directory: Path) -> None:
    """Raise CheckpointError if a data set's card cannot be read, or names files outside the data set's directory."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    files.check_readable(directory)
    for path in (directory / "README.md", directory / ".huggingface.yaml"):
        if not os.path.lexists(path):
            continue
        text = files.read_text(path, "UTF-8 text")
        if path.suffix == ".md":
            # The library's own pattern, so that no card means one thing here and another thing there.
            block = REGEX_YAML_BLOCK.search(text)
            text = block[2] if block else ""
        if len(text) > files.LARGEST_SETTINGS:
            raise files.too_large(path, files.LARGEST_SETTINGS)
        try:
            card = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise files.unreadable(path, "YAML", error) from error
        for name in _names(card):
            files.inside(directory, name)


def _names(card: Any) -> Iterator[str]:
    """The names of files in the configs of a card."""
    configs = cast(dict[str, Any], card).get("configs") if isinstance(card, dict) else None
    waiting = [
        cast(dict[str, Any], config).get(key)
        for config in (cast(list[Any], configs) if isinstance(configs, list) else [configs])
        if isinstance(config, dict)
        for key in _NAMES
    ]
    seen: set[int] = set()  # an alias in YAML repeats a value, which may contain itself
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif id(value) not in seen and isinstance(value, list | dict):
            seen.add(id(value))
            waiting += cast(list[Any], value) if isinstance(value, list) else cast(dict[Any, Any], value).values()
