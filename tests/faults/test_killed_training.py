"""A training run that is killed at any moment is resumed, and ends with the same weights as a run that was not killed.

A child process trains, and kills itself (SIGKILL) at its n-th renaming of a file: renamings begin and end every save,
so the moments between them include those in which files are half replaced.
"""

from __future__ import annotations

import gc
import json
import os
import signal
from pathlib import Path
from random import Random

import pytest

from open_clt.language.language_model import LanguageModel
from open_clt.training.flags.command_line import CommandResult
from tests.tiny_models import TEXTS
from tests.training.data.stored_run import TOO_SMALL, write
from tests.training.flags.small_run import Settings, assert_same_weights, train, use_language_model

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


@pytest.fixture
def settings(tiny_gpt2: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A training run of eight small steps that writes a checkpoint after every second one."""
    use_language_model(tiny_gpt2, monkeypatch)
    rows = [{"text": text} for text in TEXTS * 30]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {
        "transcoder": {"n_features": 40, "nonlinearity": {"kind": "batchtopk", "k": 4}},
        "data": {
            "language_model": "tiny",
            "context_length": 16,
            "batch_size": 32,
            "texts": {"source": str(tmp_path / "texts.jsonl"), "held_out_contexts": 4},
        },
        "trainer": {"max_steps": 8, "accelerator": "cpu", "enable_progress_bar": False, "val_check_interval": 2},
        "checkpoints": {"every": 2},
    }


def count_renamings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> tuple[CommandResult, int]:
    """Train to the end; return the run, and how often it renamed a file."""
    count, replace = 0, os.replace

    def counted(*arguments: object) -> None:
        nonlocal count
        count += 1
        replace(*arguments)  # pyright: ignore[reportArgumentType, reportCallIssue]

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", counted)
        run = train(settings)
    return run, count


def train_until_killed(settings: Settings, flags: list[str], renaming: int) -> bool:
    """Train in a child process that kills itself at a renaming; return whether it was killed before its end."""
    child = os.fork()
    if child == 0:
        replace, left = os.replace, renaming

        def deadly(*arguments: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*arguments)  # pyright: ignore[reportArgumentType, reportCallIssue]

        os.replace = deadly  # pyright: ignore[reportAttributeAccessIssue]
        try:
            train(settings, *flags)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def flags_to_go_on(output: Path) -> list[str]:
    """What the user says after a killed run: resume from its last checkpoint, or begin again if there is none."""
    last = output / "checkpoints" / "last"
    # The file has the second name if the run was killed while a second checkpoint replaced the first one.
    has_checkpoint = any((last / name).exists() for name in ("state.json", ".old-state.json"))
    return ["--ckpt-path", "last"] if has_checkpoint else ["--overwrite"]


def check_killed_runs(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: range) -> None:
    """Kill runs, each several times, and compare their ends with that of a run that is not killed."""
    whole, total = count_renamings({**settings, "output": str(tmp_path / "whole")}, monkeypatch)
    assert total > 20
    for seed in seeds:
        random = Random(seed)
        output = tmp_path / f"run {seed}"
        (notes := output / "notes.txt").parent.mkdir()
        notes.write_text("mine")
        run = {**settings, "output": str(output)}
        assert train_until_killed(run, [], random.randint(1, total)), seed
        for _ in range(2):
            train_until_killed(run, flags_to_go_on(output), random.randint(1, total))
        gc.collect()  # a run that has ended keeps its weights in reference cycles, and a fork needs room for all memory
        resumed = train(run, *flags_to_go_on(output))
        assert_same_weights(resumed, whole)
        assert notes.read_text() == "mine"
        # A file that was half written (.part-) may stay until a file of its name is written again.
        assert not [path for path in output.rglob(".*") if path.name.startswith((".old-", ".saving-"))]


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been_killed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_killed_runs(settings, tmp_path, monkeypatch, range(1))


@pytest.mark.slow
def test_several_killed_runs_end_as_if_they_had_not_been_killed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_killed_runs(settings, tmp_path, monkeypatch, range(1, 6))


@pytest.mark.slow
def test_killed_runs_on_a_dataset_end_as_if_they_had_not_been_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"path": str(write(tmp_path / "data")), "batch_size": 64, "memory_limit": TOO_SMALL, "order": "random"}
    settings: Settings = {
        "transcoder": {"n_features": 24, "nonlinearity": {"kind": "batchtopk", "k": 4}},
        "data": data,
        "trainer": {"max_steps": 16, "accelerator": "cpu", "enable_progress_bar": False, "val_check_interval": 4},
        "checkpoints": {"every": 3},
    }
    check_killed_runs(settings, tmp_path, monkeypatch, range(3))


@pytest.mark.soak
def test_many_killed_runs_end_as_if_they_had_not_been_killed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_killed_runs(settings, tmp_path, monkeypatch, range(6, 56))
