"""Cold start benchmark: what a command costs before it does its work.

    python benchmarks/cold_start.py [--repeats 3]

    help        seconds until `--help` of each command is printed, for the slowest command
    attribute   CPU seconds of `open-clt attribute` on a prompt of 9 tokens, with the faithfulness check
    explore     seconds from the start of `open-clt explore` until the first page is answered, and until the models are
                loaded
    floor       CPU seconds of `import transformer_lens`, which nothing that loads a language model can go below, unless
                it imports less of it

Each measurement is a process of its own, and the table has the median of the repeats. CPU seconds are those of the user
and of the system; they depend less on what else the machine does than seconds of a clock. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

PROMPT = "The capital of the state containing Dallas is"
PROGRAM = [sys.executable, "-m", "open_clt"]
QUIET = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[1])}


class Cost(NamedTuple):
    """What a process cost."""

    seconds: float
    """Seconds from its start to its end."""
    cpu: float
    """CPU seconds of the user and of the system."""


def cost(command: Sequence[str]) -> Cost:
    """Run a process to its end; raises CalledProcessError if it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, **QUIET}, text=True
    )
    assert process.stderr is not None
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=error)
    return Cost(time.perf_counter() - start, usage.ru_utime + usage.ru_stime)


def median_cost(command: Sequence[str], repeats: int) -> Cost:
    """The medians of several runs of a process."""
    costs = [cost(command) for _ in range(repeats)]
    return Cost(*map(statistics.median, zip(*costs, strict=True)))


def commands() -> list[str]:
    """The commands that `open-clt --help` lists."""
    help_text = subprocess.run([*PROGRAM, "--help"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^    ([a-z]+)(?=  |$)", help_text, re.MULTILINE)


def explorer() -> tuple[float, float]:
    """Seconds until the explorer answers its first page, and until it has loaded the models."""
    start = time.perf_counter()
    command = [*PROGRAM, "explore", "--port", "0"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, env={**os.environ, **QUIET}, **streams) as process:
        try:
            assert process.stdout is not None
            match = re.search(r"http://\S+", process.stdout.readline())
            assert match is not None, "the explorer has not printed its address"
            with urlopen(match[0], timeout=60) as page:
                assert b"OpenCLT" in page.read()
            seconds = time.perf_counter() - start
            while not ready(f"{match[0]}api/status"):
                time.sleep(0.05)
            return seconds, time.perf_counter() - start
        finally:
            process.terminate()


def ready(address: str) -> bool:
    """Whether the models of an explorer are loaded."""
    try:
        with urlopen(address, timeout=60) as answer:
            return bool(json.load(answer)["ready"])
    except URLError:
        return False


def main() -> None:
    """Measure, print a table, and print the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="processes that a median is taken of (default: 3)")
    repeats = parser.parse_args().repeats
    helps = {name: median_cost([*PROGRAM, *name.split(), "--help"], repeats) for name in ("", *commands())}
    rows = {f"{name} --help".strip(): each for name, each in helps.items()}
    rows["attribute"] = median_cost([*PROGRAM, "attribute", "--prompt", PROMPT], repeats)
    rows["import torch"] = median_cost([sys.executable, "-c", "import torch"], repeats)
    rows["import transformer_lens"] = median_cost([sys.executable, "-c", "import transformer_lens"], repeats)
    print("| process | seconds | CPU seconds |\n|---|---|---|")
    for name, each in rows.items():
        print(f"| `{name}` | {each.seconds:.2f} | {each.cpu:.2f} |")
    page, loaded = (statistics.median(column) for column in zip(*(explorer() for _ in range(repeats)), strict=True))
    print(f"| `explore`, first page | {page:.2f} | |\n| `explore`, models loaded | {loaded:.2f} | |")
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")
    slowest = max(helps, key=lambda name: helps[name].seconds)
    result = {
        "help_s": helps[slowest].seconds,
        "help_cpu_s": max(each.cpu for each in helps.values()),
        "train_help_s": helps["train"].seconds,
        "attribute_cpu_s": rows["attribute"].cpu,
        "explore_page_s": page,
        "explore_ready_s": loaded,
        "floor_cpu_s": rows["import transformer_lens"].cpu,
    }
    print(json.dumps({**{name: float(f"{value:.3g}") for name, value in result.items()}, "slowest_help": slowest}))


if __name__ == "__main__":
    main()
