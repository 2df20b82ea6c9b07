"""Constraints for pip: the versions of ``poetry.lock`` that apply to this Python and this machine, printed.

``poetry.lock`` is the only record of versions. Poetry reads it, but pip cannot, so the installation runs this script
and passes its output to pip (``pip install -c constraints.txt``). The output is never committed.

The script needs only the standard library and pip, so it runs in a new virtual environment.
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

    A constraint installs nothing. The packages of every extra are among the constraints, and pip uses those that it
    needs.
    """
    extras = ["", *lock.get("extras", {})]
    for package in lock["package"]:
        markers = package.get("markers", "")
        # A package has one marker for all groups or one for each group; it is needed if any of them applies.
        alternatives = markers.values() if isinstance(markers, Mapping) else [markers]
        if any(_applies(marker, extras) for marker in alternatives):
            yield f"{package['name']}=={package['version']}"


def _applies(marker: str, extras: list[str]) -> bool:
    return not marker or any(Marker(marker).evaluate({"extra": extra}) for extra in extras)


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in constraints(tomllib.loads(LOCK.read_text(encoding="utf-8"))))
