"""Repositories: the files of a model repository of the Hugging Face hub, or of one folder in it.

Small files are downloaded into the cache of huggingface_hub. Of files of weights, ``part`` fetches what is needed
(``partial_file.py``); these parts are kept in a cache of OpenCLT, whose directory the environment variable
``OPEN_CLT_CACHE`` names (by default ``~/.cache/open-clt``). A repository that was used before needs no network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast, final

from open_clt import files
from open_clt.errors import CheckpointError, HubUnreachableError
from open_clt.files.places import is_inside
from open_clt.hub.partial_file import PartialFile
from open_clt.hub.reachable import answers
from open_clt.hub.reasons import NOT_AN_ANSWER_OF_A_HUB, reason
from open_clt.short_repr import short_repr

_SOURCE = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:/(?P<folder>[^@]+?))?/?(?:@(?P<revision>[\w./-]+))?")
_ADDRESS = re.compile(
    r"hf://(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)/(?P<file>[^?#]+)(?:\?revision=(?P<revision>[\w./-]+))?"
)
_FORMAT = files.FileFormat("open-clt-hub-index", newest=1)
_HELP = "check the name, or give a local directory"


@final
@dataclass(frozen=True)
class HubName:
    """The name of a folder on the hub: ``org/name[/folder][@revision]``."""

    repo: str
    """Organisation and name of the repository."""
    folder: str = ""
    """Folder in the repository, or an empty text."""
    revision: str = "main"
    """Branch, tag or commit."""

    @staticmethod
    def parse(text: str) -> HubName | None:
        """Read a name; None if the text is not one."""
        found = _SOURCE.fullmatch(text)
        if found is None or not all(is_inside(found[part]) for part in ("folder", "revision") if found[part]):
            return None
        return HubName(found["repo"], found["folder"] or "", found["revision"] or "main")

    def __str__(self) -> str:
        folder = f"/{self.folder}" if self.folder else ""
        return f"{self.repo}{folder}" + ("" if self.revision == "main" else f"@{self.revision}")


@final
@dataclass(frozen=True)
class HubFile:
    """The address of a file on the hub: ``hf://org/name/path[?revision=main]``."""

    repository: HubName
    name: str
    """Path of the file in the repository."""

    @staticmethod
    def parse(text: str) -> HubFile | None:
        """Read an address; None if the text is not one."""
        found = _ADDRESS.fullmatch(text)
        if found is None or not all(is_inside(found[part]) for part in ("file", "revision") if found[part]):
            return None
        return HubFile(HubName(found["repo"], revision=found["revision"] or "main"), found["file"])


@final
@dataclass(frozen=True)
class Repository:
    """The files of one commit of a repository on the hub, in one folder; names are relative to the folder."""

    name: HubName
    commit: str
    """Commit that the revision stood for when the files were listed."""
    sizes: Mapping[str, int]
    """Number of bytes of each file."""

    @staticmethod
    def find(name: HubName) -> Repository:
        """List the files of a name on the hub, or in the cache if the hub cannot be reached.

        Raises HubUnreachableError if it is in neither, and CheckpointError if the hub does not have it.
        """
        from huggingface_hub import constants

        index = cache_directory() / name.repo.replace("/", "--") / f"{name.revision.replace('/', '--')}.json"
        if constants.HF_HUB_OFFLINE:
            reason = "the environment variable HF_HUB_OFFLINE forbids asking the hub"
        elif not answers(f"{constants.ENDPOINT}/api/models/{name.repo}"):
            reason = f"{constants.ENDPOINT} does not answer"
        else:
            commit, sizes = _ask(name)
            write_index(index, commit, sizes)
            return _in_folder(name, commit, sizes)
        if not index.is_file():
            raise HubUnreachableError(f"{str(name)!r} is not in the cache, and {reason}; give a local directory.")
        return _in_folder(name, *read_index(index))

    def names(self, pattern: str) -> list[str]:
        """The names that match a pattern, sorted."""
        return files.matching(self.sizes, pattern)

    def path(self, name: str) -> Path:
        """The path of a file, which is downloaded unless it is in the cache."""
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        full_name = self._full_name(name)
        cached = try_to_load_from_cache(self.name.repo, full_name, revision=self.commit)
        if isinstance(cached, str):
            return Path(cached)
        with _hub_errors(self.name):
            return Path(hf_hub_download(self.name.repo, full_name, revision=self.commit))

    def is_downloaded(self, name: str) -> bool:
        """Whether a file is in the cache of huggingface_hub."""
        from huggingface_hub import try_to_load_from_cache

        return isinstance(try_to_load_from_cache(self.name.repo, self._full_name(name), revision=self.commit), str)

    def part(self, name: str) -> PartialFile:
        """A file of which only the needed parts are fetched."""
        folder = cache_directory() / self.name.repo.replace("/", "--") / self.commit
        full_name = self._full_name(name)
        return PartialFile(folder / full_name, self.sizes[name], partial(self._fetch, full_name))

    def _fetch(self, full_name: str, begin: int, end: int) -> bytes:
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        headers = {**build_hf_headers(), "Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        with _hub_errors(self.name):
            address = hf_hub_url(self.name.repo, full_name, revision=self.commit)
            response = cast(Any, get_session()).get(address, headers=headers, follow_redirects=True)
            response.raise_for_status()
        if response.status_code != 206 or len(response.content) != end - begin:
            raise HubUnreachableError(
                f"{address} answers with {len(response.content)} bytes in place of {end - begin}; use a server that "
                "answers requests for parts of files (HTTP Range), or download the files."
            )
        return response.content

    def _full_name(self, name: str) -> str:
        return f"{self.name.folder}/{name}" if self.name.folder else name

    __repr__ = short_repr


def cache_directory() -> Path:
    """The directory of everything that OpenCLT keeps to use it again."""
    return Path(os.environ.get("OPEN_CLT_CACHE") or Path.home() / ".cache" / "open-clt")


def _ask(name: HubName) -> tuple[str, dict[str, int]]:
    """The commit and the sizes of all files of a repository on the hub."""
    from huggingface_hub import HfApi

    with _hub_errors(name):
        info = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True)
    sizes = {file.rfilename: file.size for file in info.siblings or [] if file.size is not None}
    return str(info.sha), {path: size for path, size in sizes.items() if is_inside(path)}


def write_index(index: Path, commit: str, sizes: Mapping[str, int]) -> None:
    """Keep the commit and the sizes of the files of a repository, so that it can be used without a network."""
    files.make_directory(index.parent)
    files.write_json(index, {**_FORMAT.header(), "commit": commit, "sizes": dict(sizes)})


def read_index(index: Path) -> tuple[str, dict[str, int]]:
    """The commit and the sizes of the files of a repository that was used before, from a file of the cache."""
    match _FORMAT.read(index):
        case {"commit": str(commit), "sizes": dict(sizes)}:
            listed = cast(dict[Any, Any], sizes)
        case _:
            commit, listed = "", {}
    if not is_inside(commit) or not all(is_inside(path) and type(size) is int for path, size in listed.items()):
        raise CheckpointError(f"{index} does not list the files of a repository; delete it.")
    return commit, cast(dict[str, int], listed)


def _in_folder(name: HubName, commit: str, sizes: Mapping[str, int]) -> Repository:
    prefix = f"{name.folder}/" if name.folder else ""
    inside = {path.removeprefix(prefix): size for path, size in sizes.items() if path.startswith(prefix)}
    if not inside:
        lacks = f"has no folder {name.folder!r}" if name.folder else "holds no files"
        raise CheckpointError(f"{name.repo} on the hub {lacks}; {_HELP}.")
    return Repository(name, commit, inside)


@contextmanager
def _hub_errors(name: HubName) -> Generator[None]:
    """Turn the errors of huggingface_hub and of its HTTP library into one sentence."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise CheckpointError(
            f"The hub has no {str(name)!r}, or does not show it without a token (hf auth login); {_HELP}."
        ) from error
    except errors.HFValidationError as error:
        raise CheckpointError(f"{str(name)!r} is not a name of the hub; {_HELP}.") from error
    except Exception as error:
        # OSError is of the system, of huggingface_hub, and of its HTTP library in older releases.
        expected = isinstance(error, (OSError, *NOT_AN_ANSWER_OF_A_HUB)) or "http" in type(error).__module__
        if not expected:
            raise
        raise HubUnreachableError(f"{str(name)!r} cannot be read from the hub ({reason(error)}); try again.") from error
