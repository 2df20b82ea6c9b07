"""The wheel without extras, in an environment of its own: what a user gets who installs OpenCLT and nothing else.

pip installs the versions of ``poetry.lock``, or the oldest ones that ``pyproject.toml`` allows, for which it needs a
network or a registry. The same tests run with each Python from 3.11 to 3.13 that the machine has.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.soak


def run(command: Sequence[str | Path], folder: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a program outside the repository, with nothing of it on the path of modules."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "OPEN_CLT_CHECK_SHAPES")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert result.returncode == status, f"{command}: {result.stdout}\n{result.stderr}"
    return result


@pytest.fixture(scope="module")
def built(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution, built from the files that git knows."""
    place = tmp_path_factory.mktemp("built")
    run(["git", "clone", "--quiet", repository, place / "source"], place)
    run([sys.executable, "-m", "venv", place / "env"], place)
    python = place / "env" / "bin" / "python"
    run([python, "-m", "pip", "install", "--quiet", "build", "twine"], place)
    run([python, "-m", "build", "--outdir", place, place / "source"], place)
    run([python, "-m", "twine", "check", "--strict", *place.glob("open_clt-*")], place)
    return place


def oldest_versions(repository: Path) -> str:
    """Constraints with the oldest version of each dependency that ``pyproject.toml`` allows."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    bounds = re.findall(r"^([\w-]+)(?:\[\w+\])?>=([\d.]+)", "\n".join(project["dependencies"]), re.MULTILINE)
    assert len(bounds) == len(project["dependencies"])
    return "".join(f"{name}=={version}\n" for name, version in bounds)


@pytest.fixture(scope="module", params=["3.11", "3.12", "3.13", "3.11 with the oldest dependencies"])
def programs(
    request: pytest.FixtureRequest, built: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The folder of programs of an environment with the wheel, of up to 6 GB, which is deleted after its tests."""
    version = request.param.split()[0]
    interpreter = python_of(version)
    place = tmp_path_factory.mktemp("clean")
    run([interpreter, "-m", "venv", place / "env"], place)
    bin_folder = place / "env" / "bin"
    if request.param == version:
        constraints = run([bin_folder / "python", repository / "tools" / "constraints.py"], place).stdout
    else:
        constraints = oldest_versions(repository)
    (place / "constraints.txt").write_text(constraints)
    (wheel,) = built.glob("open_clt-*.whl")
    run([bin_folder / "python", "-m", "pip", "install", "-c", place / "constraints.txt", wheel], place)
    yield bin_folder
    shutil.rmtree(place)


def python_of(version: str) -> str:
    """A Python of a version on this machine, by PATH or by pyenv; the test is skipped where there is none."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    folders = [*Path.home().glob(f".pyenv/versions/{version}.*/bin"), *map(Path, os.get_exec_path())]
    for path in (folder / f"python{version}" for folder in folders):
        if path.is_file() and not subprocess.run([path, "--version"], capture_output=True, check=False).returncode:
            return str(path)
    pytest.skip(f"this machine has no Python {version}")


def test_the_files_hold_the_package_with_its_assets_and_nothing_else(built: Path, repository: Path) -> None:
    listed = run(["git", "ls-files", "open_clt"], repository).stdout.split()
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    in_wheel = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert in_wheel == set(listed)
    with tarfile.open(source) as archive:
        in_source = {name.partition("/")[2] for name in archive.getnames()}
    assert in_source == {*listed, "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}


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
