"""Pages: HTML files that open from a disk without a network, with styles, scripts and data inside.

Text of prompts and labels may hold anything. ``escaped`` is the only way from a text to HTML, and ``script_text`` the
only way from values to a script; the scripts in ``assets/`` make text nodes of what they read there. A page's policy
allows neither requests nor code from anywhere else.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from open_clt import files

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
# A script element ends at "</", and "<!--" changes how it is read. JavaScript once ended lines at the last two.
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def escaped(text: object) -> str:
    """Return a text as HTML that shows it, in elements and in quoted attributes."""
    return html.escape(str(text), quote=True)


def data_script(name: str, values: object) -> str:
    """Return a script element that holds values as JSON; ``JSON.parse(document.getElementById(name).textContent)``.

    Raises CheckpointError if the values cannot be written as JSON.
    """
    return f'<script type="application/json" id="{escaped(name)}">{script_text(name, values)}</script>'


def script_text(name: str, values: object) -> str:
    """Return values as JSON that is also JavaScript, and that no HTML around it reads as anything else.

    ``name`` names the data. Raises CheckpointError if the values cannot be written as JSON.
    """
    content = files.json_text(values, f"The data {name!r} of the page", strict=True, indent=None)
    return content.translate(_ESCAPES)


@cache
def asset(name: str) -> str:
    """Return the text of a script or a style that ships with the package, such as ``graph.js``."""
    return files.read_text(Path(__file__).parent / "assets" / name)


def page(
    title: str, body: str, *, styles: Sequence[str], scripts: Sequence[str], data: str = "", loads: bool = False
) -> str:
    """Return a whole page; ``styles`` and ``scripts`` are names of assets, and ``data`` the scripts that hold data.

    ``loads`` allows the page to load scripts that lie beside it.
    """
    policy = _POLICY.replace("script-src", "script-src 'self' file:") if loads else _POLICY
    style = "\n".join(map(asset, styles))
    script = "\n".join(map(asset, scripts))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n{body}\n{data}\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def write_page(path: Path, text: str) -> Path:
    """Write a page, whole or not at all, and return its path."""
    return files.write_text(path, text)
