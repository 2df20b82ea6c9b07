"""The names of a saved artefact's files that match a pattern, in its directory and in sub-folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from open_clt.files import Saved

NAMES = ("a.txt", "b.bin", "one/a.txt", "two/a.txt", "two/deep/a.txt")


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_pattern_matches_at_its_own_depth(tmp_path: Path, interrupted: bool) -> None:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    saved = Saved(tmp_path, NAMES if interrupted else None)
    assert saved.names("*.txt") == ["a.txt"]
    assert saved.names("*/a.txt") == ["one/a.txt", "two/a.txt"]
    assert saved.names("t*/*/a.txt") == ["two/deep/a.txt"]
