"""Refusals: checks that a mistake raises the right error and that its message names the value, whatever its words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refuses(error: type[Exception], *named: object) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Check that the block raises ``error`` with a message that names each of ``named``: settings, values, files.

    A name must stand alone: the message "width is 128" does not name 12.
    """
    with pytest.raises(error) as raised:
        yield raised
    message = str(raised.value)
    missing = [name for name in map(str, named) if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message)]
    assert not missing, f"the message does not name {missing}: {message}"
