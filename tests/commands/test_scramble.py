"""``open-clt scramble`` writes a dataset in another order, says its size first, and goes on after a stop."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from open_clt.cli import main
from open_clt.data.dataset import scramble
from open_clt.data.dataset.scrambling import scramble as scramble_module
from tests.commands.mistakes import assert_mistake
from tests.data.dataset.small_dataset import contents, harvested, write

LIMIT = 25 * harvested().bytes_per_token


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source")


def test_the_dataset_is_that_of_the_function(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--seed", "3", "--shard-tokens", "20", "--memory-limit", str(LIMIT)]
    assert main(["scramble", str(source), str(tmp_path / "out"), *options]) == 0
    printed, error = capsys.readouterr()
    assert error == ""
    assert "70 tokens" in printed
    assert str(tmp_path / "out") in printed
    scramble(source, tmp_path / "expected", seed=3, shard_tokens=20)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    assert main(["info", str(tmp_path / "out")]) == 0
    assert "seed 3" in capsys.readouterr().out


@pytest.mark.usefixtures("interruptible")
def test_the_same_command_goes_on_after_ctrl_c_and_then_has_nothing_to_do(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["scramble", str(source), str(tmp_path / "out"), "--memory-limit", str(LIMIT)]
    store_shard = scramble_module.store_shard

    def store_and_stop(path: Path, tensors: Any) -> Any:
        if path.name == "shard-00002.safetensors":
            os.kill(os.getpid(), signal.SIGINT)
        return store_shard(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(scramble_module, "store_shard", store_and_stop)
        assert main(command) == 130
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "goes on" in error
    assert (tmp_path / "out" / "scrambling.json").exists()
    assert_mistake(capsys, [*command, "--seed", "4"], tmp_path / "out", "seed")
    assert_mistake(capsys, ["info", str(tmp_path / "out")], tmp_path / "out", "not complete")
    assert main(command) == 0
    scramble(source, tmp_path / "expected")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    capsys.readouterr()
    assert main(command) == 0
    assert "70 tokens" in capsys.readouterr().out
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["out"], "OUTPUT"),
        (["no-such-dataset", "out"], "no-such-dataset"),
        (["source", "source"], "source"),
        (["source", "theirs"], "notes.txt"),
        (["source", "out", "--seed", "many"], "--seed"),
        (["source", "out", "--shard-tokens", "0"], "--shard-tokens"),
        (["source", "out", "--memory-limit", "100"], "100 bytes"),
        (["", "out"], "empty"),
    ],
)
def test_mistakes_end_with_one_line_and_write_nothing(
    wrong: list[str],
    named: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes.txt").write_text("mine")
    before = contents(source)
    assert_mistake(capsys, ["scramble", *wrong], named)
    assert not (tmp_path / "out").exists()
    assert contents(source) == before
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["notes.txt"]


def test_the_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["scramble", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    options = "SOURCE OUTPUT --seed --shard-tokens --memory-limit".split()
    assert [option for option in options if option not in printed] == []
