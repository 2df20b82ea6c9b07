"""Environment variables: a value that a library refuses is one line on stderr and status 2."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from open_clt.environment import check_environment, refused_variable

ROOT = Path(__file__).parent.parent
OPEN_CLT = [sys.executable, "-m", "open_clt", "info", "embedded"]
PRACTICE_RUN = [sys.executable, str(ROOT / "practice_run.py"), "--model", "embedded", "--texts", "missing.txt"]


def ended(command: list[str], folder: Path, **variables: str) -> tuple[int, str, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", [OPEN_CLT, PRACTICE_RUN], ids=["open-clt", "practice_run"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OMP_NUM_THREADS", "abc"),
        ("OMP_NUM_THREADS", "0"),
        ("HF_HUB_ETAG_TIMEOUT", "abc"),
        ("SOURCE_DATE_EPOCH", "abc"),
        ("LOCAL_RANK", "abc"),
        ("TORCH_LOGS", "no-such-log"),
        ("TORCH_CPP_LOG_LEVEL", "loud"),
    ],
)
def test_a_value_that_a_library_refuses_is_one_line(command: list[str], name: str, value: str, tmp_path: Path) -> None:
    status, printed, error = ended(command, tmp_path, **{name: value})
    assert (status, printed, error.count("\n")) == (2, "", 1)
    assert name in error


def ended_with(mebibytes: int, arguments: list[str], folder: Path) -> tuple[int, str, str]:
    """The end of a command whose process may have only so much address space."""
    code = f"import resource, runpy; resource.setrlimit(resource.RLIMIT_AS, ({mebibytes} * 2**20,) * 2)"
    program = f"{code}; import sys; sys.argv[1:] = {arguments}; runpy.run_module('open_clt', run_name='__main__')"
    return ended([sys.executable, "-c", program], folder)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit the address space")
@pytest.mark.parametrize("size", [150, 400, 650, 800])
def test_an_address_space_that_is_too_small_is_one_line(size: int, tmp_path: Path) -> None:
    status, printed, error = ended_with(size, ["info", "embedded"], tmp_path)
    assert (status, error.count("\n")) == (2, 1) or (size > 700 and (status, error) == (0, ""))
    assert printed == "" or status == 0


TRAINING = ["--data.language_model", "embedded", "--data.texts.source", "texts.txt", "--output", "new"]
SMALL = ["--trainer.max_steps", "2", "--transcoder.n_features", "32", "--trainer.accelerator", "cpu"]
LARGER_COMMANDS = {
    "attribute": ["--prompt", "The capital of France is", "--no-faithfulness", "--output", "graph"],
    "evaluate": ["--text", "texts.txt", "--max-tokens", "400", "--graphs", "0"],
    "features": ["--text", "texts.txt", "--max-tokens", "400", "--output", "records"],
    "report": ["--prompt", "The capital of France is", "--output", "report.html"],
    "train": [*TRAINING, *SMALL],
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit the address space")
@pytest.mark.parametrize("size", [850, 1050, 1230])
@pytest.mark.parametrize("command", LARGER_COMMANDS)
def test_larger_commands_end_with_one_line_if_the_address_space_is_too_small(
    command: str, size: int, tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("The capital of France is Paris, and the king lives in Madrid.\n" * 300)
    status, _, error = ended_with(size, [command, *LARGER_COMMANDS[command]], tmp_path)
    assert (status, error.count("\n")) == (2, 1) or (size > 1100 and status == 0), error


GOOD_VALUES = {
    "OMP_DYNAMIC": ["true", " FALSE "],
    "OMP_NESTED": ["false"],
    "OMP_CANCELLATION": ["true"],
    "OMP_MAX_ACTIVE_LEVELS": ["2"],
    "OMP_MAX_TASK_PRIORITY": ["0"],
    "OMP_STACKSIZE": ["4M", "2 m", "8000"],
    "OMP_WAIT_POLICY": ["PASSIVE"],
    "OMP_SCHEDULE": ["static", "dynamic,4", "nonmonotonic:dynamic", "auto"],
    "OMP_PROC_BIND": ["TRUE", "close,spread"],
    "OMP_PLACES": ["cores", "threads(2)", "{0}", "{0:1}:1"],
    "GOMP_SPINCOUNT": ["100", "infinite"],
    "TORCH_CPP_LOG_LEVEL": ["ERROR", "info", "2", ""],
    "HF_HUB_VERBOSITY": ["error", ""],
    "DATASETS_VERBOSITY": ["critical"],
    "TRANSFORMERS_VERBOSITY": ["detail"],
}


@pytest.mark.parametrize("name", GOOD_VALUES)
def test_values_that_libraries_know_are_accepted_and_others_are_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # which the function would set for the whole process
    for value in GOOD_VALUES[name]:
        monkeypatch.setenv(name, value)
        check_environment("name")
    assert capfd.readouterr().err == ""
    monkeypatch.setenv(name, "bogus")
    with pytest.raises(SystemExit, match="2"):
        check_environment("name")
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert name in error


def library_of_openmp() -> Path | None:
    """The library of OpenMP that PyTorch brings, which reads its variables when it is loaded."""
    folder = Path(torch.__file__).parent
    return next(iter([*folder.glob("lib/libgomp*"), *folder.parent.glob("torch.libs/libgomp*")]), None)


@pytest.mark.parametrize("name", [name for name in GOOD_VALUES if name.startswith(("OMP", "GOMP"))])
def test_the_library_of_openmp_says_the_same(name: str, tmp_path: Path) -> None:
    library = library_of_openmp()
    if library is None:
        pytest.skip("PyTorch brings another library")
    load = [sys.executable, "-S", "-c", f"import ctypes; ctypes.CDLL({str(library)!r})"]
    assert all(ended(load, tmp_path, **{name: value}) == (0, "", "") for value in GOOD_VALUES[name])
    assert ended(load, tmp_path, **{name: "bogus"})[2] != ""


@pytest.mark.slow
def test_a_value_that_matplotlib_refuses_is_one_line_when_a_command_draws(tmp_path: Path) -> None:
    prompt = ["--prompt", "The capital of France is", "--no-faithfulness", "--figure", "a.png"]
    command = [sys.executable, "-m", "open_clt", "attribute", *prompt]
    status, printed, error = ended(command, tmp_path, MPLBACKEND="bogus")
    assert (status, printed, error.count("\n")) == (2, "", 1)
    assert "MPLBACKEND" in error
    status, _, error = ended(command, tmp_path, MPLCONFIGDIR="/dev/null/here")
    assert (status, error) == (0, "")


def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> BaseException:
    """The error of importing a library that holds this code."""
    (tmp_path / "planted_library.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "planted_library", raising=False)
    with pytest.raises((ValueError, AttributeError, KeyError)) as caught:
        import_module("planted_library")
    return caught.value


def test_an_error_of_an_import_names_the_variable_by_its_value_or_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_TIMEOUT", "three")
    by_value = imported(tmp_path, monkeypatch, "import os\nint(os.environ['PLANTED_TIMEOUT'])")
    assert "PLANTED_TIMEOUT" in str(refused_variable(by_value))
    by_name = imported(tmp_path, monkeypatch, "raise ValueError('PLANTED_TIMEOUT is not a number')")
    assert "'three'" in str(refused_variable(by_name))


def test_other_errors_are_not_blamed_on_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_TIMEOUT", "three")
    for code in ("int('four')", "None.three", "{}['three']"):
        assert refused_variable(imported(tmp_path, monkeypatch, code)) is None
    assert refused_variable(ValueError("PLANTED_TIMEOUT is not a number")) is None, "it is not of an import"


@pytest.mark.parametrize(
    "chosen", [None, ("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7"), ("KMP_BLOCKTIME", "7")]
)
def test_threads_sleep_while_they_wait_unless_the_user_says_how(
    chosen: tuple[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")  # so that the values of today return after the test
        monkeypatch.delenv(name)
    if chosen is not None:
        monkeypatch.setenv(*chosen)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    check_environment("name")
    expected = {"OMP_WAIT_POLICY": "PASSIVE"} if chosen is None else dict([chosen])
    assert {name: os.environ[name] for name in ("OMP_WAIT_POLICY", *expected) if name in os.environ} == expected
