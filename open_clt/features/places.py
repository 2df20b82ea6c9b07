"""Where the feature records of a transcoder are: in its own directory, in the cache of OpenCLT, or in the package.

The cache is the directory that the environment variable ``OPEN_CLT_CACHE`` names (by default ``~/.cache/open-clt``).
The embedded transcoder ships with its records. They are read if the cache does not hold newer ones, and are never
replaced.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from open_clt import files
from open_clt.features.feature_files import FOLDER, INDEX, FeatureFiles
from open_clt.hub.repository import cache_directory
from open_clt.transcoders.formats.fingerprint import fingerprint
from open_clt.transcoders.transcoder import Transcoder

logger = logging.getLogger(__name__)

_SHIPPED = Path(__file__).parent.parent / "embedded" / "transcoder"


def place_for_records(source: str | Path | None, transcoder: Transcoder) -> Path:
    """The directory in whose folder ``features`` the records of a transcoder are written.

    It is the transcoder's own directory, if ``source`` is one that can be written; otherwise a directory of the cache.
    The records of the transcoder that ships with the package, for which ``source`` may be None, go to the cache, too.
    """
    own = _own_directory(source)
    return own if own is not None and own.is_dir() and os.access(own, os.W_OK) else _in_cache(fingerprint(transcoder))


def find_records(source: str | Path | None, transcoder: Transcoder) -> FeatureFiles | None:
    """The records of a transcoder: from its own directory, else from the cache, else from the package; None if none.

    Records in a place are skipped, with a warning, if they say that they were measured with another transcoder. Raises
    CheckpointError if they are damaged, or if the user may not read a directory.
    """
    mark = fingerprint(transcoder)
    for directory in directories_of(source, mark):
        files.check_readable(directory)
        if not (directory / FOLDER / INDEX).is_file():
            continue
        stored = FeatureFiles(directory)
        about = stored.about()
        if about is None or about.transcoder_hash == mark:  # records of other programs do not say their transcoder
            return stored
        if directory != _SHIPPED:
            logger.warning(
                "%s holds the records of another transcoder, so they are not used; run `open-clt features` again.",
                stored.folder,
            )
    return None


def directories_of(source: str | Path | None, mark: str) -> list[Path]:
    """The directories that may hold what was measured of a transcoder with the fingerprint ``mark``, the best first."""
    return [directory for directory in (_own_directory(source), _in_cache(mark), _SHIPPED) if directory is not None]


def _own_directory(source: str | Path | None) -> Path | None:
    """The directory of a transcoder; None for the one that ships, whose directory belongs to the package."""
    return None if source is None or Path(source).resolve() == _SHIPPED.resolve() else Path(source)


def _in_cache(mark: str) -> Path:
    return cache_directory() / "features" / mark
