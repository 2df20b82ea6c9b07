"""Where the feature records of a transcoder are: in its own directory, or in the cache of OpenCLT.

The cache is the directory that the environment variable ``OPEN_CLT_CACHE`` names (by default ``~/.cache/open-clt``).
"""

from __future__ import annotations

import os
from pathlib import Path

from open_clt import files
from open_clt.features.feature_files import FOLDER, INDEX, FeatureFiles
from open_clt.features.fingerprint import fingerprint
from open_clt.hub.repository import cache_directory
from open_clt.transcoders.transcoder import Transcoder


def place_for_records(source: str | Path | None, transcoder: Transcoder) -> Path:
    """The directory in whose folder ``features`` the records of a transcoder are written.

    It is the transcoder's own directory, if ``source`` is one that can be written; otherwise a directory of the cache.
    ``source`` is None for a transcoder that ships with the package.
    """
    if source is not None and Path(source).is_dir() and os.access(source, os.W_OK):
        return Path(source)
    return _in_cache(transcoder)


def find_records(source: str | Path | None, transcoder: Transcoder) -> FeatureFiles | None:
    """The records of a transcoder, from its own directory or from the cache; None if there are none.

    Raises CheckpointError if they are damaged, or if the user may not read a directory.
    """
    own = [] if source is None else [Path(source)]
    for directory in (*own, _in_cache(transcoder)):
        files.check_readable(directory)
        if (directory / FOLDER / INDEX).is_file():
            return FeatureFiles(directory)
    return None


def _in_cache(transcoder: Transcoder) -> Path:
    return cache_directory() / "features" / fingerprint(transcoder)
