"""The facade: training, features, attribution graphs, saving and loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from open_clt.embedded.corpus import generate_texts
from open_clt.errors import CheckpointError, ConfigError, OpenCLTError
from open_clt.evaluation.calibration import Calibration, Logistic, save_calibration
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.language.language_model import LanguageModel
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.transcoders.formats.fingerprint import fingerprint
from open_clt.transcoders.formats.native import save_transcoder
from tests.random_transcoders import random_transcoder
from tests.refusals import refuses
from tests.tiny_models import TEXTS

PROMPT = "The capital of the state containing Dallas is"


@pytest.fixture(scope="module")
def clt() -> OpenCrossLayerTranscoder:
    return OpenCrossLayerTranscoder.from_pretrained("embedded")


def test_the_likeliest_token_is_the_first_output_of_the_graph(clt: OpenCrossLayerTranscoder, tmp_path: Path) -> None:
    graph = clt.create_attribution_graph(PROMPT, threshold=0.7, save_path=tmp_path / "graph.png")
    assert graph.info.target_names[0] == " Austin"
    assert (tmp_path / "graph.png").stat().st_size > 10_000
    clt.create_attribution_graph(PROMPT, save_path=tmp_path / "graph")
    assert AttributionGraph.load(tmp_path / "graph").info.prompt == PROMPT


def test_graphs_take_the_settings_of_attribution_and_their_faithfulness_can_be_measured(
    clt: OpenCrossLayerTranscoder,
) -> None:
    texts = [PROMPT, "The capital of France is"]
    first, second = clt.attribute_all(texts, max_feature_nodes=20)
    assert first.ids() == clt.attribute(PROMPT, max_feature_nodes=20).ids()
    assert second.info.target_names[0] == " Paris"
    assert len(clt.faithfulness(first, max_features=2).features) == 2


def test_graphs_have_the_confidence_that_the_calibration_of_the_transcoder_gives(
    clt: OpenCrossLayerTranscoder, tiny_gpt2: LanguageModel, tmp_path: Path
) -> None:
    features = [node for node in map(clt.attribute(PROMPT).node, range(20)) if node.kind is NodeKind.FEATURE]
    assert features
    assert all(0 < (node.confidence or 0) < 1 for node in features)
    other = random_transcoder(tiny_gpt2)
    directory = save_transcoder(other, tmp_path / "clt")
    mine = OpenCrossLayerTranscoder(tiny_gpt2, transcoder=directory)
    assert mine.attribute(TEXTS[0]).node(0).confidence is None
    node = Logistic(intercept=0.0, weights=(0.0, 0.0), trials=20, share=0.5)
    save_calibration(Calibration(transcoder_hash=fingerprint(other), node=node), directory)
    assert mine.attribute(TEXTS[0]).node(0).confidence == 0.5
    assert next(mine.attribute_all([TEXTS[0]])).node(0).confidence == 0.5


def test_a_lower_threshold_keeps_fewer_nodes(clt: OpenCrossLayerTranscoder) -> None:
    assert clt.create_attribution_graph(PROMPT, threshold=0.4).n_nodes < clt.create_attribution_graph(PROMPT).n_nodes


def test_top_features_are_the_largest_activations(clt: OpenCrossLayerTranscoder, tmp_path: Path) -> None:
    top = clt.get_top_features(PROMPT, top_n=7)
    activations = [feature.activation for feature in top]
    assert len(top) == 7
    assert activations == sorted(activations, reverse=True)
    assert activations[0] == pytest.approx(float(clt.get_feature_activations(PROMPT).dense().max()))
    clt.visualize_feature_activations(PROMPT, top_n=7, save_path=tmp_path / "features.svg")
    assert (tmp_path / "features.svg").read_text().startswith("<?xml")


@pytest.mark.slow
def test_training_then_save_and_load_gives_the_same_features(clt: OpenCrossLayerTranscoder, tmp_path: Path) -> None:
    trained = OpenCrossLayerTranscoder(clt.language_model, num_features=64, seed=3)
    with refuses(OpenCLTError):
        trained.get_feature_activations(PROMPT)
    result = trained.train_transcoder(generate_texts(600, seed=5), batch_size=128, learning_rate=5e-3, progress=False)
    assert result.metrics is not None
    assert result.metrics.fvu < 1
    trained.save_model(tmp_path / "saved")
    loaded = OpenCrossLayerTranscoder(clt.language_model)
    loaded.load_model(tmp_path / "saved")
    for layer, loaded_layer in zip(
        trained.get_feature_activations(PROMPT).layers, loaded.get_feature_activations(PROMPT).layers, strict=True
    ):
        assert torch.equal(layer.dense(), loaded_layer.dense())


def test_neurons_need_no_training_and_are_not_trained_or_saved(tiny_gpt2: LanguageModel, tmp_path: Path) -> None:
    clt = OpenCrossLayerTranscoder(tiny_gpt2, transcoder="neurons")
    assert clt.attribute("The cat sat", max_feature_nodes=None).scores().replacement == pytest.approx(1)
    assert clt.attribute("The cat sat").info.settings.max_feature_nodes == 2048
    assert len(clt.get_top_features("The cat sat", top_n=3)) == 3
    with refuses(ConfigError, "neurons", "trained"):
        clt.train_transcoder(["One text."], progress=False)
    with refuses(ConfigError, "neurons", "saved"):
        clt.save_model(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_transcoder_of_another_shape_is_refused(tiny_gpt2: LanguageModel) -> None:
    clt = OpenCrossLayerTranscoder(tiny_gpt2, num_features=32)
    with refuses(ConfigError, tiny_gpt2.name):
        clt.load_model(Path(__file__).parent.parent / "open_clt" / "embedded" / "transcoder")


def test_a_setting_by_the_name_that_its_config_gives_it_is_refused(tiny_gpt2: LanguageModel) -> None:
    with refuses(ConfigError, "epochs", 3, "num_epochs"):
        OpenCrossLayerTranscoder(tiny_gpt2, num_features=8).train_transcoder(["One text."], epochs=3)


def test_a_name_without_a_transcoder_that_ships_is_refused() -> None:
    with refuses(CheckpointError, "gpt5", "embedded"):
        OpenCrossLayerTranscoder.from_pretrained("gpt5")
