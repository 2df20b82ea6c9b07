"""Feature records are pushed with the transcoder that they describe, and with no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from open_clt.config import CrossLayerConfig, ReLUConfig
from open_clt.errors import CheckpointError
from open_clt.features.about import AboutRecords
from open_clt.features.feature_files import FeatureFiles, write_feature_files
from open_clt.publishing.push import publication, push_transcoder
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.formats.fingerprint import fingerprint
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from tests.features.rich_record import rich_record
from tests.hub.stand_in import Hub, serving
from tests.random_transcoders import random_architecture
from tests.refusals import refuses

REPO = "org/name"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that lets ``REPO`` be created, and a token."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving({}, monkeypatch, tmp_path / "cache") as served:
        served.creates[REPO] = tmp_path / "remote"
        yield served


def saved(folder: Path) -> Path:
    config = CrossLayerConfig(n_layers=2, d_model=4, n_features=6, nonlinearity=ReLUConfig())
    return save_transcoder(random_architecture(config), folder)


def write_records(folder: Path, transcoder_hash: str) -> None:
    about = AboutRecords(
        model="gpt2",
        transcoder="local",
        transcoder_hash=transcoder_hash,
        text="/home/me/wiki.txt",
        tokens=5000,
        contexts=50,
        context_length=101,
        from_start=False,
        bos="<s>",
        encodes_first_position=False,
        window=4,
    )
    records = [rich_record(0, 1), rich_record(1, 3)]
    write_feature_files(records, folder, n_layers=2, n_features=6, about=about, name="local")


def test_feature_records_are_sent_with_the_transcoder(hub: Hub, tmp_path: Path) -> None:
    folder = saved(tmp_path / "local")
    write_records(folder, fingerprint(load_transcoder(folder)))
    (folder / "features" / "notes.txt").write_text("private")
    files = {
        f"features/{name}" for name in ("layer_0.bin", "layer_1.bin", "about.json", "table.json.gz", "index.json.gz")
    }
    pushed = publication(folder, REPO)
    assert set(pushed.sizes) == {"README.md", "config.json", "transcoder.safetensors", *files}
    assert "2 features" in pushed.card
    assert "5,000 tokens (wiki.txt)" in pushed.card
    push_transcoder(folder, REPO)
    remote = FeatureFiles(tmp_path / "remote")
    assert remote.record(Feature(1, 3)) is not None
    about = remote.about()
    assert about is not None
    assert about.text == "wiki.txt"
    assert not (tmp_path / "remote/features/notes.txt").exists()
    # What was pushed belongs to the transcoder that was pushed.
    assert about.transcoder_hash == fingerprint(load_transcoder(REPO))


def test_feature_records_of_another_transcoder_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "local")
    write_records(folder, "0123456789abcdef")
    with refuses(CheckpointError, str(folder / "features")):
        publication(folder, REPO)
