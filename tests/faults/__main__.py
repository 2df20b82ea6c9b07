"""Attack every reader and every save, and print tables: ``python -m tests.faults --tries 100000 --seed 0``."""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

from tests.faults.artefacts import ARTEFACTS
from tests.faults.interrupted import Tries, kill_saves, save_over_foreign_files
from tests.faults.outcomes import FAULTS, attack
from tests.faults.reading.table import READERS

SLOW_SHARE = 100
"""A slow reader gets a hundredth of the tries of another one."""


def main() -> int:
    """Print one row for each reader and each kind of artefact; the status is 1 if one has a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--tries", type=int, default=10_000, help="Number of damaged artefacts (default 10,000).")
    parser.add_argument("--seed", type=int, default=0, help="Number of the first mutation (default 0).")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    faults = [*_attack_readers(options.tries, options.seed), *_interrupt_saves()]
    print(*faults, sep="\n")
    return 1 if faults else 0


def _attack_readers(number: int, seed: int) -> list[str]:
    """Print one row of outcomes for each reader, and return the faults."""
    per_reader = number // sum(not reader.slow for reader in READERS.values())
    print(f"| reader | tries | accepted | own error | {' | '.join(FAULTS)} |")
    print("|---|" + "---|" * (3 + len(FAULTS)))
    faults: list[str] = []
    for name, reader in READERS.items():
        tries = max(1, per_reader // SLOW_SHARE) if reader.slow else per_reader
        with tempfile.TemporaryDirectory() as folder:
            tally = attack(name, range(seed, seed + tries), Path(folder) / "work")
        numbers = [tally.counts[outcome] for outcome in ("accepted", "own error", *FAULTS)]
        print(f"| {name} | {tries:,} | {' | '.join(f'{number:,}' for number in numbers)} |", flush=True)
        faults += tally.faults
    return faults


def _interrupt_saves() -> list[str]:
    """Print one row for each kind of artefact, and return the faults."""
    print(
        "\n| artefact | kills during a save | mixed states | foreign files in the way | lost |\n|---|---|---|---|---|"
    )
    faults: list[str] = []
    for name, artefact in ARTEFACTS.items():
        with tempfile.TemporaryDirectory() as folder:
            kills, foreign = kill_saves(artefact, Path(folder) / "kills"), Tries()
            if not artefact.named_by_user:  # a file that the user names is replaced
                foreign = save_over_foreign_files(artefact, Path(folder) / "foreign")
        print(
            f"| {name} | {kills.number} | {len(kills.faults)} | {foreign.number} | {len(foreign.faults)} |", flush=True
        )
        faults += [f"{name}, {fault}" for fault in (*kills.faults, *foreign.faults)]
    return faults


raise SystemExit(main())
