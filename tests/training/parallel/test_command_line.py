"""``open-clt train`` from a shell: two processes train the same transcoder as one process."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from open_clt import files
from open_clt.embedded.corpus import generate_texts
from open_clt.transcoders.formats.load import load_transcoder

SETTINGS = """
trainer: {max_steps: 12, accelerator: cpu, enable_progress_bar: false}
transcoder: {n_features: 64, nonlinearity: {kind: batchtopk, k: 8, across_layers: true}}
data: {language_model: embedded, batch_size: 128, context_length: 40, texts: {source: texts.txt}}
"""
SHARDED = """
trainer:
  devices: 2
  strategy: {class_path: open_clt.training.parallel.FeatureParallelStrategy, init_args: {tensor_parallel_size: 2}}
"""
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
TRAIN = [sys.executable, "-m", "open_clt", "train", "--config", "run.yaml"]
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
LAST = Path("out", "checkpoints", "last")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the texts and the settings of a run."""
    (tmp_path / "texts.txt").write_text("\n\n".join(generate_texts(300, seed=1)), encoding="utf-8")
    (tmp_path / "run.yaml").write_text(SETTINGS, encoding="utf-8")
    (tmp_path / "sharded.yaml").write_text(SHARDED, encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_two_processes_train_the_same_transcoder_as_one(folder: Path) -> None:
    train(folder, "one")
    train(folder, "ddp", *TWO, "--trainer.profiler", "simple")
    train(folder, "sharded", "--config", "sharded.yaml", launcher=TORCHRUN)

    one = load_transcoder(folder / "one")
    for name in ("ddp", "sharded"):
        assert losses(folder / name) == pytest.approx(losses(folder / "one"), rel=1e-5)
        transcoder = load_transcoder(folder / name)
        assert transcoder.config == one.config
        for key, tensor in one.state_dict().items():
            torch.testing.assert_close(transcoder.state_dict()[key], tensor, rtol=1e-2, atol=1e-4)
        assert report(folder / name) == pytest.approx(report(folder / "one"), rel=1e-3)
    check_profiles_are_ours(folder / "ddp")
    last = folder / "sharded" / "checkpoints" / "last"
    assert sorted(path.name for path in last.iterdir()) == ["shard_0_of_2", "shard_1_of_2"]

    whole = load_transcoder(folder / "sharded")
    (folder / "sharded" / "transcoder.safetensors").unlink()  # as if the run had been killed before its end
    save_only = ["--config", "sharded.yaml", "--ckpt-path", "last", "--trainer.max_time", "00:00:00:00"]
    train(folder, "sharded", *save_only, launcher=TORCHRUN)
    for key, tensor in load_transcoder(folder / "sharded").state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[key]), key


def check_profiles_are_ours(output: Path) -> None:
    """The profiles of both processes are in the manifest, so another run may replace them."""
    profiles = {f"profile/{path.name}" for path in (output / "profile").iterdir()}
    assert profiles == {"profile/summary.txt", "profile/summary-1.txt"}
    assert profiles <= files.listed_names(output)


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["first", "all"])
def test_sigterm_ends_two_processes_with_one_line_and_keeps_their_checkpoint(whom: str, folder: Path) -> None:
    with endless_run(folder) as run:
        send = os.kill if whom == "first" else os.killpg
        send(run.pid, signal.SIGTERM)
        printed, error = run.communicate(timeout=120)
    assert (run.returncode, printed, error.count("\n")) == (143, "", 1), error
    assert str(LAST) in error
    assert (folder / LAST).exists()


@contextmanager
def endless_run(folder: Path) -> Generator[subprocess.Popen[str]]:
    """A run of two processes in ``out`` that would train for ever, and that has written a checkpoint."""
    endless = ["--output", "out", "--trainer.max_steps", "1000000", "--checkpoints.every", "5"]
    pipe = subprocess.PIPE
    command = [*TRAIN, *endless, *TWO]
    with subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as run:
        while not (folder / LAST).exists() and run.poll() is None:
            time.sleep(0.1)
        yield run


def train(folder: Path, output: str, *settings: str, launcher: list[str] | None = None) -> None:
    """Run ``open-clt train`` in new processes."""
    command = [sys.executable, *(launcher or []), "-m", "open_clt", "train", "--config", "run.yaml", *settings]
    run = subprocess.run(
        [*command, "--output", output], cwd=folder, env=os.environ, capture_output=True, text=True, timeout=280
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("steps,") == 1, "only the first process reports"


def losses(output: Path) -> list[float]:
    with (output / "metrics.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def report(output: Path) -> dict[str, float]:
    numbers = json.loads((output / "evaluation.json").read_text())
    return {name: value for name, value in numbers.items() if isinstance(value, float)}


@pytest.mark.slow
def test_a_mistake_that_two_processes_meet_in_training_is_one_line(folder: Path) -> None:
    ended = subprocess.run(
        [*TRAIN, "--output", "out", *TWO, "--training.learning_rate", "1e30"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert "loss" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["first", "second"])
def test_a_killed_process_is_one_line_of_the_other(killed: str, folder: Path) -> None:
    with endless_run(folder) as run:
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        os.kill(run.pid if killed == "first" else int(children[0]), signal.SIGKILL)
        printed, error = run.communicate(timeout=120)
    assert (run.returncode, printed) == (-signal.SIGKILL if killed == "first" else 1, "")
    assert error.count("\n") == 1, error
    assert "Another process" in error
    assert (folder / LAST).exists()
