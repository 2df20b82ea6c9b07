"""What every test shares: no network, shapes checked at every call, and where the large files are."""

from __future__ import annotations

import os
from pathlib import Path

# Set before any library reads them: nothing asks a network, opens a window, or reports to anyone.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The tensors of tests are tiny: more than one thread costs more than it brings.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from jaxtyping import install_import_hook

# From here on, a tensor whose shape contradicts a signature of open_clt is an error at the call.
install_import_hook("open_clt", "beartype.beartype")

# The fixtures tiny_gpt2 and tiny_llama: random language models that load in an instant.
pytest_plugins = ["tests.tiny_models"]

REPOSITORY = Path(__file__).resolve().parent.parent


def _reference() -> Path:
    """Results of other people's code, too large for the repository: a folder beside it, or OPEN_CLT_REFERENCE."""
    return Path(os.environ.get("OPEN_CLT_REFERENCE", REPOSITORY.parent / "shared" / "reference"))


def _real_model() -> Path | None:
    """A directory with a pretrained language model in Hugging Face's layout, if OPEN_CLT_REAL_MODEL names one."""
    folder = os.environ.get("OPEN_CLT_REAL_MODEL")
    return Path(folder) if folder else None


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine has no files or no device for, and say what is missing."""
    missing = {
        "reference": not _reference().is_dir() and f"no folder {_reference()} (or set OPEN_CLT_REFERENCE)",
        "real_model": not _real_model() and "OPEN_CLT_REAL_MODEL names no language model's directory",
        "gpu": any(item.get_closest_marker("gpu") for item in items) and not _gpu() and "no GPU",
    }
    for item in items:
        for marker, reason in missing.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """Where the reference results are; for tests marked ``reference``."""
    return _reference()


@pytest.fixture(scope="session")
def real_model_folder() -> Path:
    """A pretrained language model's directory; for tests marked ``real_model``."""
    folder = _real_model()
    assert folder is not None, "mark this test with `real_model`"
    return folder
