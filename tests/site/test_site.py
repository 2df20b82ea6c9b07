"""The documentation site: it builds without a warning, its links lead somewhere, and its reference is complete."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import open_clt
from open_clt.config import CrossLayerConfig, TextsConfig
from tools.site.extension import DOCS, links_of_site
from tools.site.reference import command_names, commands_page, settings_page
from tools.site.repository import REPOSITORY, repository_address


class Page(HTMLParser):
    """A page: the ids that links may name, its links, and the addresses that a browser fetches to show it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.text = path, path.read_text(encoding="utf-8")
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the ids and addresses of a tag."""
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") == "stylesheet":
            self.fetched.append(values["href"])
        elif tag in ("img", "script") and "src" in values:
            self.fetched.append(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """Every page of the site, which is built once; a warning of Sphinx fails the build."""
    pytest.importorskip("sphinx", reason="the extra docs is not installed")
    output = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", str(output / "cache"), str(DOCS)]
    result = subprocess.run(
        [*command, str(output / "html")], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return {path: Page(path) for path in (output / "html").rglob("*.html") if "_static" not in path.parts}


@pytest.mark.slow
def test_every_internal_link_leads_to_a_place_on_a_page(site: dict[Path, Page]) -> None:
    assert len(site) > 10
    assert [f"{page.path.name}: {link}" for page in site.values() for link in dead_links(page, site)] == []


def dead_links(page: Page, site: dict[Path, Page]) -> Iterator[str]:
    """The links of a page that lead to no file, or to no id of their page."""
    for link in page.links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        path = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
        anchor = unquote(parts.fragment)
        if not path.is_file() or (anchor and path in site and anchor not in site[path].ids):
            yield link


@pytest.mark.slow
def test_pages_show_only_files_of_the_site(site: dict[Path, Page]) -> None:
    for page in site.values():
        for address in page.fetched:
            assert (page.path.parent / urlsplit(address).path).is_file(), f"{page.path.name}: {address}"


@pytest.mark.slow
def test_the_reference_has_every_public_name_and_every_command(site: dict[Path, Page]) -> None:
    [interface] = [page for page in site.values() if page.path.parts[-2:] == ("reference", "api.html")]
    assert {f"open_clt.{name}" for name in open_clt.__all__} <= interface.ids
    [commands] = [page for page in site.values() if page.path.parts[-2:] == ("reference", "commands.html")]
    assert all(f"open-clt-{name.replace(' ', '-')}" in commands.ids for name in command_names())


@pytest.mark.slow
def test_every_page_of_docs_is_in_the_table_of_contents(site: dict[Path, Page]) -> None:
    """Sphinx warns of a page that is in no table of contents; the pages of others are listed without an edit."""
    built = {page.path.stem for page in site.values()}
    assert {path.stem for path in DOCS.rglob("*.md")} <= built


def test_the_page_of_commands_has_their_help() -> None:
    names = command_names()
    assert len(names) >= 18
    text = commands_page()
    assert all(f"usage: open-clt {name}" in text for name in names)
    assert "--max-feature-nodes" in text
    assert "--data.max_norm_ratio" in text


def test_the_page_of_settings_has_each_key_with_its_default_and_its_docstring() -> None:
    text = settings_page()
    assert f"| `data.texts.bad_rows` | `{TextsConfig.bad_rows}` | Largest number of rows without a text" in text
    assert f"| `transcoder.input_hook` | `{CrossLayerConfig.input_hook}` |" in text
    assert "| `training.loss.sparsity.coefficient` | required |" in text
    assert "| `transcoder.nonlinearity.bandwidth` | `1.0` |" in text
    assert "epochs" not in [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]


def test_links_to_files_of_the_repository_become_links_of_the_site() -> None:
    text = (
        "[a](../SECURITY.md#x) [b](../benchmarks) [c](results.md) [d](https://x.org) [e](missing.md) ![f](../README.md)"
    )
    expected = f"""[a](/trust/security.md#x) [b]({repository_address()}/tree/main/benchmarks) [c](/results.md) \
[d](https://x.org) [e](missing.md) ![f](../README.md)"""
    assert links_of_site(text, DOCS) == expected
    assert links_of_site("[g](../../notebooks/02_look_at_features.ipynb)", DOCS / "start") == (
        f"[g]({repository_address()}/blob/main/notebooks/02_look_at_features.ipynb)"
    )
