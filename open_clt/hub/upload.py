"""Uploads: a repository on the Hugging Face hub that files are written to, in one commit.

The repository and the branch are created when they do not exist. The token is the one that ``huggingface_hub`` finds:
the environment variable ``HF_TOKEN``, or the token that ``hf auth login`` keeps.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

from open_clt.errors import ConfigError, HubRefusedError, HubUnreachableError
from open_clt.hub.reachable import answers
from open_clt.hub.reasons import NOT_AN_ANSWER_OF_A_HUB, reason
from open_clt.hub.repository import HubName
from open_clt.progress import bars_of_hub
from open_clt.short_repr import short_repr

_TOO_MANY_REQUESTS = 429
_LOGIN = "log in with `hf auth login`, or set the environment variable HF_TOKEN"


def repository_name(repo: str, revision: str = "main") -> HubName:
    """The name of a whole repository, ``org/name``, at a branch; raises ConfigError if a text is not legal."""
    name = HubName.parse(repo)
    if name is None or name.folder or "@" in repo:
        raise ConfigError(f"{repo!r} is not the name of a repository on the hub; write org/name, such as me/my-clt.")
    at_revision = HubName.parse(f"{repo}@{revision}")
    if at_revision is None:
        raise ConfigError(f"{revision!r} is not the name of a branch; write a name such as main or v1.")
    return at_revision


@final
@dataclass(frozen=True)
class Destination:
    """A branch of a repository that exists, and to which files may be written."""

    name: HubName
    existing: frozenset[str]
    """Names of the files that the branch holds."""

    @staticmethod
    def at(name: HubName, *, private: bool) -> Destination:
        """Create the repository and the branch unless they exist, and list the files.

        Raises HubUnreachableError if the hub does not answer, and HubRefusedError if a token is missing, if the token
        does not permit it, or if ``private`` is asked for and the repository is public.
        """
        from huggingface_hub import HfApi

        _check_reachable(name)
        api = HfApi()
        with _upload_errors(name):
            api.create_repo(name.repo, private=True if private else None, exist_ok=True)
            if name.revision != "main":
                api.create_branch(name.repo, branch=name.revision, exist_ok=True)
            info = api.model_info(name.repo, revision=name.revision)
        if private and not info.private:
            raise HubRefusedError(
                f"{name.repo} exists and is public; make it private on the hub, or push to another repository."
            )
        return Destination(name, frozenset(file.rfilename for file in info.siblings or []))

    def downloaded(self, name: str) -> Path | None:
        """The path of a file of the branch, which is downloaded into the cache; None if the branch lacks it."""
        from huggingface_hub import hf_hub_download

        if name not in self.existing:
            return None
        with _upload_errors(self.name):
            return Path(hf_hub_download(self.name.repo, name, revision=self.name.revision))

    def commit(self, added: Mapping[str, Path | bytes], *, deleted: Iterable[str] = (), message: str) -> str:
        """Write files, and delete others, in one commit; returns the address of the commit.

        ``added`` gives the path or the content of each file by its name in the repository. Names in ``deleted`` that
        the branch does not hold are ignored. Raises the errors of ``at``.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        operations = [
            *(CommitOperationDelete(name) for name in sorted(set(deleted) & self.existing)),
            *(CommitOperationAdd(name, content) for name, content in added.items()),
        ]
        with _upload_errors(self.name), bars_of_hub():
            commit = HfApi().create_commit(
                self.name.repo, operations, commit_message=message, revision=self.name.revision
            )
        return str(commit.commit_url)

    __repr__ = short_repr


def _check_reachable(name: HubName) -> None:
    """Raise an error before any work if the hub cannot be asked, or if a token is missing."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise HubUnreachableError(
            f"{str(name)!r} cannot be pushed because the environment variable HF_HUB_OFFLINE is set; unset it."
        )
    if get_token() is None:
        raise HubRefusedError(f"{str(name)!r} cannot be pushed without a token of the hub; {_LOGIN}.")
    if not answers(f"{constants.ENDPOINT}/api/models/{name.repo}"):
        raise HubUnreachableError(
            f"{str(name)!r} cannot be pushed because {constants.ENDPOINT} does not answer; try again."
        )


@contextmanager
def _upload_errors(name: HubName) -> Generator[None]:
    """Turn the errors of huggingface_hub and of its HTTP library into one sentence."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise ConfigError(f"{str(name)!r} is not a name that the hub accepts; write org/name.") from error
    except (OSError, RuntimeError, ValueError, *NOT_AN_ANSWER_OF_A_HUB) as error:
        raise _sentence(name, error) from error
    except Exception as error:  # the HTTP library has a tree of errors of its own
        if "http" not in type(error).__module__:
            raise
        raise _sentence(name, error) from error


def _sentence(name: HubName, error: Exception) -> HubRefusedError | HubUnreachableError:
    """The error of OpenCLT for an error of the libraries; an upload of several files hides the cause in another."""
    cause = error.__cause__ if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception) else error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status == 401:
        return HubRefusedError(f"The hub does not accept the token for {str(name)!r} (status 401); {_LOGIN}.")
    if status in (403, 404):
        return HubRefusedError(
            f"The token does not permit writing to {str(name)!r} (status {status}); use a token with write access, "
            "and an organisation that you belong to."
        )
    refused = isinstance(cause, ValueError) if status is None else status < 500 and status != _TOO_MANY_REQUESTS
    if refused and not isinstance(cause, NOT_AN_ANSWER_OF_A_HUB):
        return HubRefusedError(f"The hub refuses what is pushed to {str(name)!r}: {reason(cause)}")
    return HubUnreachableError(f"{str(name)!r} cannot be pushed ({reason(cause)}); try again.")
