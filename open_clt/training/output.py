"""The output directory of a training run: what it may hold before the run, and which of its files the run replaces.

A directory holds none of the files that the run writes, or a run that is resumed, or a run that is to be overwritten.
Files that OpenCLT did not write are never replaced or deleted.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, cast, final

from lightning.pytorch.utilities import rank_zero_only

from open_clt import files
from open_clt.config import CheckpointsConfig
from open_clt.errors import CheckpointError, ConfigError
from open_clt.training.checkpoint_io import finish_checkpoints, holds_checkpoint, is_checkpoint, remove_checkpoint
from open_clt.transcoders.formats import native

METRICS = "metrics.csv"
CHECKPOINTS = "checkpoints"
PROFILE = "profile"
"""Folder for the files of Lightning's profilers."""
STAGED_PROFILE = f".part-{PROFILE}"
"""Temporary folder of these files; each process after the first adds its number to the name."""


@final
class OutputDirectory:
    """The output directory of a training run that holds its lock."""

    def __init__(self, path: Path, names: Sequence[str], *, overwrite: bool) -> None:
        """``names`` are the files that the run writes and that do not state their format.

        ``overwrite`` says whether the run replaces a former run.
        """
        self.path = path
        self._names = names
        self._overwrite = overwrite
        self._begun = False

    def begin(self) -> None:
        """Delete the former run if it is to be overwritten, and list the files of the new run in the manifest.

        A run calls this method when it is about to write its first file; later calls do nothing.
        """
        if self._begun or not _is_first_process():
            return
        if self._overwrite:
            _remove_run(self.path)
        finish_checkpoints(self.path / CHECKPOINTS)
        files.list_names(self.path, self._names)
        self._begun = True


def how_to_resume(output: Path | None) -> str:
    """A sentence on how a run that was stopped goes on."""
    last = None if output is None else output / CHECKPOINTS / "last"
    if last is None or not holds_checkpoint(last):
        return "No checkpoint is kept; run it again."
    return f"The checkpoint {last} is kept; resume from it (--ckpt-path last, or resume='last')."


@contextmanager
def output_directory(
    path: str | Path | None,
    *,
    resume: str | Path | None,
    overwrite: bool,
    checkpoints: CheckpointsConfig | None,
    also_writes: Sequence[str] = (),
) -> Generator[OutputDirectory | None]:
    """Check the output directory of a run, and hold its lock; ``path`` is None if the run writes no files.

    ``checkpoints`` is None if the run writes none, and ``also_writes`` are the names of files that the caller adds.
    Raises ConfigError if another run uses the directory, if it holds a run that is neither resumed nor overwritten, or
    if a file of another program has the name of a file that the run writes. Raises CheckpointError if the checkpoint to
    resume from does not exist.
    """
    if path is None:
        yield None
        return
    output = Path(path)
    files.check_directory(output / CHECKPOINTS)
    checkpoint = checkpoint_path(output, resume)
    is_resumed = checkpoint is not None and (output / CHECKPOINTS).resolve() in checkpoint.resolve().parents
    if is_resumed and overwrite:
        raise ConfigError(
            f"The checkpoint {checkpoint} belongs to the run that overwrite would delete; give one of the two settings."
        )
    names = (METRICS, *also_writes)
    # With several processes, the first one holds the lock for all of them.
    with files.locked(output) if _is_first_process() else nullcontext():
        _check_names(output, names, checkpoints, is_resumed=is_resumed)
        if not (is_resumed or overwrite):
            _refuse_former_run(output, names)
        yield OutputDirectory(output, names, overwrite=overwrite)


def _is_first_process() -> bool:
    """Whether this is the first of the processes that train together, which launchers say before a Trainer exists."""
    return cast(Any, rank_zero_only).rank == 0


def checkpoint_path(output: Path | None, resume: str | Path | None) -> Path | None:
    """The path of the checkpoint to resume from, if any; raises CheckpointError if it does not exist."""
    if resume is None:
        return None
    path = output / CHECKPOINTS / resume if output is not None and resume in ("last", "best") else Path(resume)
    files.check_readable(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a checkpoint; resume from last, best, or the path of a checkpoint.")
    return path


def _check_names(
    output: Path, names: Sequence[str], checkpoints: CheckpointsConfig | None, *, is_resumed: bool
) -> None:
    """Raise ConfigError if a file that OpenCLT did not write has the name of a file of the run."""
    native.check_place(output)
    if checkpoints is not None:
        folder = output / CHECKPOINTS
        kept = [folder / "last", *([folder / "best"] if checkpoints.best else [])]
        for path in (*kept, *(folder.glob("step-*") if checkpoints.keep_all else ())):
            if not is_checkpoint(path) and _holds_files(path):
                raise files.foreign(path)
    has_manifest = (output / files.MANIFEST).exists()
    if has_manifest or not is_resumed:  # older versions wrote no manifest, so a resumed run may lack one
        files.check_ours(output, names)


def _holds_files(path: Path) -> bool:
    """Whether a path is a file, or a directory with files that are not leftovers of a killed process."""
    if not path.is_dir():
        return os.path.lexists(path)
    return any(not inside.name.startswith(".part-") for inside in path.iterdir())


def _refuse_former_run(output: Path, names: Sequence[str]) -> None:
    """Raise ConfigError if a directory holds a former run, or a transcoder."""
    has_checkpoint = (output / CHECKPOINTS / "last").exists()
    if has_checkpoint or native.recognises(output) or any((output / name).exists() for name in names):
        raise ConfigError(
            f"{output} already holds a training run or a transcoder; resume the run from 'last' (--ckpt-path last), "
            "replace it (overwrite=True, or --overwrite), or give another output directory."
        )


def _remove_run(output: Path) -> None:
    """Delete the files of a former run: transcoder, checkpoints, and the files that the manifest lists."""
    native.remove_transcoder(output)
    for path in (output / CHECKPOINTS).glob("*"):
        if is_checkpoint(path):
            remove_checkpoint(path)
    for name in sorted(files.listed_names(output), reverse=True):  # the files of a folder, and then the folder
        path = output / name
        if name.startswith(STAGED_PROFILE):
            continue  # the new run has made this folder again
        if not path.parent.resolve().is_relative_to(output.resolve()):
            continue  # a link leads to another directory, whose files belong to somebody else
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # it holds other files, too
                path.rmdir()
        elif os.path.lexists(path):
            path.unlink()
