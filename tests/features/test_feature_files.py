"""Feature examples for the viewer: what is read is what was written, byte for byte where the format says so."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from pathlib import Path

import pytest
import torch

from open_clt.errors import CheckpointError, ConfigError
from open_clt.features.feature_files import (
    FeatureFiles,
    read_feature_json,
    write_feature_files,
    write_feature_json,
)
from open_clt.features.records import FeatureExample, FeatureRecord, TokenEffect
from open_clt.graphs.formats.circuit_tracer_schema import cantor_pair, cantor_unpair
from open_clt.transcoders.feature import Feature


def record(layer: int, feature: int) -> FeatureRecord:
    generator = torch.Generator().manual_seed(feature)
    activations = torch.rand(4, generator=generator)
    example = FeatureExample((" na", "ïve", "\n", "猫"), activations, int(activations.argmax()))
    effects = TokenEffect(" cat", 1 / 3), TokenEffect('"', 0.25)
    return FeatureRecord(
        Feature(layer, feature), 0.01, float(activations.max()), (example, example), effects, effects[:1]
    )


RECORDS = [record(0, 3), record(2, 0), record(2, 4)]


def assert_same(found: FeatureRecord | None, expected: FeatureRecord) -> None:
    assert found is not None
    for name in ("feature", "density", "max_activation", "top_tokens", "bottom_tokens"):
        assert getattr(found, name) == getattr(expected, name)
    assert len(found.examples) == len(expected.examples)
    for ours, theirs in zip(found.examples, expected.examples, strict=True):
        assert (ours.tokens, ours.peak) == (theirs.tokens, theirs.peak)
        assert torch.equal(ours.activations, theirs.activations)


def test_records_come_back_from_binaries(tmp_path: Path) -> None:
    write_feature_files(RECORDS, tmp_path, n_layers=3, n_features=5)
    files = FeatureFiles(tmp_path)
    for expected in RECORDS:
        assert_same(files.record(expected.feature), expected)
    assert files.record(Feature(1, 1)) is None


def test_the_binaries_are_laid_out_as_the_viewer_reads_them(tmp_path: Path) -> None:
    """A reader that knows only the format: index, offsets, four bytes of length, zlib JSON."""
    folder = write_feature_files(RECORDS, tmp_path, n_layers=3, n_features=5, name="tiny")
    index = json.loads(gzip.decompress((folder / "index.json.gz").read_bytes()))
    assert len(index) == 3
    for layer in index:
        assert set(layer) == {"filename", "offsets"}
        assert len(layer["offsets"]) == 6
        assert layer["offsets"] == sorted(layer["offsets"])
        assert layer["offsets"][-1] == (folder / layer["filename"]).stat().st_size
    start, end = index[2]["offsets"][4:6]
    # The viewer asks for one byte too many.
    content = (folder / index[2]["filename"]).read_bytes()[start : end + 1]
    (length,) = struct.unpack("<I", content[:4])
    entry = json.loads(zlib.decompress(content[4 : 4 + length]))
    assert entry["transcoder_id"] == "tiny"
    assert entry["index"] == 4
    assert entry["top_logits"] == [" cat", '"']
    assert (entry["act_min"], entry["activation_frequency"]) == (0, 0.01)
    example = entry["examples_quantiles"][0]["examples"][0]
    assert set(example) == {"tokens", "tokens_acts_list", "train_token_ind", "is_repeated_datapoint"}
    assert len(example["tokens"]) == len(example["tokens_acts_list"])
    assert {"bottom_logits", "act_max", "quantile_values", "histogram"} <= set(entry)


def test_the_same_records_are_the_same_bytes(tmp_path: Path) -> None:
    folders = [write_feature_files(RECORDS, tmp_path / name, n_layers=3, n_features=5) for name in ("a", "b")]
    for file in folders[0].iterdir():
        assert file.read_bytes() == (folders[1] / file.name).read_bytes()


def test_records_come_back_from_local_json(tmp_path: Path) -> None:
    folder = write_feature_json(RECORDS, tmp_path / "local")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{cantor_pair(record.feature)}.json" for record in RECORDS
    )
    for expected in RECORDS:
        assert_same(read_feature_json(folder, expected.feature), expected)


def test_features_of_other_programs_have_no_effects(tmp_path: Path) -> None:
    folder = write_feature_json(RECORDS[:1], tmp_path)
    (path,) = folder.iterdir()
    entry = json.loads(path.read_text(encoding="utf-8"))
    del entry["top_logit_effects"], entry["activation_frequency"]
    path.write_text(json.dumps(entry))
    found = read_feature_json(folder, Feature(0, 3))
    assert [effect.token for effect in found.top_tokens] == [" cat", '"']
    assert found.density != found.density


@pytest.mark.parametrize(("layer", "feature"), [(0, 0), (0, 1), (1, 0), (3, 5), (25, 16383), (61, 2**17 - 1)])
def test_the_number_of_a_feature_tells_its_layer_and_index(layer: int, feature: int) -> None:
    assert cantor_unpair(cantor_pair(Feature(layer, feature))) == Feature(layer, feature)


def test_mistakes_and_damage_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lies outside 2 layers of 5"):
        write_feature_files(RECORDS, tmp_path, n_layers=2, n_features=5)
    with pytest.raises(CheckpointError, match=r"index\.json\.gz"):
        FeatureFiles(tmp_path)
    folder = write_feature_files(RECORDS, tmp_path, n_layers=3, n_features=5)
    files = FeatureFiles(tmp_path)
    with pytest.raises(ConfigError, match="L2/5"):
        files.record(Feature(2, 5))
    with pytest.raises(ConfigError, match="L2/-1"):
        files.record(Feature(2, -1))
    whole = (folder / "layer_2.bin").read_bytes()
    (folder / "layer_2.bin").write_bytes(whole[:20])
    with pytest.raises(CheckpointError, match=r"L2/4 .*layer_2\.bin"):
        files.record(Feature(2, 4))
    (folder / "layer_2.bin").unlink()
    with pytest.raises(CheckpointError, match=r"layer_2\.bin"):
        files.record(Feature(2, 4))
    with pytest.raises(CheckpointError, match=r"0\.json"):
        read_feature_json(tmp_path, Feature(0, 0))
