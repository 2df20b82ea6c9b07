"""The snippets of the guide: every block of Python and of shell commands runs, or says why the tests do not run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from open_clt.cli import main
from tools.site.repository import REPOSITORY
from tools.site.snippets import REASONS, Snippet, arguments, commands, counts, pages, snippets

_SHORT = {
    "train": ("--trainer.max_steps", "20", "--data.texts.max_contexts", "1000"),
    "features": ("--max-tokens", "200", "--top-examples", "3", "--group-examples", "1"),
}
"""Flags that shorten commands of the guide: training runs, and the measurement of all features with their labels."""
_ALL = [snippet for page in pages() for snippet in snippets(page)]
_PAGES = sorted(
    {str(s.page.relative_to(REPOSITORY)) for s in _ALL if s.kind == "run" and s.language in ("python", "bash")}
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", _PAGES)
def test_the_snippets_of_a_page_run_in_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPEN_CLT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    names: dict[str, object] = {"__name__": "guide"}
    for snippet in snippets(REPOSITORY / page):
        if snippet.kind == "run" and snippet.language in ("python", "setup"):
            exec(compile(snippet.code, str(snippet), "exec"), names)
        elif snippet.kind == "run" and snippet.language == "bash":
            run_commands(snippet, capsys)


def run_commands(snippet: Snippet, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the commands of a block: those of OpenCLT in this process, others in a shell."""
    for command in commands(snippet.code):
        words = arguments(command)
        if words is None:
            result = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True, check=False
            )
            assert result.returncode == 0, f"{snippet}: {command}\n{result.stderr}"
        else:
            status = main([*words, *_SHORT.get(words[0], ())])
            assert status == 0, f"{snippet}: {command}\n{capsys.readouterr().err}"


def test_a_block_that_is_not_run_says_why() -> None:
    for snippet in _ALL:
        assert snippet.kind != "not run" or snippet.reason.endswith(REASONS), f"{snippet}: {snippet.reason!r}"


def test_shell_commands_are_in_blocks_that_are_run() -> None:
    """A block of another language would be neither run nor counted."""
    assert [str(snippet) for snippet in _ALL if snippet.language in ("sh", "shell", "console", "py")] == []


def test_most_snippets_run() -> None:
    found = counts()
    assert found["run"] > sum(found[reason] for reason in REASONS)


@pytest.mark.parametrize(
    "target",
    sorted(
        {
            word
            for s in _ALL
            if s.kind == "installs"
            for line in commands(s.code)
            if line.startswith("make ")
            for word in line.split()[1:2]
        }
    ),
)
def test_targets_of_make_in_the_guide_exist(target: str) -> None:
    assert f"\n{target}:" in (REPOSITORY / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("open-clt info bring     # layout, shape", ["info", "bring"]),
        (
            "open-clt attribute --target ' A-- B' --ablate \"0:*:12\"",
            ["attribute", "--target", " A-- B", "--ablate", "0:*:12"],
        ),
        ("OPEN_CLT_TOKEN=x open-clt upload a b", None),
        ("open-clt info bring | head", None),
        ("torchrun -m open_clt info", None),
    ],
)
def test_commands_that_need_no_shell_run_in_this_process(command: str, words: list[str] | None) -> None:
    assert arguments(command) == words


def test_a_page_is_divided_into_blocks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("""
<!-- setup
x = 1
-->
```bash
# Not run by the tests: needs a GPU
open-clt train \\
    --output a
```
```bash
make test    # everything
```
- item
  ```python
  print(x)
  ```
""")
    blocks = [(snippet.language, snippet.kind, snippet.reason, snippet.line) for snippet in snippets(page)]
    assert blocks == [
        ("setup", "run", "", 2),
        ("bash", "not run", "needs a GPU", 5),
        ("bash", "installs", "", 10),
        ("python", "run", "", 14),
    ]
    assert commands("open-clt train \\\n    --output a\n# no\n") == ["open-clt train      --output a"]
