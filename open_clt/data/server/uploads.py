"""Uploads: datasets that arrive file by file, and become visible when they are whole.

    DIRECTORY/
      .uploads/NAME/upload.json                     the manifest, as it was sent
      .uploads/NAME/shard-00000.safetensors         a file that is whole, and has the SHA-256 of the manifest
      .uploads/NAME/shard-00001.safetensors.part    the bytes of a file so far

An upload begins with the manifest, so the server knows the size and the SHA-256 of everything before it takes any data.
When all files are there, ``upload.json`` becomes ``manifest.json``, and the directory gets its final name in one step.
An upload that was stopped, at any moment and on either side, goes on with the number of bytes that each file has.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, final

from open_clt import files
from open_clt.data.dataset.manifest import MANIFEST, DatasetManifest, Shard, manifest_of
from open_clt.data.dataset.shards import open_shard
from open_clt.data.dataset.statistics import STATISTICS, read_statistics
from open_clt.data.server.datasets import Datasets, shown
from open_clt.data.server.refusal import Refusal
from open_clt.errors import CheckpointError, ResourceError
from open_clt.short_repr import short_repr

LARGEST_MANIFEST = 2**25
"""Largest number of bytes of a manifest that is sent."""
_FOLDER = ".uploads"
_MANIFEST = "upload.json"
_PART = ".part"
_HEADER = 2**20
"""Largest number of bytes of a shard's file beside its numbers."""
_DIGITS = 64
"""Largest number of bytes of a number in the file of statistics."""
NAME_RULE = "The name of a dataset has up to 100 letters, digits, '.', '_' and '-', such as gpt2-small."
"""Sentence that says which names of datasets are legal."""
_NAME = re.compile(r"[A-Za-z0-9](?!.*\.$)[A-Za-z0-9._-]{0,99}")
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.safetensors")


class FileState(NamedTuple):
    """How much of a file has arrived."""

    file: str
    received: int
    """Number of its bytes that have arrived."""
    done: bool
    """Whether it is whole, and has the right SHA-256."""


class UploadState(NamedTuple):
    """How much of a dataset has arrived."""

    name: str
    complete: bool
    """Whether the dataset is visible."""
    files: tuple[FileState, ...]

    __repr__ = short_repr


class Piece(NamedTuple):
    """The place of some bytes in a file: from ``begin`` up to ``end``, of ``size`` bytes in all.

    Without bytes, it says that all of them have arrived.
    """

    begin: int
    end: int
    size: int


class _Upload(NamedTuple):
    """An upload that has begun."""

    name: str
    directory: Path
    manifest: DatasetManifest

    def limit(self, file: str) -> tuple[str, int]:
        """The SHA-256 of a file and the largest number of its bytes; refuses a file that the manifest lacks."""
        harvested = self.manifest.harvested
        if file == STATISTICS:
            numbers = 8 * harvested.n_layers * harvested.d_model
            return self.manifest.statistics_sha256, min(files.LARGEST_JSON, numbers * _DIGITS + _HEADER)
        shard = self.shard(file)
        return shard.sha256, shard.tokens * harvested.bytes_per_token + _HEADER

    def shard(self, file: str) -> Shard:
        """The shard of this name; refuses a name that the manifest lacks."""
        for shard in self.manifest.shards:
            if shard.file == file:
                return shard
        raise Refusal(404, f"The manifest of the upload {self.name!r} does not list the file {shown(file)!r}.")

    def state(self, file: str) -> FileState:
        """How much of a file has arrived."""
        path, part = self.directory / file, self.part(file)
        if path.exists():
            return FileState(file, path.stat().st_size, done=True)
        return FileState(file, part.stat().st_size if part.exists() else 0, done=False)

    def part(self, file: str) -> Path:
        """The path of a file's bytes so far."""
        return self.directory / f"{file}{_PART}"

    __repr__ = short_repr


@final
class Uploads:
    """The uploads into a directory of datasets; one request at a time changes an upload."""

    def __init__(self, datasets: Datasets) -> None:
        self._datasets = datasets
        self._busy: set[str] = set()

    @contextmanager
    def claimed(self, name: str) -> Generator[None]:
        """Let no other request change an upload in the block; refuses an upload that another request changes."""
        if name in self._busy:
            raise Refusal(409, f"Another request changes the upload {shown(name)!r}; ask again.", {"Retry-After": "1"})
        self._busy.add(name)
        try:
            yield
        finally:
            self._busy.discard(name)

    def begin(self, name: str, content: bytes) -> UploadState:
        """Begin an upload with the bytes of a manifest, or go on with it; the dataset may be complete already.

        Refuses names and manifests that are not legal, a name that is taken, and a dataset that the disk cannot hold.
        """
        if self._datasets.is_one:
            raise Refusal(403, "This server serves one dataset; uploads need a server of a directory of datasets.")
        if not is_name(name):
            raise Refusal(400, NAME_RULE)
        manifest = _parsed(content)
        root = self._datasets.root
        if (root / name).is_symlink() or (root / name).exists():
            return self._complete(name, content)
        upload = _Upload(name, self._directory(name), manifest)
        begun = next((path for path in self._manifests(upload.directory) if path.exists()), None)
        if begun is None:
            needed = manifest.tokens * manifest.harvested.bytes_per_token + len(content)
            if needed > files.free_bytes(root):
                raise Refusal(507, f"The dataset has {needed:,} bytes, and the server's disk has fewer free ones.")
            try:
                write_upload(upload.directory, content)
            except ResourceError:
                self._remove_empty(upload.directory)
                raise
        elif files.read_bytes(begun) != content:
            raise Refusal(
                409,
                f"An upload of another dataset as {name!r} has begun; upload under another name, or DELETE it, as "
                "`open-clt upload --discard` does.",
            )
        return self._finished(upload)

    def state(self, name: str) -> UploadState:
        """How much of a dataset has arrived; refuses a name without an upload and without a dataset."""
        try:
            return self._state(self._begun(name))
        except Refusal as refused:
            try:
                dataset = self._datasets.get(name)
            except Refusal:
                raise refused from None
            return UploadState(dataset.name, complete=True, files=())

    def check(self, name: str, file: str, piece: Piece) -> Path:
        """The path to which a piece is appended; refuses a piece that is not the next one, or that is too large."""
        upload = self._begun(name)
        _, limit = upload.limit(file)
        if piece.size > limit:
            raise Refusal(413, f"{shown(file)} of {name!r} has at most {limit:,} bytes, as its manifest says.")
        state = upload.state(file)
        if state.done or state.received != piece.begin:
            raise Refusal(
                409, f"The server has {state.received} bytes of {shown(file)!r}; GET the upload's state to go on."
            )
        return upload.part(file)

    def received(self, name: str, file: str, piece: Piece) -> UploadState:
        """Take note of a piece; after the last piece, check the file, and after the last file, show the dataset.

        Refuses a file that does not have the SHA-256 or the tensors that the manifest states; then it is deleted.
        """
        upload = self._begun(name)
        if upload.state(file).received < piece.size:
            return UploadState(name, complete=False, files=(upload.state(file),))
        part = upload.part(file)
        digest, _ = upload.limit(file)
        if files.file_sha256(part) != digest:
            part.unlink()
            raise Refusal(422, f"{shown(file)} does not have the SHA-256 that the manifest states; send it again.")
        target = upload.directory / file
        files.move(part, target)
        try:
            _check_content(upload, file)
        except CheckpointError as error:
            target.unlink()
            raise Refusal(422, f"{shown(file)} is not what the manifest says: it lacks tensors or numbers.") from error
        state = self._finished(upload)
        return state._replace(files=tuple(one for one in state.files if one.file == file))

    def discard(self, name: str) -> None:
        """Delete an upload that is not complete; refuses a name without one."""
        upload = self._begun(name)
        for state in self._state(upload).files:  # the manifest is the last, so that what is left is still an upload
            upload.part(state.file).unlink(missing_ok=True)
            (upload.directory / state.file).unlink(missing_ok=True)
        for path in self._manifests(upload.directory):
            path.unlink(missing_ok=True)
        self._remove_empty(upload.directory)

    def _directory(self, name: str) -> Path:
        try:
            return self._datasets.inside(files.inside(self._datasets.root, f"{_FOLDER}/{name}"))
        except CheckpointError as error:
            raise Refusal(404, f"The server does not have an upload {shown(name)!r}.") from error

    def _remove_empty(self, directory: Path) -> None:
        """Delete a directory of uploads, and the directory of all uploads, unless something is in them."""
        with suppress(OSError):
            directory.rmdir()
            (self._datasets.root / _FOLDER).rmdir()

    def _manifests(self, directory: Path) -> tuple[Path, Path]:
        """The places of an upload's manifest: before, and after all files have arrived."""
        return directory / _MANIFEST, directory / MANIFEST

    def _begun(self, name: str) -> _Upload:
        missing = Refusal(404, f"The server does not have an upload {shown(name)!r}; PUT its manifest first.")
        if not is_name(name) or self._datasets.is_one:
            raise missing
        directory = self._directory(name)
        for path in self._manifests(directory):
            if path.exists():
                return _Upload(name, directory, read_upload(path))
        raise missing

    def _state(self, upload: _Upload) -> UploadState:
        names = (*(shard.file for shard in upload.manifest.shards), STATISTICS)
        return UploadState(upload.name, complete=False, files=tuple(upload.state(name) for name in names))

    def _complete(self, name: str, content: bytes) -> UploadState:
        """The state of a dataset that is there; refuses one with another manifest, or something else of this name."""
        try:
            known = self._datasets.get(name).manifest_sha256
        except Refusal:
            known = ""
        if known != hashlib.sha256(content).hexdigest():
            raise Refusal(409, f"The server has something else under the name {name!r}; upload under another name.")
        return UploadState(name, complete=True, files=())

    def _finished(self, upload: _Upload) -> UploadState:
        """The state of an upload, which becomes a dataset if all of its files have arrived."""
        state = self._state(upload)
        if not all(one.done for one in state.files):
            return state
        begun, final = self._manifests(upload.directory)
        if begun.exists():
            files.move(begun, final)
        try:
            files.move(upload.directory, self._datasets.root / upload.name)
        except OSError as error:
            raise Refusal(409, f"The server has got something else under the name {upload.name!r}.") from error
        self._remove_empty(upload.directory.parent)
        return state._replace(complete=True)


def is_name(name: str) -> bool:
    """Whether a dataset may be uploaded under a name."""
    return _NAME.fullmatch(name) is not None


def write_upload(directory: Path, manifest: bytes) -> Path:
    """Write the manifest of an upload, which makes a directory an upload, and return its path."""
    return files.write_bytes(directory / _MANIFEST, manifest)


def read_upload(path: Path) -> DatasetManifest:
    """Read the manifest of an upload; raises CheckpointError if it is damaged."""
    return manifest_of(files.read_json(path, finite=True), path)


def _parsed(content: bytes) -> DatasetManifest:
    """The manifest of a request; refuses what is not a legal one."""
    try:
        manifest = manifest_of(files.parse_json(content, finite=True), Path(MANIFEST))
    except (CheckpointError, ValueError) as error:
        raise Refusal(422, f"The body is not a manifest of a dataset ({str(error)[:200]}).") from error
    if not manifest.shards or not all(_SHARD.fullmatch(shard.file) for shard in manifest.shards):
        raise Refusal(422, "The manifest does not list shards with names such as shard-00000.safetensors.")
    return manifest


def _check_content(upload: _Upload, file: str) -> None:
    """Raise CheckpointError if a file does not hold what the manifest says."""
    harvested = upload.manifest.harvested
    if file != STATISTICS:
        open_shard(upload.directory, upload.shard(file), harvested)
    elif (
        read_statistics(upload.directory / file, harvested.n_layers, harvested.d_model).tokens != upload.manifest.tokens
    ):
        raise CheckpointError(f"{file} describes another number of tokens.")
