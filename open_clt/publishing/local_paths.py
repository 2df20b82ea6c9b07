"""Local paths: directories of the user's machine, which a text that is published must not name.

A config and a report may name the directory of a language model or the file of a text. Of each absolute path only its
last part is published: ``/home/me/texts/wiki.txt`` becomes ``wiki.txt``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from open_clt import files

_TEXT_FILES = (".json", ".yaml", ".csv")
_START = r"(?:file://)?(?:~[/\\]|/|[A-Za-z]:[/\\])"
"""The beginning of an absolute path, also on Windows, or of a path in the user's home directory."""
_PATH = re.compile(
    rf'(?<="){_START}[^"\n]*(?=")'  # a whole text in quotation marks, which may hold spaces
    rf"|(?<='){_START}[^'\n]*(?=')"
    rf"""|(?<![^\s,=(\[{{"']){_START}[^\s"',;)\]}}/\\]+[/\\][^\s"',;)\]}}]*"""  # of two parts at least: not "/ 3"
)
_JSON_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')


def without_local_paths(text: str) -> str:
    """The text with the last part of each path of the user's machine in place of the path."""
    return _PATH.sub(lambda match: _last_part(match[0]), text)


def changed_text(path: Path) -> str | None:
    """The content of a settings or report file without local paths; None if it has none, or is another kind of file."""
    if path.suffix not in _TEXT_FILES:
        return None
    text = files.read_text(path, path.suffix[1:].upper())
    changed = _JSON_TEXT.sub(_json_text, text) if path.suffix == ".json" else without_local_paths(text)
    return None if changed == text else changed


def _json_text(match: re.Match[str]) -> str:
    """A text of a JSON file, with its quotation marks and escapes, without local paths."""
    try:
        text = files.parse_json(match[0])
    except ValueError:  # a line break inside a text, which JSON does not allow
        return without_local_paths(match[0])
    changed = without_local_paths(f'"{text}"')[1:-1]
    return match[0] if changed == text else json.dumps(changed)


def _last_part(path: str) -> str:
    parts = [part for part in re.split(r"[/\\]+", path.removeprefix("file:")) if part not in ("", "~")]
    return parts[-1] if parts else path
