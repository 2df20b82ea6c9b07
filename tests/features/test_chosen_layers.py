"""Features of transcoders of some layers: those of the transcoder of all layers, with the numbers of the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from open_clt.errors import ConfigError
from open_clt.features.collecting.collect import collect_features
from open_clt.features.collecting.measured import feature_records
from open_clt.features.feature_files import FeatureFiles, write_feature_files
from open_clt.features.figure_data import FeaturesOnTexts, ModelAndTranscoder
from open_clt.features.firing import feature_activations, layer_activity, top_features
from open_clt.features.labelling.single_tokens import single_tokens
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.feature import Feature
from open_clt.visualization.interactive.decoders import interactive_decoder_norms
from open_clt.visualization.interactive.features import interactive_feature_density
from open_clt.visualization.preparation import density_counts, importance_bars
from tests.chosen_layers import spread
from tests.random_transcoders import architecture, random_architecture
from tests.refusals import refuses
from tests.tiny_models import TEXTS

LAYERS = (0, 2)


@pytest.fixture
def chosen() -> CrossLayerTranscoder:
    transcoder = random_architecture(architecture("clt", n_layers=2, d_model=32, layers=LAYERS))
    assert isinstance(transcoder, CrossLayerTranscoder)
    return transcoder


def test_activations_are_those_of_the_transcoder_of_all_layers(
    tiny_gpt2: LanguageModel, chosen: CrossLayerTranscoder
) -> None:
    full = spread(chosen, 3)
    ours, theirs = (feature_activations(tiny_gpt2, each, TEXTS[0]) for each in (chosen, full))
    torch.testing.assert_close(ours.dense(), theirs.dense())
    assert top_features(ours) == top_features(theirs)
    torch.testing.assert_close(layer_activity(ours, chosen), layer_activity(theirs, full))


def test_records_and_files_have_the_numbers_of_the_model(
    tiny_gpt2: LanguageModel, chosen: CrossLayerTranscoder, tmp_path: Path
) -> None:
    ours, theirs = (collect_features(tiny_gpt2, each, TEXTS * 4) for each in (chosen, spread(chosen, 3)))
    torch.testing.assert_close(ours.density, theirs.density[[*LAYERS]])
    records = list(feature_records(tiny_gpt2, chosen, ours))
    assert [record.feature for record in records] == [Feature(layer, index) for layer in LAYERS for index in range(40)]
    expected = {record.feature: record for record in feature_records(tiny_gpt2, spread(chosen, 3), theirs)}
    for record in records:
        assert ours.feature(ours.row(record.feature)) == record.feature
        assert record.density == expected[record.feature].density
        assert {outputs.layer for outputs in record.outputs} <= {*LAYERS}
        assert {related.feature.layer for related in record.nearest} <= {*LAYERS}
    write_feature_files(records, tmp_path, n_layers=3, n_features=40)
    files = FeatureFiles(tmp_path)
    assert files.features() == [record.feature for record in records]
    assert files.record(Feature(1, 5)) is None
    with refuses(ConfigError, "L1/5", "0 and 2"):
        list(feature_records(tiny_gpt2, chosen, ours, [Feature(1, 5)]))


def test_single_tokens_are_those_of_the_transcoder_of_all_layers(
    tiny_gpt2: LanguageModel, chosen: CrossLayerTranscoder
) -> None:
    ours, theirs = (single_tokens(tiny_gpt2, each) for each in (chosen, spread(chosen, 3)))
    assert [ours.of(Feature(2, index)) for index in range(40)] == [theirs.of(Feature(2, index)) for index in range(40)]


def test_figures_name_the_layers_of_the_model(tiny_gpt2: LanguageModel, chosen: CrossLayerTranscoder) -> None:
    features = FeaturesOnTexts(ModelAndTranscoder(tiny_gpt2, chosen), TEXTS * 4)
    assert features.layers == LAYERS
    assert features.layer_correlations().names == ["L0", "L2"]
    embedding = features.embedding(10)
    assert {*embedding.layers} <= {*LAYERS}
    assert embedding.n_layers == 3
    bars = importance_bars(features.importance, None, labels=None, top_n=5, layers=LAYERS)
    assert bars.features == embedding.features[:5]
    assert density_counts(features.statistics.density, LAYERS).layers == [*LAYERS]
    figure = interactive_feature_density(features.statistics.density, layers=LAYERS)
    assert "layer 2" in str(figure.to_json())
    assert "L2" in str(interactive_decoder_norms(torch.eye(2), layers=LAYERS).to_json())
    with refuses(ConfigError, "layers", "[2, 0]", 2):
        density_counts(features.statistics.density, (2, 0))
