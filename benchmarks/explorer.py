"""Explorer benchmark: how long a person waits in a browser, and how much memory a day of traces leaves behind.

    python benchmarks/explorer.py            all measurements
    python benchmarks/explorer.py --quick    fewer repeats and traces, to see that it runs

    growth   anonymous memory of the server's process after many traces of prompts that are all different, and the
             threads that are left when it has ended
    trace    from Enter to the painted graph of a new prompt, with the default budget, the models loaded
    click    from the press of the mouse on a node to the painted selection, at about 300 nodes and 2,000 edges
    slider   from the release of the influence slider to the painted graph of another share

A served explorer of the embedded model, and Chromium without a window, both on this machine. "Painted" is the second
animation frame after the change of the page. Each figure is a median; the processor time of a trace is that of the
server's process, without the browser's. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from open_clt.embedded.corpus import generate_texts
from open_clt.explorer.explorer import Explorer
from open_clt.explorer.models import Models, Source
from open_clt.explorer.server.serve import in_background, listen

WAIT = 120_000
TEXT_SEED = 500_000_009
LENGTHS = (10, 50, 120)
"""Tokens of the prompts that are typed."""
CLICK_LENGTH = 30
"""Tokens of the prompt whose graph is clicked on; at a share of 95 % it has about 300 nodes and 2,000 edges."""
GROWTH_LENGTHS = (10, 20, 30, 50)
WATCH = """
window.bench = {};
bench.painted = (done) => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now())));
bench.measure = (start, target, options, isDone) => new Promise((resolve) => {
  let from = null;
  addEventListener(start, (event) => { from = event.timeStamp; }, { capture: true, once: true });
  const observer = new MutationObserver(() => {
    if (from === null || !isDone()) return;
    observer.disconnect();
    bench.painted((now) => resolve(now - from));
  });
  observer.observe(target, options);
});
"""
"""Measures in the page, from an event to the second frame after a change that it waits for."""


def typed_prompts(models: Models, tokens: int, seed: int) -> Iterator[str]:
    """Endless prompts of exactly this number of tokens, words of the embedded model's texts, all different."""
    chance = random.Random(TEXT_SEED + seed)
    while True:
        words = " ".join(generate_texts(40, seed=TEXT_SEED + chance.randrange(10**6))).split()
        for end in range(1, len(words)):
            count = len(models.model.tokenize(" ".join(words[:end])))
            if count == tokens:
                yield " ".join(words[:end])
            if count >= tokens:
                break


def trace(page: Any, prompt: str) -> float:
    """Type a prompt, and return the milliseconds from Enter to its painted graph."""
    page.fill("#prompt", prompt)
    page.evaluate(
        """() => {
          const graph = document.getElementById("graph"), former = graph.dataset.graph;
          const options = { attributes: true, attributeFilter: ["data-graph"] };
          bench.result = bench.measure("keydown", graph, options, () => graph.dataset.graph !== former);
        }"""
    )
    page.press("#prompt", "Enter")
    return finished(page)


def slide(page: Any, percent: int) -> float:
    """Release the slider at a share, and return the milliseconds until the new graph is painted."""
    page.evaluate(
        """(percent) => {
          const graph = document.getElementById("graph"), slider = document.getElementById("influence");
          const isNew = () => OpenCLT.explorer.store.session().percent === percent && graph.querySelector("svg");
          bench.result = bench.measure("change", graph, { childList: true }, isNew);
          slider.value = percent;
          slider.dispatchEvent(new Event("input", { bubbles: true }));
          slider.dispatchEvent(new Event("change", { bubbles: true }));
        }""",
        percent,
    )
    return finished(page)


def click(page: Any, node: str) -> float:
    """Click on a node, and return the milliseconds from the press of the mouse to the painted selection."""
    dot = page.locator(f'#graph [data-node="{node}"] .oc-dot')
    dot.scroll_into_view_if_needed()
    box = dot.bounding_box()
    page.evaluate(
        """() => {
          const graph = document.getElementById("graph");
          const options = { subtree: true, attributes: true, attributeFilter: ["aria-selected"] };
          const isSelected = () => graph.querySelector('[aria-selected="true"]');
          bench.result = bench.measure("mousedown", graph, options, isSelected);
        }"""
    )
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    milliseconds = finished(page)
    page.keyboard.press("Escape")
    settled(page)
    return milliseconds


def finished(page: Any) -> float:
    """The milliseconds that the page has measured, once nothing is left to do."""
    milliseconds = float(page.evaluate("bench.result"))
    settled(page)
    return milliseconds


def settled(page: Any) -> None:
    """Wait until no job runs and no action waits for the server."""
    page.wait_for_function("OpenCLT.explorer.isIdle()")


def anonymous_mb() -> float:
    """Anonymous memory of this process, which is that of the server, after a collection of garbage."""
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise SystemExit("The system does not say how much anonymous memory a process has (RssAnon in /proc/self/status).")


def growth(page: Any, models: Models, traces: int) -> float:
    """Megabytes by which memory grows during many traces; one of each length comes before."""
    prompts = [typed_prompts(models, length, seed=1) for length in GROWTH_LENGTHS]
    for each in prompts:
        trace(page, next(each))
    before = anonymous_mb()
    for number in range(traces):
        trace(page, next(prompts[number % len(prompts)]))
    after = anonymous_mb()
    print(f"  memory {before:.0f} MB, after {traces} traces {after:.0f} MB", flush=True)
    return after - before


def measure(page: Any, models: Models, arguments: argparse.Namespace) -> dict[str, float]:
    """All measurements of a page whose models are loaded."""
    result = {"growth_mb": growth(page, models, arguments.traces)}

    def median(name: str, times: list[float], unit: float = 1.0) -> None:
        result[name] = statistics.median(times) / unit
        print(f"  {name:<18}{'  '.join(f'{each / unit:.3g}' for each in times)}", flush=True)

    for length in LENGTHS:
        prompts, times, processor = typed_prompts(models, length, seed=2), [], []
        for _ in range(arguments.repeats):
            prompt, started = next(prompts), time.process_time()
            times.append(trace(page, prompt))
            processor.append(time.process_time() - started)
        median(f"trace_{length}_s", times, 1000)
        median(f"trace_{length}_cpu_s", processor)
    trace(page, next(typed_prompts(models, CLICK_LENGTH, seed=3)))
    slide(page, 95)
    counts = page.evaluate("OpenCLT.explorer.graphPage.graph().counts()")
    print(f"  a graph of {counts['nodes']} nodes and {counts['edges']} edges", flush=True)
    nodes = page.evaluate(
        """() => OpenCLT.explorer.graphPage.graph().nodes().filter((node) => node.shape === "feature")
            .sort((a, b) => b.influence - a.influence).map((node) => node.id)"""
    )
    chosen = nodes[:: max(1, len(nodes) // arguments.clicks)][: arguments.clicks]
    median("click_ms", [click(page, node) for node in chosen])
    shares = (60, 90, 70, 85, 75)[: arguments.repeats + 2]
    median("slider_ms", [slide(page, share) for share in shares])
    result["nodes"], result["edges"] = counts["nodes"], counts["edges"]
    return result


@contextmanager
def chromium() -> Iterator[Any]:
    """Chromium without a window; ends the program with one sentence if it or Playwright is missing."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise SystemExit("This benchmark needs Chromium, which is missing; run `apt-get install chromium`.")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise SystemExit("This benchmark needs Playwright, which is missing; install the extra `dev`.") from None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def served(folder: Path) -> Iterator[tuple[Explorer, str]]:
    """A served explorer of the embedded model, whose models are loaded, with an empty cache."""
    explorer = Explorer(Source(), cache=folder)
    server = listen(explorer, port=0)
    stop: Callable[[], None] = in_background(server)
    try:
        explorer.worker.submit("wait", explorer.wait_for_models).finished.wait()
        yield explorer, server.url
    finally:
        stop()


def main() -> None:
    """Measure, and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="one repeat, four traces and three clicks")
    add("--repeats", type=int, default=3, help="prompts of each length that a median is taken of (default: 3)")
    add("--traces", type=int, default=50, help="traces before memory is read again (default: 50)")
    add("--clicks", type=int, default=10, help="clicks that a median is taken of (default: 10)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeats, arguments.traces, arguments.clicks = 1, 4, 3
    with chromium() as browser, tempfile.TemporaryDirectory() as folder:
        threads = threading.active_count()
        with served(Path(folder)) as (explorer, url):
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(WAIT)
            page.add_init_script(WATCH)
            page.goto(url)
            page.wait_for_selector("#graph[data-nodes]")
            page.wait_for_function("OpenCLT.explorer.client.status()?.ready")
            settled(page)
            result = measure(page, explorer.loaded(), arguments)
            page.close()
        result["threads_left"] = threading.active_count() - threads
    print(json.dumps({name: float(f"{value:.4g}") for name, value in result.items()}))


if __name__ == "__main__":
    main()
