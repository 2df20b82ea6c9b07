"""Pushing: a saved transcoder, its report, feature records and model card go to the Hugging Face hub in one commit.

Only files that belong to the transcoder are sent: those that its reader opens, those of an evaluation report, and those
of the feature records in the folder ``features``.
A ``README.md`` that a user wrote, in the directory or in the repository, is kept as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

from open_clt import files
from open_clt.config import TranscoderConfig
from open_clt.config.arguments import checked_arguments
from open_clt.config.json import to_dict
from open_clt.errors import CheckpointError, ConfigError, HubRefusedError
from open_clt.evaluation.report import Report
from open_clt.evaluation.report_file import REPORT_FILES, is_report, load_report
from open_clt.hub.repository import HubName
from open_clt.hub.upload import Destination, repository_name
from open_clt.publishing.card import CARD, CardContent, is_our_card, make_card
from open_clt.publishing.local_paths import changed_text, without_local_paths
from open_clt.publishing.records import PushedRecords, records_to_push
from open_clt.short_repr import short_repr
from open_clt.transcoders.formats.info import describe
from open_clt.transcoders.formats.native import read_record
from open_clt.transcoders.formats.own_files import OwnFiles, own_files
from open_clt.transcoders.make import OwnCode, own_architecture
from open_clt.transcoders.transcoder import Transcoder

_WEIGHTS = (".safetensors", ".npz")
_SHAPE = ("kind", "n_layers", "layers", "n_features", "d_model", "nonlinearity")
"""Settings that a report and the transcoder that it describes have in common."""


@final
@dataclass(frozen=True, kw_only=True)
class Publication:
    """What is pushed: the files and the model card."""

    name: HubName
    """Repository and branch."""
    paths: Mapping[str, Path]
    """Path of each file by its name in the repository, without the card."""
    changed: Mapping[str, str]
    """Content of the files in ``paths`` that name directories of this machine, without these directories."""
    card: str
    """Model card, the content of README.md."""
    card_is_ours: bool
    """Whether OpenCLT made the card; False if the user wrote it."""

    @property
    def sizes(self) -> dict[str, int]:
        """Number of bytes of each file, with the card, by its name in the repository."""
        texts = {**self.changed, CARD: self.card}
        sizes = {name: path.stat().st_size for name, path in self.paths.items()}
        return dict(sorted({**sizes, **{name: len(text.encode()) for name, text in texts.items()}}.items()))

    __repr__ = short_repr


class Sent(NamedTuple):
    """What became of a publication."""

    address: str
    """Address of the commit."""
    card_is_kept: bool
    """Whether the repository has a card that a user wrote there, which is kept in place of ours."""


@checked_arguments
def publication(
    directory: str | Path,
    repo: str,
    *,
    revision: str = "main",
    license: str | None = None,
    trust_code: bool = False,
) -> Publication:
    """What ``push_transcoder`` would send; nothing is sent, and no network is needed. It has the same errors."""
    name = repository_name(repo, revision)
    directory = files.existing_path(str(directory)) or Path(directory)
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ConfigError(f"{license!r} is not the identifier of a license; write one such as mit or apache-2.0.")
    own = own_files(directory, code=OwnCode(trust_code=trust_code))
    paths, report = dict(own.paths), _report(directory, own)
    if report is not None:
        present = [each for each in REPORT_FILES if (directory / each).exists()]
        paths |= {each: directory / each for each in present}
    records = records_to_push(directory, trust_code=trust_code)
    if records is not None:
        paths |= records.paths
    for path in (*paths.values(), directory / CARD):
        _check_is_inside(path, directory)
    written = files.read_text(directory / CARD, "Markdown") if (directory / CARD).exists() else None
    is_ours = written is None or is_our_card(written)
    content = _content(name, own, directory, report=report, records=records, license=license)
    card = without_local_paths(make_card(content)) if is_ours else written
    assert card is not None
    changed = {each: text for each, path in paths.items() if (text := changed_text(path)) is not None}
    return Publication(name=name, paths=paths, changed=changed, card=card, card_is_ours=is_ours)


@checked_arguments
def push_transcoder(
    directory: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str = "main",
    license: str | None = None,
    trust_code: bool = False,
) -> str:
    """Push the transcoder of a directory to the hub with a model card; returns the address of the commit.

    ``repo`` is ``org/name``; the repository and the branch ``revision`` are created unless they exist. ``license`` is
    an identifier such as ``mit``. A transcoder of a user's own class needs ``trust_code``, which imports the class.
    Where a config or a report names a path of this machine, its last part is sent in its place; no file is changed.

    Raises CheckpointError if the directory holds no whole transcoder, or a damaged report or feature records, or those
    of another transcoder, ConfigError for names that
    the hub does not have, HubUnreachableError if the hub does not answer, and HubRefusedError if there is no token, if
    the token does not permit it, or if the branch holds weights of another transcoder.
    """
    pushed = publication(directory, repo, revision=revision, license=license, trust_code=trust_code)
    return send(pushed, private=private).address


def send(pushed: Publication, *, private: bool = False) -> Sent:
    """Send what ``publication`` lists; has the errors of ``push_transcoder``."""
    destination = Destination.at(pushed.name, private=private)
    if strangers := _strangers(destination.existing, pushed.paths):
        raise HubRefusedError(
            f"{pushed.name} holds {strangers[0]}, which does not belong to this transcoder, so that readers would mix "
            "them; delete it on the hub, or push to another repository or revision."
        )
    on_hub = destination.downloaded(CARD) if pushed.card_is_ours else None
    keeps = on_hub is not None and not is_our_card(files.read_text(on_hub, "Markdown"))
    card = {} if keeps else {CARD: pushed.card.encode()}
    changed = {name: text.encode() for name, text in pushed.changed.items()}
    obsolete = [name for name in REPORT_FILES if name not in pushed.paths]
    address = destination.commit(
        {**pushed.paths, **changed, **card}, deleted=obsolete, message="Upload a transcoder with open-clt push"
    )
    return Sent(address, card_is_kept=keeps)


def _strangers(existing: Iterable[str], pushed: Iterable[str]) -> list[str]:
    """The files of weights on the hub that a reader could take for those that are pushed: as many folders deep."""
    weights = {name for name in pushed if name.endswith(_WEIGHTS)}
    depths = {name.count("/") for name in weights}
    return sorted(n for n in {*existing} - weights if n.endswith(_WEIGHTS) and n.count("/") in depths)


def _content(
    name: HubName,
    own: OwnFiles,
    directory: Path,
    *,
    report: Report | None,
    records: PushedRecords | None,
    license: str | None,
) -> CardContent:
    content = own.opened.content
    return CardContent(
        name=name,
        info=describe(own.opened),
        own_class=isinstance(content, Transcoder) and own_architecture(content) is not None,
        report=report,
        features=records,
        record=read_record(directory) if own.opened.layout.key == "native" else {},
        license=license,
    )


def _check_is_inside(path: Path, directory: Path) -> None:
    """Refuse a special file, and a link to a file elsewhere, which a stranger's directory may use to have it sent."""
    if not path.exists():
        return
    files.check_regular(path)
    folder = directory if path.is_relative_to(directory) else path.parent  # own_files may name one in the folder above
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{path} is a link to a file outside of {folder}; put the file itself there.")


def _report(directory: Path, own: OwnFiles) -> Report | None:
    """The report in a directory; raises CheckpointError if it describes another transcoder than the one beside it."""
    if not is_report(directory):
        return None
    report, config = load_report(directory), own.opened.content.config
    if differing := _differing(report, config):
        raise CheckpointError(
            f"{directory / REPORT_FILES[0]} describes a transcoder with another {differing[0]} than the one in the "
            "directory; write it again with `open-clt evaluate`, or move it."
        )
    return report


def _differing(report: Report, config: TranscoderConfig) -> list[str]:
    settings = to_dict(config)
    return [name for name in _SHAPE if name in report.settings and report.settings[name] != settings.get(name)]
