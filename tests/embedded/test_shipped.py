"""What ships with the embedded transcoder: its records and its start graph say what the transcoder itself says.

If the transcoder or the way of measuring changes, ``make embedded-features`` measures them anew.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from open_clt import OpenCrossLayerTranscoder
from open_clt.embedded import START_PROMPT, TRANSCODER_DIRECTORY, start_graph
from open_clt.evaluation.calibration import load_calibration, with_confidence
from open_clt.features.collecting.outputs import Directions, TokenNames, outputs_of
from open_clt.features.feature_files import FeatureFiles
from open_clt.features.firing import encode_contexts
from open_clt.features.records import FeatureExample, FeatureRecord, TokenEffect
from open_clt.graphs.nodes import NodeKind
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.formats.fingerprint import fingerprint

SAMPLE = [Feature(0, 3), Feature(0, 500), Feature(1, 100), Feature(2, 244), Feature(3, 77), Feature(4, 700)]
BEFORE = 12
"""Number of tokens before the peak of an example, if its context has as many there."""
DIGITS = 6e-3
"""Largest relative error of a number that has three significant digits."""


@pytest.fixture(scope="module")
def clt() -> OpenCrossLayerTranscoder:
    return OpenCrossLayerTranscoder.from_pretrained("embedded")


@pytest.fixture(scope="module")
def stored() -> FeatureFiles:
    return FeatureFiles(TRANSCODER_DIRECTORY)


def test_records_are_those_of_the_transcoder_that_ships(clt: OpenCrossLayerTranscoder, stored: FeatureFiles) -> None:
    about, config = stored.about(), clt.transcoder.config
    assert about is not None
    assert about.transcoder_hash == fingerprint(clt.transcoder)
    assert about.tokens >= 200_000
    assert len(stored.features()) == config.n_layers * config.n_features
    rows = stored.table()
    alive = [row for row in rows if row.density > 0]
    assert len(alive) > 0.95 * len(rows)
    assert all(row.label and row.automatic for row in alive)


def assert_same_effects(found: Sequence[TokenEffect], expected: Sequence[TokenEffect]) -> None:
    assert [effect.token for effect in found] == [effect.token for effect in expected[: len(found)]]
    assert [effect.effect for effect in found] == pytest.approx(
        [effect.effect for effect in expected[: len(found)]], rel=DIGITS
    )


def test_the_calibration_is_that_of_the_transcoder_that_ships(clt: OpenCrossLayerTranscoder) -> None:
    calibration = load_calibration(TRANSCODER_DIRECTORY)
    assert calibration.transcoder_hash == fingerprint(clt.transcoder)
    graph = start_graph()
    confidence = with_confidence(graph, calibration).nodes.confidence[graph.of_kind(NodeKind.FEATURE)]
    assert bool(((confidence > 0) & (confidence < 1)).all())


def test_records_say_what_the_weights_say(clt: OpenCrossLayerTranscoder, stored: FeatureFiles) -> None:
    model, transcoder = clt.language_model, clt.transcoder
    names, directions = TokenNames(model), Directions(transcoder)
    width = transcoder.config.n_features
    for record in stored.records(SAMPLE):
        (written,) = outputs_of(model, transcoder, names, [record.feature], 10)
        assert len(record.top_tokens) == len(record.bottom_tokens) == 10
        assert_same_effects(record.top_tokens, written.top_tokens)
        assert_same_effects(record.bottom_tokens, written.bottom_tokens)
        assert len(record.outputs) == transcoder.config.n_layers - record.feature.layer
        for outputs, expected in zip(record.outputs, written.by_layer, strict=True):
            assert outputs.layer == expected.layer
            assert_same_effects(outputs.top_tokens, expected.top_tokens)
            assert_same_effects(outputs.bottom_tokens, expected.bottom_tokens)
        row = record.feature.layer * width + record.feature.index
        cosines = directions.cosines(torch.tensor([row]))
        assert cosines is not None
        cosines[0, row] = 0
        values, others = cosines[0].topk(len(record.nearest))
        assert [other.feature for other in record.nearest] == [Feature(*divmod(n, width)) for n in others.tolist()]
        assert [other.similarity for other in record.nearest] == pytest.approx(values.tolist(), rel=DIGITS)


def examples_from_start(records: Sequence[FeatureRecord]) -> list[tuple[Feature, FeatureExample]]:
    """The examples that show their context from its beginning: those with fewer tokens before the peak than others."""
    return [
        (record.feature, example)
        for record in records
        for example in (*record.examples, *(each for group in record.groups for each in group.examples))
        if example.peak < BEFORE
    ]


def test_examples_show_what_the_transcoder_computes(clt: OpenCrossLayerTranscoder, stored: FeatureFiles) -> None:
    model = clt.language_model
    tokens = {name: token for token, name in enumerate(model.token_strings(list(range(model.vocab_size))))}
    examples = examples_from_start(stored.records(SAMPLE))
    assert len(examples) > 10
    for feature, example in examples:
        context, activations = torch.tensor([[tokens[name] for name in example.tokens]]), example.activations.tolist()
        computed = encode_contexts(model, clt.transcoder, context)[feature.layer].dense()[:, feature.index]
        # The first position holds BOS, where features are not used.
        assert activations[1:] == pytest.approx(computed.tolist(), rel=DIGITS, abs=2e-3 * max(activations))


def test_the_start_graph_equals_a_new_one(clt: OpenCrossLayerTranscoder, stored: FeatureFiles) -> None:
    graph, computed = start_graph(), clt.attribute(START_PROMPT)
    assert graph.info.prompt == START_PROMPT
    assert graph.ids() == computed.ids()
    assert graph.check().holds
    assert graph.info.target_names == computed.info.target_names == (" Austin",)
    largest = float(computed.edges.weight.abs().max())
    difference = (graph.adjacency() - computed.adjacency()).abs().max()
    assert float(difference) < 1e-5 * max(1.0, largest)
    records = stored.records(graph.nodes.features())
    assert graph.labels == {record.feature: record.label.text for record in records if record.label is not None}


def test_the_package_stays_small(repository: Path) -> None:
    """A wheel compresses each file by itself."""
    files = [path for path in (repository / "open_clt").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(len(zlib.compress(path.read_bytes())) for path in files) < 20e6
