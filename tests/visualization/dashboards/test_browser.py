"""The dashboards in Chromium, opened from a disk without a network."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from open_clt.features.feature_files import write_feature_files
from open_clt.features.records import FeatureRecord
from open_clt.transcoders.feature import Feature
from open_clt.visualization.dashboards.write import write_dashboards
from tests.features.rich_record import ABOUT, rich_record

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--window-size=1280,800",
    "--virtual-time-budget=3000",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
)
ATTACK = '</script><img src=x onerror="document.title=1">'

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]

Open = Callable[[str], str]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dashboards of 70 features of layer 0, of which the last is dead and the fourth has an attack as its label."""
    folder = tmp_path_factory.mktemp("dashboards")
    records = [rich_record(0, index) for index in range(69)]
    label = records[3].label
    assert label is not None
    records[3] = replace(records[3], label=label._replace(text=ATTACK, automatic=False), density=0.001)
    records.append(FeatureRecord(Feature(0, 69), 0.0, 0.0, (), records[0].top_tokens, ()))
    records.append(rich_record(2, 5))
    write_feature_files(records, folder / "stored", n_layers=3, n_features=70, about=ABOUT)
    return write_dashboards(folder / "stored", folder / "pages")


@pytest.fixture
def opened(index: Path, tmp_path: Path) -> Open:
    """A function that opens the page with the rest of its address, and returns its body after the scripts ran."""

    def dump(address: str = "") -> str:
        command = [str(CHROMIUM), *OPTIONS, f"--user-data-dir={tmp_path}", "--dump-dom", f"{index.as_uri()}{address}"]
        result = subprocess.run(command, capture_output=True, check=True, timeout=120)
        messages = [line for line in result.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
        assert not messages
        page = result.stdout.decode(errors="replace")
        return page[page.index("<body") :]

    return dump


def text_of(page: str) -> str:
    """The visible text of the main part of a page."""
    main = page[page.index("<main") : page.index("</main>")]
    return html.unescape(re.sub(r"<[^>]+>", " ", main))


def names_in(page: str) -> list[str]:
    return re.findall(r'<a href="#L[^"]*">(.*?)</a>', page[page.index("<tbody") : page.index("</tbody>")])


def test_the_table_lists_the_features_that_fire(opened: Open) -> None:
    page = opened()
    assert names_in(page) == [*(f"L0/{index}" for index in range(69)), "L2/5"]
    assert "70 of 71 features" in text_of(page)


@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("#?layer=2", ["L2/5"]),
        ("#?q=onerror", ["L0/3"]),
        ("#?q=onerror&in=fires", []),
        ("#?most=1&dead=1", ["L0/3", "L0/69"]),
        ("#?q=%20CAT&in=raises&dead=1&sort=density&least=0&most=0.2", ["L0/69", "L0/3"]),
        ("#?q=l0/12", ["L0/12"]),
        ("#?layer=2&q=zebra", []),
    ],
)
def test_the_address_holds_the_search(opened: Open, address: str, names: list[str]) -> None:
    page = opened(address)
    assert names_in(page) == names
    assert ("No feature fits" in text_of(page)) == (not names)


def test_a_feature_has_its_page(opened: Open) -> None:
    page = opened("#L0/4")
    text = text_of(page)
    record = rich_record(0, 4)
    assert record.label is not None
    of_record = ("L0/4", record.label.text, "25%", "label confidence 0.75")
    for shown in (*of_record, "peaks 50–100 %", "layer 1", "·cat", "+0.33"):
        assert shown in text
    assert f"activation 4.00 is at percentile {record.percentile(4.0)}" in text
    assert f'title="activation 0.50, percentile {record.percentile(0.5)}"' in page
    links = re.findall(r'id="(?:previous|next)" href="(.*?)"', page)
    assert links == ["#L0/3", "#L0/5"]
    assert 'href="#L0/5"' in page[page.index("Similar decoders") :]  # the nearest feature is a link


def test_a_dead_feature_says_so(opened: Open) -> None:
    assert f"fired on none of {ABOUT.tokens:,} tokens" in text_of(opened("#L0/69"))


@pytest.mark.parametrize("address", ["", "#L0/3", "#?q=onerror"])
def test_text_stays_text(opened: Open, address: str) -> None:
    page = opened(address)
    assert ATTACK in text_of(page).replace("&lt;", "<") or ATTACK in html.unescape(page)
    assert not re.search(r"<img", page)


def test_a_feature_without_a_record_says_so(opened: Open) -> None:
    assert "no record of feature L7/1" in text_of(opened("#L7/1"))


def test_a_missing_file_is_named(index: Path, opened: Open) -> None:
    part = index.parent / "data" / "L2_0.js"
    content = part.read_text()
    part.write_text("")
    try:
        assert "data/L2_0.js" in text_of(opened("#L2/5"))
    finally:
        part.write_text(content)
