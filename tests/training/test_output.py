"""The output directory of a training run: foreign files stay, former runs are resumed or overwritten, one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import SimpleProfiler

from open_clt import files
from open_clt.config import CheckpointsConfig
from open_clt.errors import ConfigError, NotFiniteError
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from open_clt.training.output import output_directory
from open_clt.training.result import TrainingResult
from open_clt.training.run import OwnParts, train_on_activations
from open_clt.training.step.module import Step
from open_clt.transcoders.formats.load import load_transcoder
from tests.faults.artefacts import save_native
from tests.refusals import refuses
from tests.training.synthetic import quick_training, relu_mlps, small_transcoder

ALL_CHECKPOINTS = CheckpointsConfig(keep_all=True)


def run(output: Path, **settings: Any) -> TrainingResult:
    options = {name: settings.pop(name) for name in ("overwrite", "resume", "own") if name in settings}
    return train_on_activations(
        relu_mlps(300),
        small_transcoder(),
        quick_training(**{"max_steps": 2, **settings}),
        progress=False,
        output_dir=output,
        **options,
    )


def claim(output: Path, **options: Any) -> Any:
    settings = {"resume": None, "overwrite": False, "checkpoints": ALL_CHECKPOINTS, "also_writes": ("config.yaml",)}
    return output_directory(output, **{**settings, **options})


def save_checkpoint(path: Path) -> None:
    SafetensorsCheckpointIO().save_checkpoint({"step": torch.tensor(1)}, path)


def contents(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_bytes().decode("latin-1")
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "transcoder.safetensors",
        "metrics.csv",
        "config.yaml",
        "checkpoints",
        "checkpoints/last",
        "checkpoints/last/notes.txt",
        "checkpoints/best/notes.txt",
        "checkpoints/step-7/weights.pt",
    ],
)
def test_a_file_under_a_name_that_the_run_writes_is_named_and_stays(name: str, overwrite: bool, tmp_path: Path) -> None:
    files.write_text(tmp_path / name, "{}")
    before = contents(tmp_path)
    path = tmp_path / ("/".join(name.split("/")[:2]))
    with refuses(ConfigError, path), claim(tmp_path, overwrite=overwrite):
        raise AssertionError("the run starts")
    assert contents(tmp_path) == before


def test_other_files_are_accepted_and_left_alone(tmp_path: Path) -> None:
    names = ("notes.txt", "resume/notes.txt", "checkpoints/mine/notes.txt", "checkpoints/step-1/notes.txt")
    for name in names:
        files.write_text(tmp_path / name, name)
    run(tmp_path)
    run(tmp_path, overwrite=True, seed=1)
    run(tmp_path, resume="last", seed=1)
    for name in names:
        assert (tmp_path / name).read_text() == name


def test_a_transcoder_or_a_run_is_replaced_only_if_the_user_says_so(tmp_path: Path) -> None:
    save_native(tmp_path / "transcoder", 1)
    save_checkpoint(tmp_path / "run" / "checkpoints" / "last")
    for name in ("transcoder", "run"):
        with refuses(ConfigError, tmp_path / name), claim(tmp_path / name):
            raise AssertionError("the run starts")
        with claim(tmp_path / name, overwrite=True):
            pass
    save_checkpoint(tmp_path / "elsewhere")
    with refuses(ConfigError, tmp_path / "run"), claim(tmp_path / "run", resume=tmp_path / "elsewhere"):
        raise AssertionError("a run that continues another one starts")
    with claim(tmp_path / "run", resume="last"):
        pass
    both = claim(tmp_path / "run", resume="last", overwrite=True)
    with refuses(ConfigError, tmp_path / "run/checkpoints/last"), both:
        raise AssertionError("a run that deletes its own checkpoint starts")


def test_overwriting_removes_the_former_run_and_nothing_else(tmp_path: Path) -> None:
    run(tmp_path, max_steps=4, every=1, keep_all=True)
    files.list_names(tmp_path, ["evaluation.csv"])
    for name in ("evaluation.csv", "mine.csv", "checkpoints/last/mine.csv", "checkpoints/step-4/mine.csv"):
        files.write_text(tmp_path / name, "mine")
    result = run(tmp_path, overwrite=True, seed=1)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        ".open-clt.json",
        "checkpoints/last/mine.csv",
        "checkpoints/last/state.json",
        "checkpoints/last/tensors.safetensors",
        "checkpoints/step-4/mine.csv",
        "config.json",
        "metrics.csv",
        "mine.csv",
        "transcoder.safetensors",
    ]
    assert torch.equal(load_transcoder(tmp_path).W_enc, result.transcoder.W_enc)
    assert len(files.read_rows(tmp_path / "metrics.csv")) == 2


def test_overwriting_does_not_follow_a_link_out_of_the_directory(tmp_path: Path) -> None:
    elsewhere, output = tmp_path / "elsewhere", tmp_path / "run"
    elsewhere.mkdir()
    (elsewhere / "notes.txt").write_text("mine")
    output.mkdir()
    (output / "logs").symlink_to(elsewhere)
    files.list_names(output, ["logs/notes.txt"])
    with claim(output, overwrite=True) as directory:
        directory.begin()
    assert (elsewhere / "notes.txt").read_text() == "mine"


def test_a_former_run_is_kept_until_the_settings_of_the_new_one_are_checked(tmp_path: Path) -> None:
    run(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with refuses(ConfigError, "'nonsense'"):
        run(tmp_path, overwrite=True, own=OwnParts(trainer={"nonsense": 1}))
    assert sorted(tmp_path.rglob("*")) == before


def not_finite(step: Step) -> torch.Tensor:
    return step.errors[-1].sum() * float("nan")


def test_a_former_run_is_kept_if_the_new_one_fails_in_its_first_step(tmp_path: Path) -> None:
    run(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(NotFiniteError):
        run(tmp_path, overwrite=True, own=OwnParts(loss=not_finite))
    assert contents(tmp_path) == before


def test_a_directory_is_in_use_from_the_start_to_the_end_of_a_run(tmp_path: Path) -> None:
    with claim(tmp_path):
        for options in ({}, {"overwrite": True}):
            with refuses(ConfigError, tmp_path):
                run(tmp_path, **options)
    run(tmp_path)


def test_a_run_of_an_older_version_which_wrote_no_manifest_is_resumed(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / files.MANIFEST).unlink()
    assert run(tmp_path, resume="last").finished
    assert "metrics.csv" in files.listed_names(tmp_path)


def test_a_checkpoint_does_not_replace_files_of_other_programs(tmp_path: Path) -> None:
    files.write_text(tmp_path / "best" / "state.json", "{}")
    with refuses(ConfigError, tmp_path / "best" / "state.json"):
        save_checkpoint(tmp_path / "best")
    SafetensorsCheckpointIO().remove_checkpoint(tmp_path / "best")
    assert contents(tmp_path) == {"best/state.json": "{}"}


def test_a_logger_or_callback_that_would_write_the_files_of_the_run_is_refused(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    with refuses(ConfigError, tmp_path / "metrics.csv"):
        run(tmp_path, own=OwnParts(trainer={"logger": logger}))
    for place in (tmp_path, tmp_path / "checkpoints"):
        with refuses(ConfigError, place):
            run(tmp_path, own=OwnParts(trainer={"callbacks": [ModelCheckpoint(dirpath=place)]}))
    run(
        tmp_path,
        own=OwnParts(trainer={"logger": CSVLogger(tmp_path), "callbacks": [ModelCheckpoint(tmp_path / "own")]}),
    )


@pytest.mark.slow
def test_a_finished_run_is_resumed_with_a_profiler(tmp_path: Path) -> None:
    own = OwnParts(trainer={"profiler": "pytorch"})
    before = run(tmp_path, own=own)
    assert (tmp_path / "profile" / "summary.txt").is_file()
    after = run(tmp_path, own=own, resume="last")
    assert torch.equal(after.transcoder.W_enc, before.transcoder.W_enc)


class Killed(BaseException):
    """The process would be killed."""


def test_files_of_a_profiler_do_not_outlive_a_run_that_is_killed_while_it_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(profiler: SimpleProfiler) -> None:
        files.write_text(Path(str(profiler.dirpath)) / "fit-1763.json", "{}")
        raise Killed

    mine = files.write_text(tmp_path / "notes.txt", "mine")
    with monkeypatch.context() as patch:
        patch.setattr(SimpleProfiler, "summary", killed)
        with pytest.raises(Killed):
            run(tmp_path, own=OwnParts(trainer={"profiler": "simple"}))
    assert [path for path in tmp_path.rglob("*") if path.name.startswith("fit-")]
    run(tmp_path, overwrite=True)
    assert not [path for path in tmp_path.rglob("*") if "profile" in path.name]
    assert mine.read_text() == "mine"


@pytest.mark.slow
def test_a_profile_leaves_files_alone_that_the_user_added_to_its_folder(tmp_path: Path) -> None:
    run(tmp_path)
    files.list_names(tmp_path, ["profile"])
    mine = files.write_text(tmp_path / "profile" / "summary.txt", "mine")
    run(tmp_path, own=OwnParts(trainer={"profiler": "simple"}), overwrite=True)
    assert mine.read_text() == "mine"
    assert (tmp_path / "profile" / "summary-2.txt").is_file()
