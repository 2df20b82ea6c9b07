"""The command line itself: what is no command is one line with status 2, and asking for help costs nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from open_clt.cli import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["explain"], "invalid choice: 'explain'"),
        (["attribute", "--format", "png"], "invalid choice: 'png'"),
        (["attribute", "--max-feature-nodes", "many"], "invalid int value: 'many'"),
        (["generate"], "required: --prompt"),
        (["intervene", "--prompt", "The", "--wish"], "unrecognized arguments: --wish"),
    ],
)
def test_what_cannot_be_parsed_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def run(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "open_clt", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **settings)  # type: ignore[call-overload]


def test_help_names_every_command() -> None:
    result = run("--help")
    assert result.returncode == 0
    for command in ("attribute", "embedded", "generate", "intervene"):
        assert command in result.stdout


def test_the_real_command_says_what_is_wrong_in_one_line() -> None:
    result = run("attribute", "--prompt", "The capital of France is", "--format", "graphml")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == "open-clt: --format is given, but no directory to write to; add --output.\n"


OWN = {"mine.py": "class Store:\n    pass\n", "safetensors.py": "raise AssertionError('installed packages come first')"}


def test_a_script_finds_modules_of_the_working_directory_after_those_that_are_installed(tmp_path: Path) -> None:
    for name, content in OWN.items():
        (tmp_path / name).write_text(content)
    script = tmp_path / "bin" / "script.py"  # Python's path begins there, as it does with every installed script
    script.parent.mkdir()
    script.write_text(
        "from open_clt.cli import main\nmain(['embedded'])\nimport safetensors, mine\nprint(mine.Store)\n"
    )
    for flags, status in (([], 0), (["-P"], 1)):
        command = [sys.executable, *flags, str(script)]
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert result.returncode == status, result.stderr
        assert ("mine.Store" in result.stdout) == (status == 0)


@pytest.mark.slow
def test_the_installed_script_finds_classes_of_the_working_directory(tmp_path: Path) -> None:
    for name, content in OWN.items():
        (tmp_path / name).write_text(content)
    flags = ["--data.class_path", "mine.Store", "--transcoder.n_features", "8", "--trainer.max_steps", "1"]
    command = [str(Path(sys.executable).with_name("open-clt")), "train", *flags]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "data.class_path names no ActivationStore" in result.stderr, result.stderr
    assert result.returncode == 2


def test_no_command_loads_a_heavy_library_before_it_runs() -> None:
    code = "import sys, open_clt.cli; print(*sorted({'torch', 'numpy', 'transformers', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


TALK = """
from types import SimpleNamespace
from open_clt import cli

def add_to(add_parser):
    add_parser("talk").set_defaults(command=lambda _: print("word " * 5) or 0)

cli._COMMANDS = (SimpleNamespace(add_to=add_to),)
raise SystemExit(cli.main(["talk"]))
"""


def test_a_reader_who_has_seen_enough_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        command = [sys.executable, "-c", TALK]
        result = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
