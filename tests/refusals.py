"""A refusal: the error that a mistake raises, which names what is wrong, in whatever words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refuses(error: type[Exception], *named: object) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """The block raises this error, and its message names each of these: settings, values, files.

    A name counts only where it stands alone: the message "width is 128" does not name 12.
    """
    with pytest.raises(error) as raised:
        yield raised
    message = str(raised.value)
    missing = [name for name in map(str, named) if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message)]
    assert not missing, f"{missing} are not named in: {message}"
