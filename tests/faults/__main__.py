"""Attack every reader, and print a table of the outcomes: ``python -m tests.faults --tries 100000 --seed 0``."""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

from tests.faults.outcomes import FAULTS, attack
from tests.faults.readers import READERS

SLOW_SHARE = 100
"""A slow reader gets a hundredth of the tries of another one."""


def main() -> int:
    """Print one row for each reader; the status is 1 if a reader has a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--tries", type=int, default=10_000, help="Number of damaged artefacts (default 10,000).")
    parser.add_argument("--seed", type=int, default=0, help="Number of the first mutation (default 0).")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    per_reader = options.tries // sum(not reader.slow for reader in READERS.values())
    print(f"| reader | tries | accepted | own error | {' | '.join(FAULTS)} |")
    print("|---|" + "---|" * (3 + len(FAULTS)))
    faults: list[str] = []
    for name, reader in READERS.items():
        tries = max(1, per_reader // SLOW_SHARE) if reader.slow else per_reader
        with tempfile.TemporaryDirectory() as folder:
            tally = attack(name, range(options.seed, options.seed + tries), Path(folder) / "work")
        numbers = [tally.counts[outcome] for outcome in ("accepted", "own error", *FAULTS)]
        print(f"| {name} | {tries:,} | {' | '.join(f'{number:,}' for number in numbers)} |", flush=True)
        faults += tally.faults
    print(*faults, sep="\n")
    return 1 if faults else 0


raise SystemExit(main())
