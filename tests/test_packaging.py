"""Versions of dependencies: ``poetry.lock`` agrees with ``pyproject.toml`` and names each package once."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def lock_text(repository: Path) -> str:
    return (repository / "poetry.lock").read_text()


@pytest.fixture(scope="module")
def lock(lock_text: str) -> dict[str, Any]:
    return tomllib.loads(lock_text)


def requirements(project: dict[str, Any]) -> list[Requirement]:
    """All requirements of the project and of its extras."""
    table = project["project"]
    lines = [*table["dependencies"], *(line for extra in table["optional-dependencies"].values() for line in extra)]
    return [Requirement(line) for line in lines]


def test_the_lock_file_belongs_to_this_pyproject(project: dict[str, Any], lock: dict[str, Any]) -> None:
    """Poetry stores a hash of the relevant parts of pyproject.toml. If this test fails, run `poetry lock`."""
    keys = ("requires-python", "dependencies", "optional-dependencies")
    relevant = {
        "project": {key: project["project"][key] for key in keys},
        "tool": {"poetry": {"group": project["tool"]["poetry"]["group"]}},
    }
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()
    assert lock["metadata"]["content-hash"] == digest


def test_locked_versions_satisfy_the_requirements(project: dict[str, Any], lock: dict[str, Any]) -> None:
    locked = {package["name"]: package["version"] for package in lock["package"]}
    for requirement in requirements(project):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement


def test_every_package_is_required_only_once(project: dict[str, Any]) -> None:
    """A package that is required twice breaks `poetry lock`."""
    counts = Counter(canonicalize_name(requirement.name) for requirement in requirements(project))
    assert [name for name, count in counts.items() if count > 1] == []


def test_the_lock_file_names_each_package_once(lock: dict[str, Any]) -> None:
    """Two versions with overlapping markers would be installed over each other, and `import torch` would fail."""
    counts = Counter(package["name"] for package in lock["package"])
    assert [name for name, count in counts.items() if count > 1] == []


def test_the_lock_file_does_not_name_a_registry(lock: dict[str, Any], lock_text: str) -> None:
    """Users choose their registry, so the repository does not contain the address of one."""
    assert [package["name"] for package in lock["package"] if "source" in package] == []
    without_descriptions = re.sub(r"(?m)^description = .*$", "", lock_text)
    assert re.findall(r"\w+://\S+", without_descriptions) == []


def test_constraints_come_from_the_lock_file(repository: Path, lock: dict[str, Any]) -> None:
    command = [sys.executable, repository / "tools" / "constraints.py"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    locked = {f"{package['name']}=={package['version']}" for package in lock["package"]}
    assert set(printed) <= locked
    assert len(printed) == len(set(printed))
    for name in ("torch", "transformer-lens", "scipy", "pytest"):
        assert any(line.startswith(f"{name}==") for line in printed), f"{name} is not in the constraints"


def test_installed_versions_equal_the_locked_versions(lock: dict[str, Any], project: dict[str, Any]) -> None:
    """A build for another device has a local label (2.13.0+cpu), but is the same release."""
    from importlib.metadata import PackageNotFoundError, version

    locked = {package["name"]: package["version"] for package in lock["package"]}
    for requirement in requirements(project):
        name = canonicalize_name(requirement.name)
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue  # this extra is not installed here
        assert installed.partition("+")[0] == locked[name], name


def test_every_place_that_states_the_version_states_that_of_pyproject(
    project: dict[str, Any], repository: Path
) -> None:
    version = project["project"]["version"]
    badges = repository / "visualizations" / "gallery" / "badges"
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (version, project["project"]["license"])
    assert f"version = {{{version}}}" in (repository / "README.md").read_text()
    assert f"<title>version: {version}</title>" in (badges / "version.svg").read_text()
    assert f"## {version} (" in (repository / "CHANGELOG.md").read_text()
    first, last = re.findall(r"3\.\d+", project["project"]["requires-python"])
    assert f"<title>Python: {first} to 3.{int(last[2:]) - 1}</title>" in (badges / "python.svg").read_text()
