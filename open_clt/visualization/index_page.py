"""Index pages: one page that shows the pictures of a directory and links to its interactive pages.

The page opens from a disk without a network; pictures and pages stand beside it, under relative names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from open_clt.visualization.page import escaped, write_page

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' file: data:"
_STYLE = (
    "body{font:15px/1.5 sans-serif;color:#222;background:#fff;max-width:1100px;margin:24px auto;padding:0 16px}"
    "figure{margin:0 0 32px}img{max-width:100%;height:auto}figcaption{margin-top:4px}a{color:#0072B2}"
)
_SHOWN = (".png", ".svg")


class Entry(NamedTuple):
    """A file that the page shows, if it is a picture, or links to."""

    path: Path
    """The file, in the directory of the page or below it."""
    title: str
    """What the file shows, and of what."""


def write_index(path: Path, title: str, entries: Sequence[Entry], *, note: str = "") -> Path:
    """Write a page that shows pictures and links to pages, whole or not at all, and return its path."""
    parts = [_part(entry, path.parent) for entry in entries]
    return write_page(
        path,
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escaped(title)}</h1>\n<p>{escaped(note)}</p>\n" + "\n".join(parts) + "\n</body>\n</html>\n",
    )


def _part(entry: Entry, directory: Path) -> str:
    link = quote(entry.path.relative_to(directory).as_posix())
    if entry.path.suffix.lower() not in _SHOWN:
        return f'<p><a href="{link}">{escaped(entry.title)}</a></p>'
    picture = f'<a href="{link}"><img src="{link}" alt="{escaped(entry.title)}" loading="lazy"></a>'
    return f"<figure>{picture}<figcaption>{escaped(entry.title)}</figcaption></figure>"
