"""The import contracts hold, and each of them fails when a violation is planted."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

CONTRACTS = {
    contract["id"]: contract["name"]
    for contract in tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["tool"][
        "importlinter"
    ]["contracts"]
}

# For each contract, files that break this contract and no other.
VIOLATIONS = {
    "layers": {"open_clt/replacement/planted.py": "from open_clt import training\n"},
    "language-model": {"open_clt/replacement/planted.py": "import transformer_lens\n"},
    "drawing": {"open_clt/features/planted.py": "def draw():\n    import matplotlib.pyplot\n"},
    "trainer": {"open_clt/transcoders/planted.py": "import lightning.pytorch\n"},
    "acyclic": {
        "open_clt/transcoders/planted.py": "from open_clt.transcoders import also_planted\n",
        "open_clt/transcoders/also_planted.py": "from open_clt.transcoders import planted\n",
    },
}


def broken_contracts(folder: Path) -> set[str]:
    """The names of the contracts that fail for the package in ``folder``."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    verdicts = re.findall(r"^(.*) (KEPT|BROKEN)\b", result.stdout, re.MULTILINE)
    assert {name for name, _ in verdicts} == set(CONTRACTS.values()), result.stdout + result.stderr
    broken = {name for name, verdict in verdicts if verdict == "BROKEN"}
    assert (result.returncode == 0) == (not broken)
    return broken


@pytest.fixture
def copy(tmp_path: Path, repository: Path) -> Path:
    """A copy of the package's source and its contracts, in which violations can be planted."""
    shutil.copy(repository / "pyproject.toml", tmp_path)
    ignore = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(repository / "open_clt", tmp_path / "open_clt", ignore=ignore)
    return tmp_path


def test_contracts_hold(copy: Path) -> None:
    assert broken_contracts(copy) == set()


@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_contract_fails_on_a_violation(copy: Path, contract: str) -> None:
    for path, source in VIOLATIONS[contract].items():
        (copy / path).write_text(source)
    assert broken_contracts(copy) == {CONTRACTS[contract]}


def test_a_module_that_is_missing_from_the_layers_is_a_violation(copy: Path) -> None:
    (copy / "open_clt" / "utils.py").write_text("")
    assert broken_contracts(copy) == {CONTRACTS["layers"]}
