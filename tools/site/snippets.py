"""The snippets of the guide: the blocks of Python and of shell commands in README and in the pages of ``docs/``.

Each block is one of three kinds:

    run         the tests run it, block after block, in one directory and one Python process for each page
    installs    every line is an installation or a target of make, which the tests do not repeat
    not run     its first line says why: ``# Not run by the tests: needs a GPU``

Blocks of Python have the language ``python``, and blocks of shell commands ``bash``. A comment ``<!-- setup`` in a page
holds Python code that prepares what the next blocks need, such as a file of texts.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from tools.site.repository import REPOSITORY

Kind: TypeAlias = Literal["run", "installs", "not run"]

REASONS = (
    "downloads from the hub",
    "needs a GPU",
    "needs several machines",
    "needs a server",
    "needs another package",
    "needs transcoders of your own",
    "runs until it is stopped",
    "takes hours",
)
"""Reasons why the tests do not run a block; the last words of its first line are one of them."""
_MARK = "# Not run by the tests: "
_INSTALLS = re.compile(r"(make|pip|poetry|git|cd|python3 -m venv|\.venv/bin/\S+)( |$)")
_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)\n(?P<code>.*?)^ *```$|^<!-- setup\n(?P<setup>.*?)^-->$",
    re.DOTALL | re.MULTILINE,
)


class Snippet(NamedTuple):
    """A block of code in a page."""

    page: Path
    line: int
    """Line of the page in which the block begins, counted from 1."""
    language: str
    """``python``, ``bash``, or another language, which is not run; ``setup`` is hidden Python code."""
    code: str

    @property
    def kind(self) -> Kind:
        """How the tests treat the block."""
        if self.code.startswith(_MARK):
            return "not run"
        lines = commands(self.code) if self.language == "bash" else []
        return "installs" if lines and all(_INSTALLS.match(line) for line in lines) else "run"

    @property
    def reason(self) -> str:
        """Why the tests do not run the block, as its first line says; empty if they do."""
        return self.code.splitlines()[0].removeprefix(_MARK) if self.kind == "not run" else ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def pages() -> list[Path]:
    """README and every page of ``docs/``."""
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def snippets(page: Path) -> Iterator[Snippet]:
    """The blocks of a page that have a language, and its hidden preparations."""
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if match["setup"] is not None:
            yield Snippet(page, line, "setup", match["setup"])
        else:
            code = re.sub(f"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
            yield Snippet(page, line, match["language"], code)


def commands(code: str) -> list[str]:
    """The commands of a block, one item each; a line that ends in a backslash continues in the next."""
    lines = (line.strip() for line in code.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def arguments(command: str) -> list[str] | None:
    """The arguments of a command ``open-clt ...``; None if only a shell can run it, or if it is another command."""
    words = shlex.split(command, comments=True)
    needs_shell = re.search(r"[|;&<>$`]", re.sub(r"'[^']*'|\"[^\"$`]*\"", "", command.partition("  #")[0]))
    return words[1:] if words[0] == "open-clt" and not needs_shell else None


def counts() -> Counter[str]:
    """How many blocks of Python and of shell commands are of each kind; of those that are not run, for each reason."""
    blocks = (snippet for page in pages() for snippet in snippets(page) if snippet.language in ("python", "bash"))
    return Counter(snippet.reason or snippet.kind for snippet in blocks)


def counts_table() -> str:
    """The counts as a table in Markdown."""
    found = counts()
    rows = [("run by `make slow`", found["run"]), ("installation and targets of make", found["installs"])]
    rows += [(f"not run: {reason}", found[reason]) for reason in REASONS if found[reason]]
    return "\n".join(["| snippets | number |", "|---|---|", *(f"| {name} | {number} |" for name, number in rows)])
