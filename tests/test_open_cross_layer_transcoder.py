"""The facade, as people know it: train, look, trace, save, load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from open_clt.embedded.corpus import generate_texts
from open_clt.errors import CheckpointError, ConfigError, OpenCLTError
from open_clt.graphs.graph import AttributionGraph
from open_clt.language.language_model import LanguageModel
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from tests.refusals import refuses

PROMPT = "The capital of the state containing Dallas is"


@pytest.fixture(scope="module")
def clt() -> OpenCrossLayerTranscoder:
    return OpenCrossLayerTranscoder.from_pretrained("embedded")


def test_the_answer_is_the_first_output_of_its_graph(clt: OpenCrossLayerTranscoder, tmp_path: Path) -> None:
    graph = clt.create_attribution_graph(PROMPT, threshold=0.7, save_path=tmp_path / "graph.png")
    assert graph.info.target_names[0] == " Austin"
    assert (tmp_path / "graph.png").stat().st_size > 10_000
    clt.create_attribution_graph(PROMPT, save_path=tmp_path / "graph")
    assert AttributionGraph.load(tmp_path / "graph").info.prompt == PROMPT


def test_graphs_take_the_settings_of_attribution_and_can_be_held_against_the_model(
    clt: OpenCrossLayerTranscoder,
) -> None:
    texts = [PROMPT, "The capital of France is"]
    first, second = clt.attribute_all(texts, max_feature_nodes=20)
    assert first.ids() == clt.attribute(PROMPT, max_feature_nodes=20).ids()
    assert second.info.target_names[0] == " Paris"
    assert len(clt.faithfulness(first, max_features=2).features) == 2


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


def test_training_then_save_and_load_gives_the_same_features(clt: OpenCrossLayerTranscoder, tmp_path: Path) -> None:
    mine = OpenCrossLayerTranscoder(clt.language_model, num_features=64, seed=3)
    with refuses(OpenCLTError):
        mine.get_feature_activations(PROMPT)
    record = mine.train_transcoder(generate_texts(600, seed=5), batch_size=128, learning_rate=5e-3, progress=False)
    assert record.metrics is not None
    assert record.metrics.fvu < 1
    mine.save_model(tmp_path / "saved")
    again = OpenCrossLayerTranscoder(clt.language_model)
    again.load_model(tmp_path / "saved")
    for one, other in zip(
        mine.get_feature_activations(PROMPT).layers, again.get_feature_activations(PROMPT).layers, strict=True
    ):
        assert torch.equal(one.dense(), other.dense())


def test_a_transcoder_of_another_shape_is_refused(tiny_gpt2: LanguageModel) -> None:
    other = OpenCrossLayerTranscoder(tiny_gpt2, num_features=32)
    with refuses(ConfigError, tiny_gpt2.name):
        other.load_model(Path(__file__).parent.parent / "open_clt" / "embedded" / "transcoder")
    with refuses(CheckpointError):
        OpenCrossLayerTranscoder.from_pretrained("gpt5")
