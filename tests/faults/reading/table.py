"""Readers: every function of the package that reads a file which somebody else may have written.

A reader of the table reads an artefact and then uses what it read, because a fault that is found only at first use
comes too late. ``test_readers.py`` damages the artefacts (``mutations.py``), and fails when a module of the package
reads files and is not in the table.
"""

from __future__ import annotations

from tests.faults.reading.datasets import DATASETS
from tests.faults.reading.features import FEATURES
from tests.faults.reading.graphs import GRAPHS
from tests.faults.reading.reader import Reader
from tests.faults.reading.runs import RUNS
from tests.faults.reading.texts import TEXTS
from tests.faults.reading.transcoders import TRANSCODERS

READERS: dict[str, Reader] = {**TRANSCODERS, **GRAPHS, **FEATURES, **TEXTS, **DATASETS, **RUNS}
"""Every reader of the package. A new reader is a line of the module that it belongs to."""
