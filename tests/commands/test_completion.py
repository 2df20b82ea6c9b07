"""``open-clt completion``: scripts that shells read, and what bash completes with one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

import pytest

from open_clt.cli import main
from open_clt.commands.completion import SHELLS
from tests.commands.mistakes import assert_mistake


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


def completed(text: str, words: Sequence[str]) -> set[str]:
    """What bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in words)
    ask = f'COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _open_clt; printf "%s\\n" "${{COMPREPLY[@]}}"'
    result = subprocess.run(["bash", "-c", f"{text}\n{ask}"], capture_output=True, text=True, check=True)
    return {*result.stdout.split()}


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_and_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    text = script("bash", capsys)
    assert completed(text, ["open-clt", "att"]) == {"attribute", "attention"}
    assert completed(text, ["open-clt", "attribute", "--max"]) >= {"--max-logits", "--max-feature-nodes"}
    assert "--transcoder.n_features" in completed(text, ["open-clt", "train", "--transcoder.n"])
    assert completed(text, ["open-clt", "doctor", "--js"]) == {"--json"}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_names_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    for name in ("attribute", "explore", "train", "completion"):
        assert name in text
    program = shutil.which(shell)
    if program is not None:
        assert subprocess.run([program, "-n"], input=text, text=True, check=False).returncode == 0


def test_another_shell_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert_mistake(capsys, ["completion", "tcsh"], "tcsh")
