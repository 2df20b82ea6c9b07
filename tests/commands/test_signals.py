"""A signal at any time ends every command with its status and one line, and leaves no half-written file.

The times are counted from the moment at which a process handles signals: before, Python itself is starting.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import count, cycle
from pathlib import Path

import pytest

from open_clt import files
from open_clt.embedded.corpus import generate_texts
from tests.data.dataset.small_dataset import write

ROOT = Path(__file__).parents[2]
STATUS: dict[int, int] = (
    {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129} if hasattr(signal, "SIGHUP") else {}
)
PROMPT = ["--prompt", "The capital of France is"]
TEXT = ["--text", "texts.txt", "--max-tokens", "1000"]
COMMANDS = {
    "info": ["info", "embedded"],
    "generate": ["generate", *PROMPT, "--max-new-tokens", "5"],
    "attention": ["attention", *PROMPT, "--layer", "1", "--head", "2", "--key", "4", "--json", "out.json"],
    "attribute": ["attribute", *PROMPT, "--no-faithfulness", "--output", "out", "--figure", "out.svg"],
    "report": ["report", *PROMPT, "--output", "out.html"],
    "features": ["features", *TEXT, "--output", "out"],
    "evaluate": ["evaluate", *TEXT, "--graphs", "1", "--output", "out"],
    "convert": ["convert", *TEXT, "--output", "out"],
    "harvest": ["harvest", "--text", "texts.txt", "--tokens", "1000", "--output", "out"],
    "scramble": ["scramble", "activations", "out"],
    "train": ["train", "--config", "run.yaml", "--output", "out"],
}
"""Commands that print nothing on stderr unless they fail; a new command is a line here."""
TRAINING = """
trainer: {max_steps: 40, accelerator: cpu, enable_progress_bar: false}
transcoder: {n_features: 64, nonlinearity: {kind: batchtopk, k: 8}}
data: {language_model: embedded, batch_size: 128, context_length: 40, texts: {source: texts.txt}}
checkpoints: {every: 5}
"""
STEP = 0.02
"""Seconds between the times of signals in the longest test."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the system does not say which signals are handled")


def handles_signals(process: subprocess.Popen[str]) -> bool:
    """Whether a process has a handler for SIGHUP, the last of the signals that programs handle."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = re.search(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGHUP - 1) & 1)


def run(command: str, folder: Path, number: int | None = None, after: float = 0.0) -> float:
    """Run a command, send it a signal some seconds after it handles signals, and check its end; return the seconds."""
    folder.mkdir()
    (folder / "texts.txt").write_text("\n\n".join(generate_texts(150, seed=1)), encoding="utf-8")
    write(folder / "activations")
    (folder / "run.yaml").write_text(TRAINING, encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, "-m", "open_clt", *COMMANDS[command]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=restore_handlers,
    ) as process:
        while process.poll() is None and not handles_signals(process):
            time.sleep(0.002)
        begin = time.monotonic()
        if number is not None:
            time.sleep(after)
            process.send_signal(number)
        _, error = process.communicate(timeout=300)
        seconds = time.monotonic() - begin
    expected = [(0, 0)] if number is None else [(STATUS[number], 1), (0, 0)]  # it may have ended before the signal
    assert (process.returncode, error.count("\n")) in expected, f"{command}, {number} after {after:.2f} s: {error}"
    for path in (folder / name for name in ("out", "out.svg", "out.html")):
        for inside in [path, *path.rglob("*")]:
            assert not inside.is_file() or is_whole(inside), f"{command}, {number} after {after:.2f} s: {inside}"
    return seconds


def restore_handlers() -> None:
    """A suite that runs in the background ignores signals, and so would the command."""
    for number in STATUS:
        signal.signal(number, signal.SIG_DFL)


def is_whole(path: Path) -> bool:
    """Whether a file has its final name, and its content has an end where one can be seen."""
    if path.name.startswith((".part-", ".old-", ".saving-")):
        return False
    match path.suffix:
        case ".json":
            return json.loads(path.read_text()) is not None
        case ".safetensors":
            return bool(files.read_tensors(path))
        case ".html" | ".svg":
            return path.read_text().rstrip().endswith(f"</{path.suffix[1:]}>")
        case ".png":
            return path.read_bytes()[-8:-4] == b"IEND"
        case _:
            return True


@pytest.mark.slow
@pytest.mark.parametrize("command", ["info", "attribute", "train"])
def test_a_signal_ends_a_command_with_its_status_and_one_line(command: str, tmp_path: Path) -> None:
    seconds = run(command, tmp_path / "whole")
    for number, share in zip(STATUS, (0.3, 0.7, 0.95), strict=True):
        run(command, tmp_path / str(number), number, share * seconds)


@pytest.mark.soak
@pytest.mark.parametrize("command", COMMANDS)
def test_signals_at_all_times_end_a_command_with_their_status_and_one_line(command: str, tmp_path: Path) -> None:
    end = run(command, tmp_path / "whole")
    for index, number in zip(count(), cycle(STATUS)):
        if index * STEP > end:
            break
        run(command, tmp_path / str(index), number, index * STEP)
