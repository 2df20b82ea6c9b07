"""Places of records: the transcoder's own directory, then the cache, then the package, which is never written to."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from open_clt.embedded import TRANSCODER_DIRECTORY
from open_clt.features.about import AboutRecords
from open_clt.features.feature_files import write_feature_files
from open_clt.features.places import find_records, place_for_records
from open_clt.features.records import FeatureRecord
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.formats.fingerprint import fingerprint
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.transcoder import Transcoder

SHIPPED = TRANSCODER_DIRECTORY / "features"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPEN_CLT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def embedded() -> Transcoder:
    return load_transcoder(TRANSCODER_DIRECTORY)


def write(directory: Path, transcoder_hash: str | None) -> Path:
    """Write the record of one feature, which says of which transcoder it is unless the hash is None."""
    about = None
    if transcoder_hash is not None:
        about = AboutRecords(
            model="embedded",
            transcoder="embedded",
            transcoder_hash=transcoder_hash,
            text="a text",
            tokens=10,
            contexts=1,
            context_length=11,
            from_start=True,
            bos="<s>",
            encodes_first_position=False,
            window=4,
        )
    record = FeatureRecord(Feature(2, 3), 0.5, 3.0, (), (), ())
    return write_feature_files([record], directory, n_layers=5, n_features=768, about=about)


def folder_of(source: str | Path | None, transcoder: Transcoder) -> Path | None:
    records = find_records(source, transcoder)
    return None if records is None else records.folder


@pytest.mark.parametrize("source", [None, TRANSCODER_DIRECTORY, "org/name"])
def test_shipped_records_are_found_and_the_users_own_win(
    source: str | Path | None, cache: Path, embedded: Transcoder
) -> None:
    assert folder_of(source, embedded) == SHIPPED
    place = place_for_records(source, embedded)
    assert cache in place.parents
    written = write(place, fingerprint(embedded))
    assert folder_of(source, embedded) == written


def test_records_in_the_directory_of_a_copy_win(cache: Path, tmp_path: Path, embedded: Transcoder) -> None:
    assert cache.parent == tmp_path
    assert folder_of(tmp_path / "copy", embedded) == SHIPPED
    written = write(tmp_path / "copy", fingerprint(embedded))
    assert folder_of(tmp_path / "copy", embedded) == written


def test_records_of_another_transcoder_are_skipped_with_a_warning(
    cache: Path, tmp_path: Path, embedded: Transcoder, caplog: pytest.LogCaptureFixture
) -> None:
    assert cache.parent == tmp_path
    stale = write(tmp_path / "mine", "0123456789abcdef")
    with caplog.at_level(logging.WARNING):
        assert folder_of(tmp_path / "mine", embedded) == SHIPPED
    assert str(stale) in caplog.text
    # Another program's files do not say whose they are.
    assert folder_of(tmp_path / "theirs", embedded) == SHIPPED
    theirs = write(tmp_path / "theirs", None)
    assert folder_of(tmp_path / "theirs", embedded) == theirs
