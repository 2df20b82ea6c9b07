"""The command line as a whole: mistakes in parsing, help, imports from the working directory and closed pipes."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest

from open_clt import cli, progress
from open_clt.cli import _parser, main
from open_clt.commands.options import add_command
from tests.commands.mistakes import assert_mistake


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "COMMAND"),
        (["explain"], "'explain'"),
        (["attribute", "--format", "png"], "'png'"),
        (["attribute", "--max-feature-nodes", "many"], "'many'"),
        (["generate"], "--prompt"),
        (["intervene", "--prompt", "The", "--wish"], "--wish"),
    ],
)
def test_arguments_that_cannot_be_parsed_are_one_line_and_status_2(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_mistake(capsys, arguments, named)


def run(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "open_clt", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **settings)  # type: ignore[call-overload]


def test_help_lists_every_command() -> None:
    result = run("--help")
    assert result.returncode == 0
    for command in ("attribute", "embedded", "generate", "intervene"):
        assert command in result.stdout


def help_texts(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The help of every option and command of a parser, and of the parsers of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from (str(choice.help) for choice in action._choices_actions)
            for command in action.choices.values():
                yield from help_texts(command)
        elif not isinstance(action, argparse._HelpAction) and action.dest != "settings":
            yield str(action.help)


def test_every_help_text_is_a_sentence_or_a_noun_phrase() -> None:
    texts = list(help_texts(_parser()))
    assert len(texts) > 50
    assert [text for text in texts if not re.fullmatch(r"[A-Z].*\.", text)] == []


def test_a_mistake_ends_the_process_with_status_2_and_one_line() -> None:
    result = run("attribute", "--prompt", "The capital of France is", "--format", "graphml")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("open-clt: ")
    assert result.stderr.count("\n") == 1


ROOT = Path(__file__).parents[1]
OWN = {"mine.py": "class Store:\n    pass\n", "safetensors.py": "raise AssertionError('installed packages come first')"}


SEARCH = """
import importlib.util
from open_clt.cli import main
from open_clt.commands import generate, train

def search(arguments):
    import safetensors
    print(importlib.util.find_spec("mine") is not None, end=" ")
    return 0

generate.run = train.run = search
for words in (["train"], ["generate", "--prompt", "The", "--trust-code"], ["generate", "--prompt", "The"]):
    main(words)
"""


@pytest.mark.slow
def test_modules_of_the_working_directory_are_found_last_and_only_if_the_user_trusts_them(tmp_path: Path) -> None:
    for name, content in OWN.items():
        (tmp_path / name).write_text(content)
    script = (
        tmp_path / "bin" / "script.py"
    )  # an installed script has its own directory on its path, not the working one
    script.parent.mkdir()
    script.write_text(SEARCH)
    for flags, found in (([], "True True False "), (["-P"], "False False False ")):
        command = [sys.executable, *flags, str(script)]
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert result.stdout == found, result.stderr


@pytest.mark.slow
def test_the_installed_script_imports_classes_of_the_working_directory(tmp_path: Path) -> None:
    for name, content in OWN.items():
        (tmp_path / name).write_text(content)
    flags = ["--data.class_path", "mine.Store", "--transcoder.n_features", "8", "--trainer.max_steps", "1"]
    command = [str(Path(sys.executable).with_name("open-clt")), "train", *flags]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    # The class is found, but it is not an ActivationStore.
    assert "data.class_path" in result.stderr, result.stderr
    assert "ActivationStore" in result.stderr, result.stderr
    assert result.returncode == 2


@pytest.mark.slow
def test_a_transcoder_of_a_stranger_runs_no_code_unless_it_is_trusted(tmp_path: Path) -> None:
    embedded = Path(str(files("open_clt"))) / "embedded" / "transcoder"
    shutil.copytree(embedded, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architecture"] = {"class_path": "stranger.Fancy", "init_args": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("stranger", "gguf", "wandb", "yaml", "matplotlib"):
        (tmp_path / f"{name}.py").write_text(f"open('ran-{name}', 'w').close()\nraise AssertionError('{name} ran')\n")
    arguments = ["generate", "--transcoder", ".", "--prompt", "The capital of France"]
    for trusted in ([], ["--trust-code"]):
        result = run(*arguments, *trusted, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert [path.name for path in tmp_path.glob("ran-*")] == ["ran-stranger" for _ in trusted], result.stderr
    assert "stranger ran" in result.stderr


def test_the_command_line_imports_no_large_library_before_a_command_runs() -> None:
    code = "import sys, open_clt.cli; print(*sorted({'torch', 'numpy', 'transformers', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


TALK = """
from types import SimpleNamespace
from open_clt import cli

def add_to(add_parser):
    add_parser("talk").set_defaults(command=lambda _: print("word " * 5) or 0)

cli._commands = lambda: (SimpleNamespace(add_to=add_to),)
raise SystemExit(cli.main(["talk"]))
"""


def test_a_closed_output_is_not_an_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        command = [sys.executable, "-c", TALK]
        result = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, "")


FIRST_IMPORT = """
import sys
class Signal:
    def find_spec(self, name, path=None, target=None):
        if name == "open_clt.cli":
            import signal
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Signal())
import open_clt.__main__
"""


def test_ctrl_c_during_the_first_imports_is_status_130_and_one_line() -> None:
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # the suite may run in the background
    try:
        command = [sys.executable, "-c", FIRST_IMPORT]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        signal.signal(signal.SIGINT, former)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (130, "", 1), result.stderr


def test_the_installed_program_handles_signals_before_it_imports_its_commands(repository: Path) -> None:
    scripts = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"open-clt": "open_clt.__main__:main"}


def test_the_version_is_printed() -> None:
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"open-clt {version('open-clt')}\n")


def test_names_of_circuit_tracer_mean_the_same() -> None:
    theirs = "-m gpt2 -t org/name -p The --max_n_logits 3 --desired_logit_prob 0.8 --max_feature_nodes 9"
    ours = (
        "--model gpt2 --transcoder org/name --prompt The --max-logits 3 --logit-probability 0.8 --max-feature-nodes 9"
    )
    theirs = f"{theirs} --node_threshold 0.7 --edge_threshold 0.9 -o D --verbose"
    ours = f"{ours} --node-threshold 0.7 --edge-threshold 0.9 --output D --verbose"
    parse = _parser().parse_args
    first, second = vars(parse(["attribute", *theirs.split()])), vars(parse(["attribute", *ours.split()]))
    assert {**first, "program": None} == {**second, "program": None}
    assert first["transcoder"] == parse(["attribute", "--transcoder_set", "org/name"]).transcoder


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [(["talk"], "W"), (["talk", "--verbose"], "iw"), (["--verbose", "talk"], "iw"), (["--quiet", "talk"], "")],
)
def test_options_say_how_much_is_reported(
    arguments: list[str],
    shown: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("open_clt.talk")
    hidden: list[bool] = []

    def talk(_: argparse.Namespace) -> int:
        logger.info("i")
        logger.warning("w" if logging.getLogger("open_clt").handlers else "W")
        hidden.append(progress._hidden.get())
        return 0

    command = SimpleNamespace(add_to=lambda add: add_command(add, "talk", "Talk.").set_defaults(command=talk))
    monkeypatch.setattr(cli, "_commands", lambda: (command,))
    level = logging.getLogger("open_clt").level
    assert main(arguments) == 0
    printed = "".join(capsys.readouterr().err.split())
    assert printed == shown or (shown, printed, caplog.messages) == ("W", "", ["W"])  # pytest takes what nobody prints
    assert hidden == ["--quiet" in arguments]
    assert (logging.getLogger("open_clt").level, logging.getLogger("open_clt").handlers) == (level, [])


def test_quiet_and_verbose_contradict_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert_mistake(capsys, ["doctor", "--quiet", "--verbose"], "--verbose", "--quiet")
