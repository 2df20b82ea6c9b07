"""The pictures of docs/explorer.md: ``make explorer-pictures``.

A browser performs the ten steps of the guide with clicks and keys, and each step leaves a picture of 1280 x 800. So
the guide is true as long as this program runs. It needs Chromium, as the browser tests do.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, final

from PIL import Image

from open_clt.explorer.explorer import Explorer
from open_clt.explorer.models import Source
from open_clt.explorer.server.serve import in_background, listen
from open_clt.explorer.session.session_file import SavedSession, load_session

PICTURES = Path(__file__).resolve().parent.parent / "visualizations" / "gallery" / "explorer"
AUSTIN = "logit:8:1475"
SAY_A_CAPITAL = ("2:8:244", "2:8:170", "1:8:262")
TEXAS = ("4:8:128", "4:8:462")
CAPITAL = ("0:2:634", "0:2:610", "0:2:108", "0:2:113", "0:2:382")
DALLAS = ("0:7:226", "0:7:275", "0:7:158", "0:7:465", "0:7:175")
CITIES = ("Chicago", "Houston")
WAIT = 30_000


def wait_until(page: Any, expression: str, *, arg: Any = None, timeout: float = WAIT) -> None:
    """Wait until an expression of JavaScript, or a function of ``arg``, is true.

    Playwright's own way makes the page evaluate a text again and again, which the page's policy forbids.
    """
    from playwright.sync_api import Error

    end = time.monotonic() + timeout / 1000
    while True:
        try:
            if page.evaluate(expression, arg):
                return
        except Error as error:
            if "context was destroyed" not in str(error):  # the page goes to another address
                raise
        assert time.monotonic() < end, f"{expression} is never true"
        page.wait_for_timeout(20)


@final
class Visitor:
    """A person at the explorer, who clicks and types."""

    def __init__(self, page: Any, directory: Path) -> None:
        self.page = page
        self.directory = directory
        self.step = 0

    def settled(self) -> None:
        """Wait until no job runs and no action waits for the server."""
        self.page.wait_for_function("OpenCLT.explorer.isIdle()")

    def until(self, condition: str, value: object = None) -> None:
        """Wait until a condition on the session ``s`` and a value ``v`` holds."""
        self.page.wait_for_function(
            f"(v) => {{ const s = OpenCLT.explorer.store.session(); return {condition}; }}", arg=value
        )
        self.settled()

    def picture(self) -> None:
        """Keep what the page shows as the picture of the next step."""
        self.step += 1
        self.settled()
        self.page.mouse.move(700, 20)
        screen = Image.open(io.BytesIO(self.page.screenshot(animations="disabled"))).convert("RGB")
        few_colours = screen.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
        few_colours.save(self.directory / f"step-{self.step:02d}.png", optimize=True)

    def press(self, key: str) -> None:
        """Press a key while no field has the focus."""
        self.page.evaluate("document.activeElement.blur()")
        self.page.keyboard.press(key)
        self.settled()

    def click(self, node: str) -> None:
        """Click on a node of the graph."""
        shape = self.page.locator(f'#graph [data-node="{node}"]').locator(".oc-dot, .oc-box").first
        shape.scroll_into_view_if_needed()
        box = shape.bounding_box()
        self.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        self.settled()

    def label(self, text: str) -> None:
        """Label the feature of the selected node."""
        self.press("l")
        self.page.fill("#panel .x-label", text)
        self.page.press("#panel .x-label", "Enter")
        self.until("Object.values(s.labels).includes(v)", text)

    def group(self, name: str, members: tuple[str, ...]) -> None:
        """Hold G, click on the nodes, release G, and name the group."""
        number = self.page.locator("#groups input").count()
        self.page.evaluate("document.activeElement.blur()")
        self.page.keyboard.down("g")
        for node in members:
            self.click(node)
        self.page.keyboard.up("g")
        self.until("s.groups.length === v + 1", number)
        field = self.page.locator("#groups input").nth(number)
        field.fill(name)
        field.press("Enter")
        self.until("s.groups.some((group) => group.name === v)", name)
        self.page.evaluate("document.getElementById('graph').scrollIntoView({ block: 'end' })")

    def test(self, city: str) -> None:
        """Test the prompt about another city on the page of a feature."""
        before = self.page.inner_html("#own-result")
        self.page.fill("#own-text", f"The capital of the state containing {city} is")
        self.page.click("#test-text")
        self.page.wait_for_function("(old) => document.getElementById('own-result').innerHTML !== old", arg=before)
        self.settled()
        print(f"  {city}: {self.page.inner_text('#own-result > .oc-facts')}")

    def ablate(self, group: str) -> None:
        """Ablate one group alone, and wait for what comes of it."""
        self.page.click("#link-graph")
        number = self.page.evaluate(
            "(name) => OpenCLT.explorer.store.session().groups.findIndex((each) => each.name === name)", group
        )
        self.page.locator("#groups .x-group").nth(number).get_by_text("Steer", exact=True).click()
        self.until("s.steers.some((each) => each.name === v)", group)
        while self.page.locator("#steers fieldset").count() > 1:
            self.page.locator("#steers fieldset").first.get_by_text("Remove").click()
            self.settled()
        runs = self.page.evaluate("OpenCLT.explorer.store.session().runs.length")
        self.page.click("#steer-run")
        self.until("s.runs.length > v", runs)


def perform(visitor: Visitor) -> Path:
    """The ten steps; returns the file of the saved session."""
    page = visitor.page
    visitor.picture()  # 1: the start graph

    visitor.click(AUSTIN)
    visitor.picture()  # 2: what feeds the answer

    visitor.click(SAY_A_CAPITAL[0])
    visitor.label("say a capital")
    visitor.picture()  # 3: a feature with a name

    visitor.press("Escape")
    visitor.group("say a capital", SAY_A_CAPITAL)
    visitor.picture()  # 4: a group

    visitor.click(TEXAS[0])
    page.click("#panel >> text=Open feature")
    page.wait_for_selector("#own-text")
    for city in CITIES:
        visitor.test(city)
    visitor.picture()  # 5: a feature of Texas

    page.click("text=Show in the graph")
    visitor.until("s.selected === v", TEXAS[0])
    visitor.label("Texas")
    visitor.press("Escape")
    visitor.group("Texas", TEXAS)
    visitor.picture()  # 6: a group for the state

    visitor.group("capital", CAPITAL)
    visitor.group("Dallas", DALLAS)
    visitor.picture()  # 7: groups for the two words

    visitor.press("e")
    visitor.picture()  # 8: the circuit

    visitor.press("Escape")
    visitor.ablate("Dallas")
    visitor.ablate("capital")
    visitor.picture()  # 9: what the graph predicted, and what was measured

    page.click("#link-graph")
    page.click("#export > summary")
    visitor.picture()  # 10: the files
    return save(visitor)


def save(visitor: Visitor) -> Path:
    """Save the session, and return its path."""
    with visitor.page.expect_download() as download:
        visitor.page.click("#save")
    path = visitor.directory / download.value.suggested_filename
    download.value.save_as(path)
    return path


def describe(saved: SavedSession) -> None:
    """Print the numbers that the guide names."""
    circuit = saved.circuit
    assert circuit is not None
    print(f"  {circuit.scores()}")
    for target, source, weight in zip(*(column.tolist() for column in circuit.edges), strict=True):
        if abs(weight) > 0.5:
            print(f"  {circuit.groups[source].label} to {circuit.groups[target].label}: {weight:+.2f}")
    for run in saved.session.runs[::-1]:
        after = ", ".join(f"{likely.token.strip()} {likely.probability:.0%}" for likely in run.after[:3])
        print(f"  {run.steers[0].name} ablated: {after}; {run.effects}; KL {run.kl_divergence:.2f}")


def main() -> None:
    """Serve the explorer of the embedded model, perform the steps, and read the saved session."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the explorer's guide.")
    parser.add_argument("--output", type=Path, default=PICTURES, help="directory of the pictures")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("The pictures need Chromium, which is missing; run `apt-get install chromium`.")
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        explorer = Explorer(Source(), cache=Path(folder) / "cache")
        served = listen(explorer, port=0)
        stop = in_background(served)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            page: Any = browser.new_page(viewport={"width": 1280, "height": 800}, accept_downloads=True)
            page.set_default_timeout(WAIT)
            page.wait_for_function = partial(wait_until, page)
            page.goto(served.url)
            page.wait_for_selector("#graph[data-nodes]")
            page.wait_for_function("OpenCLT.explorer.client.status()?.ready")
            visitor = Visitor(page, Path(folder))
            saved = load_session(perform(visitor))
        finally:
            browser.close()
            stop()
        describe(saved)
        arguments.output.mkdir(parents=True, exist_ok=True)
        for picture in sorted(Path(folder).glob("step-*.png")):
            shutil.copyfile(picture, arguments.output / picture.name)


if __name__ == "__main__":
    main()
