"""Settings of all tests: no network, shapes checked at every call on request, and the folders of large files."""

from __future__ import annotations

import os
from pathlib import Path

# Set before a library reads them: no library uses a network, opens a window, or sends reports.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The tensors of tests are so small that a second thread costs more time than it saves.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from jaxtyping import install_import_hook

# The fixtures tiny_gpt2 and tiny_llama are small random language models.
pytest_plugins = ["tests.tiny_models"]

REPOSITORY = Path(__file__).resolve().parent.parent


def _checked_modules() -> list[str]:
    """The modules whose calls are checked; modules of configs are left out, because configs check their own types."""
    paths = sorted((REPOSITORY / "open_clt").rglob("*.py"))
    checked = [path for path in paths if path.stem != "__init__" and "(CheckedConfig)" not in path.read_text()]
    return [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in checked]


# From here on, a call of a function of open_clt with a tensor of the wrong shape is an error. The checks take as long
# as the tests themselves, so they are made by `make slow`, and elsewhere on request.
CHECKED = os.environ.get("OPEN_CLT_CHECK_SHAPES", "0") != "0"
if CHECKED:
    install_import_hook(_checked_modules(), "beartype.beartype")


def _reference() -> Path:
    """The folder of results of other people's code, which are too large for the repository.

    It is ``shared/reference`` beside the repository, or the folder that OPEN_CLT_REFERENCE names.
    """
    return Path(os.environ.get("OPEN_CLT_REFERENCE", REPOSITORY.parent / "shared" / "reference"))


def _real_model() -> Path | None:
    """The directory of a pretrained language model in Hugging Face's layout that OPEN_CLT_REAL_MODEL names, or None."""
    folder = os.environ.get("OPEN_CLT_REAL_MODEL")
    return Path(folder) if folder else None


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--peer-python", help="Python of an environment with the package that tests marked peer compare with"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests for which this machine lacks files or a device, and say what is missing."""
    skip_reasons = {
        "reference": not _reference().is_dir() and f"there is no folder {_reference()} (set OPEN_CLT_REFERENCE)",
        "real_model": not _real_model() and "OPEN_CLT_REAL_MODEL does not name the directory of a language model",
        "wrong_types": CHECKED and "the check of types and shapes refuses the argument first",
        "peer": not config.getoption("--peer-python") and "--peer-python does not name the Python of another package",
        "gpu": any(item.get_closest_marker("gpu") for item in items) and not _gpu() and "there is no GPU",
    }
    for item in items:
        for marker, reason in skip_reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """The folder of the reference results, for tests marked ``reference``."""
    return _reference()


@pytest.fixture(scope="session")
def real_model_folder() -> Path:
    """The directory of a pretrained language model, for tests marked ``real_model``."""
    folder = _real_model()
    assert folder is not None, "mark this test with `real_model`"
    return folder


@pytest.fixture(scope="session")
def peer_python(pytestconfig: pytest.Config) -> str:
    """The Python of an environment with another package, for tests marked ``peer``."""
    return pytestconfig.getoption("--peer-python")
