"""Feature files: records are read as they were written, and the bytes have the layout that the viewer reads."""

from __future__ import annotations

import gzip
import json
import math
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from open_clt.errors import CheckpointError, ConfigError
from open_clt.features.feature_files import (
    FeatureFiles,
    read_feature_json,
    write_feature_files,
    write_feature_json,
)
from open_clt.features.records import FeatureExample, FeatureLabel, FeatureRecord, RelatedFeature, TokenEffect
from open_clt.features.table import row_of
from open_clt.graphs.formats.circuit_tracer_schema import cantor_pair, cantor_unpair
from open_clt.transcoders.feature import Feature
from tests.features.rich_record import ABOUT, rich_record
from tests.refusals import refuses


def record(layer: int, feature: int) -> FeatureRecord:
    generator = torch.Generator().manual_seed(feature)
    activations = torch.rand(4, generator=generator)
    example = FeatureExample((" na", "ïve", "\n", "猫"), activations, int(activations.argmax()))
    effects = TokenEffect(" cat", 1 / 3), TokenEffect('"', 0.25)
    return FeatureRecord(
        Feature(layer, feature), 0.01, float(activations.max()), (example, example), effects, effects[:1]
    )


RECORDS = [record(0, 3), record(2, 0), record(2, 4)]
EXAMPLE = RECORDS[0].examples[0]


def assert_same(actual: FeatureRecord | None, expected: FeatureRecord) -> None:
    assert actual is not None
    for name in ("feature", "density", "max_activation", "top_tokens", "bottom_tokens"):
        assert getattr(actual, name) == getattr(expected, name)
    assert len(actual.examples) == len(expected.examples)
    for example, original in zip(actual.examples, expected.examples, strict=True):
        assert (example.tokens, example.peak) == (original.tokens, original.peak)
        assert torch.equal(example.activations, original.activations)


def test_records_are_read_back_from_binary_files(tmp_path: Path) -> None:
    write_feature_files(RECORDS, tmp_path, n_layers=3, n_features=5)
    files = FeatureFiles(tmp_path)
    for expected in RECORDS:
        assert_same(files.record(expected.feature), expected)
    assert files.record(Feature(1, 1)) is None


def test_the_binaries_are_laid_out_as_the_viewer_reads_them(tmp_path: Path) -> None:
    """A reader that knows only the format finds the index, the offsets, four bytes of length, and zlib JSON."""
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
    assert {"bottom_logits", "act_max"} <= set(entry)
    # The viewer would show an empty list as a percentile of 0 and an empty histogram.
    assert not {"quantile_values", "histogram"} & set(entry)


def test_every_field_of_a_record_is_read_back(tmp_path: Path) -> None:
    expected = rich_record(0, 3, 1 / 3)
    write_feature_files([expected], tmp_path, n_layers=1, n_features=5, about=ABOUT)
    write_feature_json([expected], tmp_path)
    for loaded in (FeatureFiles(tmp_path).record(Feature(0, 3)), read_feature_json(tmp_path, Feature(0, 3))):
        assert_same(loaded, expected)
        assert loaded is not None
        for name in ("histogram", "fires_on", "nearest", "outputs", "label", "min_activation"):
            assert getattr(loaded, name) == getattr(expected, name)
        assert loaded.quantile_values == pytest.approx(expected.quantile_values, rel=1e-6)
        assert loaded.coactive[0].similarity == pytest.approx(1 / 3, rel=1e-6)
        assert [(group.name, len(group.examples)) for group in loaded.groups] == [
            (group.name, len(group.examples)) for group in expected.groups
        ]


def test_the_viewer_finds_the_percentile_of_an_activation(tmp_path: Path) -> None:
    """The viewer's rule: the number of the first quantile that is at least the activation, or 100."""
    record = rich_record(0, 0)
    write_feature_json([record], tmp_path)
    entry = json.loads((tmp_path / "0.json").read_text(encoding="utf-8"))
    assert len(entry["quantile_values"]) == 100
    for activation, percentile in ((0.01, 1), (0.04, 1), (0.05, 2), (2.0, 50), (3.999, 100), (4.0, 100), (9.0, 100)):
        values = entry["quantile_values"]
        shown = next((index + 1 for index, value in enumerate(values) if activation <= value), 100)
        assert record.percentile(activation) == shown == percentile
    assert entry["histogram"] == [3, 1, 0, 1]
    assert (entry["act_min"], entry["act_max"]) == (0, 4)
    assert RECORDS[0].percentile(1.0) is None


def test_files_say_how_they_were_measured_and_list_their_features(tmp_path: Path) -> None:
    records = [rich_record(layer, index) for layer, index in ((1, 4), (0, 2), (1, 0))]
    write_feature_files(records, tmp_path, n_layers=2, n_features=5, about=ABOUT)
    files = FeatureFiles(tmp_path)
    assert files.about() == ABOUT
    assert files.features() == [Feature(0, 2), Feature(1, 0), Feature(1, 4)]
    assert [row.feature for row in files.table()] == files.features()
    assert files.table()[0]._replace(feature=Feature(1, 4)) == row_of(records[0])
    write_feature_files(RECORDS, tmp_path, n_layers=3, n_features=5)
    assert files.about() is None
    assert files.features() == [record.feature for record in RECORDS]


def test_an_iterator_of_records_must_be_in_order(tmp_path: Path) -> None:
    for wrong in ([RECORDS[1], RECORDS[0]], [RECORDS[0], RECORDS[0]]):
        with refuses(ConfigError, "L0/3"):
            write_feature_files(iter(wrong), tmp_path, n_layers=3, n_features=5)
    assert not (tmp_path / "features" / "index.json.gz").exists()


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    folders = [write_feature_files(RECORDS, tmp_path / name, n_layers=3, n_features=5) for name in ("a", "b")]
    for file in folders[0].iterdir():
        assert file.read_bytes() == (folders[1] / file.name).read_bytes()


def test_records_are_read_back_from_local_json(tmp_path: Path) -> None:
    folder = write_feature_json(RECORDS, tmp_path / "local")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{cantor_pair(record.feature)}.json" for record in RECORDS
    )
    for expected in RECORDS:
        assert_same(read_feature_json(folder, expected.feature), expected)


def test_features_that_other_programs_wrote_are_read_without_effects(tmp_path: Path) -> None:
    folder = write_feature_json(RECORDS[:1], tmp_path)
    (path,) = folder.iterdir()
    entry = json.loads(path.read_text(encoding="utf-8"))
    del entry["top_logit_effects"], entry["activation_frequency"]
    path.write_text(json.dumps(entry))
    loaded = read_feature_json(folder, Feature(0, 3))
    assert [effect.token for effect in loaded.top_tokens] == [" cat", '"']
    assert math.isnan(loaded.density)


def test_numbers_that_are_not_known_are_read_back_as_such(tmp_path: Path) -> None:
    unknown = replace(RECORDS[0], density=math.nan, max_activation=math.nan, top_tokens=(TokenEffect("a", math.nan),))
    write_feature_json([unknown], tmp_path)
    write_feature_json([unknown], tmp_path)  # the file is still recognised as ours
    write_feature_files([unknown], tmp_path, n_layers=1, n_features=4)
    for loaded in (read_feature_json(tmp_path, unknown.feature), FeatureFiles(tmp_path).record(unknown.feature)):
        assert loaded is not None
        assert all(map(math.isnan, (loaded.density, loaded.max_activation, loaded.top_tokens[0].effect)))
        assert loaded.bottom_tokens == unknown.bottom_tokens


@pytest.mark.parametrize(
    "change",
    [
        {"density": math.inf},
        {"max_activation": 10**400},
        {"density": "often"},
        {"top_tokens": (TokenEffect("a", -math.inf),)},
        {"examples": (EXAMPLE._replace(peak=9),)},
        {"examples": (EXAMPLE._replace(activations=torch.full((4,), math.nan)),)},
        {"examples": (EXAMPLE._replace(tokens=("a", "b")),)},
        {"histogram": (1.0, -1.0)},
        {"quantile_values": (2.0, 1.0)},
        {"nearest": (RelatedFeature(Feature(0, -1), 0.5),)},
        {"label": FeatureLabel("a", math.inf)},
        {"label": "a"},
    ],
    ids=str,
)
def test_a_record_that_could_not_be_read_is_not_written(change: dict[str, Any], tmp_path: Path) -> None:
    damaged = replace(RECORDS[0])
    for name, value in change.items():
        object.__setattr__(damaged, name, value)  # checks of types in the slow tests would refuse some of these values
    with refuses(CheckpointError, damaged.feature):
        write_feature_json([damaged], tmp_path)
    with refuses(CheckpointError, damaged.feature):
        write_feature_files([damaged], tmp_path, n_layers=1, n_features=4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("layer", "feature"), [(0, 0), (0, 1), (1, 0), (3, 5), (25, 16383), (61, 2**17 - 1)])
def test_the_number_of_a_feature_tells_its_layer_and_index(layer: int, feature: int) -> None:
    assert cantor_unpair(cantor_pair(Feature(layer, feature))) == Feature(layer, feature)


@pytest.mark.parametrize(
    "layer",
    [
        3,
        {"filename": "layer_0.bin"},
        {"filename": "layer_0.bin", "offsets": 3},
        {"filename": "layer_0.bin", "offsets": [0, "4"]},
        {"filename": "layer_0.bin", "offsets": [0, 4.5]},
        {"filename": "layer_0.bin", "offsets": [4, 0]},
        {"filename": "layer_0.bin", "offsets": [-4, 0]},
        {"filename": 3, "offsets": [0, 4]},
    ],
)
def test_an_index_that_is_not_a_list_of_layers_is_refused(layer: object, tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    path = tmp_path / "features" / "index.json.gz"
    for content in ([layer], {"layers": [layer]}):
        path.write_bytes(gzip.compress(json.dumps(content).encode()))
        with refuses(CheckpointError, path):
            FeatureFiles(tmp_path)


def test_wrong_features_and_damaged_files_raise_different_errors(tmp_path: Path) -> None:
    with refuses(ConfigError, "L2/0", 2, 5):
        write_feature_files(RECORDS, tmp_path, n_layers=2, n_features=5)
    with refuses(CheckpointError, "index.json.gz"):
        FeatureFiles(tmp_path)
    folder = write_feature_files(RECORDS, tmp_path, n_layers=3, n_features=5)
    files = FeatureFiles(tmp_path)
    with refuses(ConfigError, "L2/5"):
        files.record(Feature(2, 5))
    with refuses(ConfigError, "L2/-1"):
        files.record(Feature(2, -1))
    whole = (folder / "layer_2.bin").read_bytes()
    (folder / "layer_2.bin").write_bytes(whole[:20])
    with refuses(CheckpointError, "L2/4", "layer_2.bin"):
        files.record(Feature(2, 4))
    (folder / "layer_2.bin").unlink()
    with refuses(CheckpointError, "layer_2.bin"):
        files.record(Feature(2, 4))
    with refuses(CheckpointError, "0.json"):
        read_feature_json(tmp_path, Feature(0, 0))


@pytest.mark.parametrize("content", ["mine", "{}", '{"examples_quantiles": []}'])
def test_a_file_of_another_program_is_not_replaced_by_the_json_of_a_feature(content: str, tmp_path: Path) -> None:
    path = tmp_path / f"{cantor_pair(RECORDS[0].feature)}.json"
    path.write_text(content)
    with refuses(ConfigError, path):
        write_feature_json(RECORDS, tmp_path)
    assert [inside.name for inside in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == content
