"""One truth about versions: ``poetry.lock`` agrees with ``pyproject.toml``, and names each package once."""

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
    """Every requirement of the project and of its extras."""
    table = project["project"]
    lines = [*table["dependencies"], *(line for extra in table["optional-dependencies"].values() for line in extra)]
    return [Requirement(line) for line in lines]


def test_lock_was_made_from_this_pyproject(project: dict[str, Any], lock: dict[str, Any]) -> None:
    """Poetry's own rule: a hash over the parts of pyproject.toml that bear on the lock. If it fails: `poetry lock`."""
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


def test_no_package_stands_in_two_extras(project: dict[str, Any]) -> None:
    """A second mention makes `poetry lock` explode."""
    counts = Counter(canonicalize_name(requirement.name) for requirement in requirements(project))
    assert [name for name, count in counts.items() if count > 1] == []


def test_lock_names_each_package_once(lock: dict[str, Any]) -> None:
    """Two versions with overlapping markers are installed over one another, and `import torch` dies."""
    counts = Counter(package["name"] for package in lock["package"])
    assert [name for name, count in counts.items() if count > 1] == []


def test_lock_names_no_source(lock: dict[str, Any], lock_text: str) -> None:
    """Whoever installs chooses the registry; none is written into the repository."""
    assert [package["name"] for package in lock["package"] if "source" in package] == []
    without_descriptions = re.sub(r"(?m)^description = .*$", "", lock_text)
    assert re.findall(r"\w+://\S+", without_descriptions) == []


def test_constraints_come_from_the_lock(repository: Path, lock: dict[str, Any]) -> None:
    command = [sys.executable, repository / "tools" / "constraints.py"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    locked = {f"{package['name']}=={package['version']}" for package in lock["package"]}
    assert set(printed) <= locked
    assert len(printed) == len(set(printed))
    for name in ("torch", "transformer-lens", "scipy", "pytest"):
        assert any(line.startswith(f"{name}==") for line in printed), f"{name} is not held by the lock"


def test_installed_versions_are_the_locked_ones(lock: dict[str, Any], project: dict[str, Any]) -> None:
    """A build for another device carries a local label (2.13.0+cpu), which is the same release."""
    from importlib.metadata import PackageNotFoundError, version

    locked = {package["name"]: package["version"] for package in lock["package"]}
    for requirement in requirements(project):
        name = canonicalize_name(requirement.name)
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue  # an extra that is not asked for here
        assert installed.partition("+")[0] == locked[name], name
