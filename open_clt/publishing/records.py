"""The feature records in a transcoder's directory, which are sent with the transcoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from open_clt import files
from open_clt.errors import CheckpointError
from open_clt.features.about import AboutRecords
from open_clt.features.feature_files import FOLDER, INDEX, FeatureFiles
from open_clt.short_repr import short_repr
from open_clt.transcoders.formats.fingerprint import fingerprint
from open_clt.transcoders.formats.load import load_transcoder


class PushedRecords(NamedTuple):
    """The files of feature records, and what they say of themselves."""

    paths: Mapping[str, Path]
    """Path of each file by its name in the repository."""
    n_records: int
    """Number of records."""
    about: AboutRecords | None
    """How the records were measured; None if another program wrote them."""

    __repr__ = short_repr


def records_to_push(directory: Path, *, trust_code: bool = False) -> PushedRecords | None:
    """The records in a transcoder's directory; None without any. Reads a few rows of the transcoder's weights.

    Raises CheckpointError if the records are damaged, or if they were measured with another transcoder.
    """
    files.check_readable(directory)
    if not (directory / FOLDER / INDEX).is_file():
        return None
    stored = FeatureFiles(directory)
    about = stored.about()
    transcoder = load_transcoder(directory, memory_limit=1, trust_code=trust_code)
    if about is not None and about.transcoder_hash != fingerprint(transcoder):
        raise CheckpointError(
            f"{stored.folder} holds the records of another transcoder than the one in the directory; measure them "
            "again with `open-clt features`, or move the folder."
        )
    return PushedRecords({f"{FOLDER}/{path.name}": path for path in stored.paths()}, len(stored.features()), about)
