"""The README: its links and pictures exist, and it is short (``tests/site/`` runs its code)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
README = REPOSITORY / "README.md"


def test_the_readme_fits_two_screens() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) < 130


def test_every_local_link_of_the_readme_exists() -> None:
    text = README.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    missing = [link for link in links if not (README.parent / link).exists()]
    assert links
    assert not missing


def test_every_picture_of_the_readme_is_in_the_gallery() -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    assert pictures
    assert all(Path("visualizations/gallery") in Path(picture).parents for picture in pictures)
    assert all((README.parent / picture).is_file() for picture in pictures)


def test_git_ignores_what_a_run_writes_and_keeps_the_gallery() -> None:
    written = ["visualizations/metrics.json", "visualizations/feature_heatmap.png", "visualizations/checkpoint/x"]
    gallery = [str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "visualizations/gallery").iterdir()]
    command = ["git", "check-ignore", "--no-index", *written, *gallery]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if result.returncode > 1:
        pytest.skip("this is not a git repository")
    assert gallery
    assert result.stdout.split() == written
