"""Print pip constraints for this machine, read from ``poetry.lock``.

The lock is the one record of which versions belong together. Poetry reads it itself; pip cannot, so set-up runs
this file and hands pip the result (``pip install -c constraints.txt``). Nothing derived from it is committed.

Only the standard library and pip itself are needed, so that it runs in a virtual environment made a second ago.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pip._vendor.packaging.markers import Marker

LOCK = Path(__file__).resolve().parent.parent / "poetry.lock"


def constraints(lock: Mapping[str, Any]) -> Iterator[str]:
    """Yield ``name==version`` for every locked package that applies to the running interpreter and platform.

    A constraint installs nothing: packages of every extra are named, and pip takes those it comes across.
    """
    extras = ["", *lock.get("extras", {})]
    for package in lock["package"]:
        markers = package.get("markers", "")
        # One marker for all groups, or one for each group: the package applies here when any of them does.
        alternatives = markers.values() if isinstance(markers, Mapping) else [markers]
        if any(_applies(marker, extras) for marker in alternatives):
            yield f"{package['name']}=={package['version']}"


def _applies(marker: str, extras: list[str]) -> bool:
    return not marker or any(Marker(marker).evaluate({"extra": extra}) for extra in extras)


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in constraints(tomllib.loads(LOCK.read_text(encoding="utf-8"))))
