"""The wheel without extras, in an environment of its own: what a user gets who installs OpenCLT and nothing else.

pip builds the wheel and installs the versions of ``poetry.lock``, for which it may need a network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.soak


def run(command: Sequence[str | Path], folder: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a program outside the repository, with nothing of it on the path of modules."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert result.returncode == status, f"{command}: {result.stdout}\n{result.stderr}"
    return result


@pytest.fixture(scope="module")
def programs(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment with the wheel."""
    place = tmp_path_factory.mktemp("clean")
    run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", place, repository], place)
    constraints = run([sys.executable, repository / "tools" / "constraints.py"], place).stdout
    (place / "constraints.txt").write_text(constraints)
    run([sys.executable, "-m", "venv", place / "env"], place)
    bin_folder = place / "env" / "bin"
    (wheel,) = place.glob("open_clt-*.whl")
    run([bin_folder / "python", "-m", "pip", "install", "-c", place / "constraints.txt", wheel], place)
    return bin_folder


def test_the_short_main_job_runs_outside_the_repository(programs: Path, repository: Path, tmp_path: Path) -> None:
    script = tmp_path / "practice_run.py"
    script.write_text((repository / "practice_run.py").read_text())
    run([programs / "python", script, "--model", "embedded", "--num-features", "64", "--max-tokens", "20000"], tmp_path)
    assert [*(tmp_path / "visualizations").rglob("transcoder.safetensors")]
    graph = tmp_path / "graph"
    run([programs / "open-clt", "attribute", "--prompt", "The capital of Texas is", "-o", graph], tmp_path)
    assert (graph / "graph.json").exists()


def test_the_doctor_finds_everything_but_extras(programs: Path, tmp_path: Path) -> None:
    report = json.loads(run([programs / "open-clt", "doctor", "--json"], tmp_path).stdout)
    assert report["ok"]
    assert "open-clt[explorer]" in " ".join(finding["advice"] for finding in report["findings"])


def test_every_public_name_is_there(programs: Path, tmp_path: Path) -> None:
    run(
        [programs / "python", "-c", "import open_clt; [getattr(open_clt, name) for name in open_clt.__all__]"], tmp_path
    )


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["explore"], "explorer"),
        (["serve", "."], "server"),
        (["generate", "--model", "model.gguf", "--transcoder", "embedded", "--prompt", "The"], "gguf"),
    ],
)
def test_a_missing_extra_is_a_sentence_with_the_line_that_installs_it(
    arguments: list[str], extra: str, programs: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    error = run([programs / "open-clt", *arguments], tmp_path, status=2).stderr
    assert f"open-clt[{extra}]" in error
    assert error.count("\n") == 1
