"""Every reader answers every damaged file with an error of ours that names it, or reads it if the damage is harmless.

``make soak`` tries 100,000 mutations; docs/results.md has the figures of the last run.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import open_clt
from tests.faults.outcomes import attack
from tests.faults.reading.table import READERS

FAST = [name for name, reader in READERS.items() if not reader.slow]
READS = re.compile(
    r"files\.(read_\w+|opened|parse_json)\(|FORMAT\.read\(|\.read_(text|bytes)\(|[ .]open\(|load_dataset\("
    r"|[^(]from_pretrained\(\S|weight_files\.(path|tensors)\("
)
NOT_READERS = {
    "transcoders.formats.circuit_tracer_writer": "reads the first line of a config that a save replaces, as text",
    "__init__": "shows a call in its docstring",
    "program": "opens the null device",
    "memory": "reads what the operating system says about its memory",
    "transcoders.formats.load": "chooses the reader of a layout",
    "open_cross_layer_transcoder": "defines from_pretrained",
    "explorer.models": "calls OpenCrossLayerTranscoder.from_pretrained",
    "explorer.server.api": "parses requests, which tests/explorer/test_security.py damages",
    "explorer.measurements": "parses what plotly has written",
    "visualization.interactive.notebook_plot": "parses what plotly has written",
    "transcoders.formats.clt_training_settings": "is a part of transcoders.formats.clt_training",
    "commands.options": "calls OpenCrossLayerTranscoder.from_pretrained",
    "commands.doctor": "calls OpenCrossLayerTranscoder.from_pretrained",
    "lean_imports": "passes calls on to the package datasets",
    "data.server.access": "reads the tokens of the server's own user, which tests/data/server/test_security.py damages",
    "data.server.client": "sends files as they are, and reads answers, which tests/data/server/test_client.py tests",
    "hub.partial_file": "opens files of the cache, whose bytes files.stored_tensors reads",
    "publishing.local_paths": "reads files that their own readers have read before",
    "features.labelling.service.endpoint": "reads answers of a server, which tests/features/labelling tests",
    "visualization.page": "reads scripts and styles of the package",
    "publishing.card": "shows a call of circuit-tracer in the card",
    "transcoders.formats.own_files": "passes calls on to the reader of a layout",
    "language.model_source": "reads the config of a model's directory before language.loading reads it again",
}
"""Modules that match READS and have no reader of their own, with the reason."""


@pytest.mark.parametrize("name", FAST)
def test_damaged_files_are_refused_or_read(name: str, tmp_path: Path) -> None:
    tally = attack(name, range(500 // len(FAST) + 1), tmp_path)
    assert not tally.faults


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files_are_refused_or_read(name: str, tmp_path: Path) -> None:
    number = 30 if READERS[name].slow else 10_000 // len(FAST)
    tally = attack(name, range(1000, 1000 + number), tmp_path)
    assert not tally.faults


@pytest.mark.soak
@pytest.mark.parametrize("name", READERS)
def test_very_many_damaged_files_are_refused_or_read(name: str, tmp_path: Path) -> None:
    number = 300 if READERS[name].slow else 100_000 // len(FAST)
    tally = attack(name, range(100_000, 100_000 + number), tmp_path)
    assert not tally.faults


def test_every_module_that_reads_files_is_in_the_table() -> None:
    package = Path(open_clt.__file__).parent
    reading: set[str] = set()
    for path in package.rglob("*.py"):
        name = ".".join(path.relative_to(package).with_suffix("").parts)
        if not name.startswith("files.") and READS.search(path.read_text()):
            reading.add(name)
    assert {reader.module for reader in READERS.values()} <= reading
    assert reading - {reader.module for reader in READERS.values()} == NOT_READERS.keys()
