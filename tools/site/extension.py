"""The Sphinx extension of the site: generated text, and links of the repository as links of the site.

The pages of ``docs/`` are read on GitHub as well, so their links lead to files of the repository. In the site, a link
to ``SECURITY.md`` and the like leads to the page that holds this file, and a link to another file or folder leads to it
in the repository.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.site.reference import api_page, commands_page, settings_page
from tools.site.repository import REPOSITORY, address_of
from tools.site.snippets import counts_table

DOCS = REPOSITORY / "docs"
_GENERATED: dict[str, Callable[[], str]] = {
    "<!-- commands -->": commands_page,
    "<!-- settings -->": settings_page,
    "<!-- api -->": api_page,
    "<!-- counts of snippets -->": counts_table,
}
"""Comments in pages, and the functions whose text replaces them."""
_PAGES = {"SECURITY.md": "trust/security", "CONTRIBUTING.md": "trust/contributing", "CHANGELOG.md": "changelog"}
"""Files outside of ``docs/`` that are pages of the site, and the pages that hold them."""
_NOT_GUIDES = ("index", "ARCHITECTURE", "log", "results", "layouts", "model_families", "compare", "changelog")
"""Pages directly in ``docs/`` that are not about one job; all others are listed among the instructions."""
_LINK = re.compile(r"(?<!!)\[(?P<words>[^]]*)\]\((?P<address>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")


def setup(app: Any) -> dict[str, Any]:
    """Register the extension; Sphinx calls this function with its application."""
    app.connect("source-read", _fill_in)
    return {"version": "1", "parallel_read_safe": True}


def _fill_in(app: Any, page: str, source: list[str]) -> None:
    """Complete the text of one page, which Sphinx passes as the only item of a list."""
    text = links_of_site(source[0], (DOCS / page).parent)
    for comment, generated in _GENERATED.items():
        if comment in text:
            text = text.replace(comment, generated())
    for name in _PAGES:
        if (comment := f"<!-- {name} -->") in text:
            text = text.replace(comment, links_of_site((REPOSITORY / name).read_text(encoding="utf-8"), REPOSITORY))
    source[0] = text.replace("<!-- guides -->", "\n".join(guides()))


def guides() -> list[str]:
    """The pages directly in ``docs/`` that are about one job each and that the index does not list by name."""
    listed = {*_NOT_GUIDES, *(DOCS / "index.md").read_text(encoding="utf-8").splitlines()}
    return [f"/{path.stem}" for path in sorted(DOCS.glob("*.md")) if path.stem not in listed]


def links_of_site(text: str, folder: Path) -> str:
    """The text of a file in ``folder``, whose links to files lead to pages of the site, or else to the repository."""

    def changed(link: re.Match[str]) -> str:
        path, anchor = (folder / link["address"]).resolve(), link["anchor"] or ""
        if not path.exists():
            return link[0]  # Sphinx reports a link that leads nowhere
        if path.is_relative_to(DOCS):
            return f"[{link['words']}](/{path.relative_to(DOCS)}{anchor})"
        page = _PAGES.get(str(path.relative_to(REPOSITORY)))
        return f"[{link['words']}]({address_of(path) if page is None else f'/{page}.md'}{anchor})"

    return _LINK.sub(changed, text)
