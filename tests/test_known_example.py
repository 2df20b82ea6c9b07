"""The known example of this API: its calls as users write them, on the embedded model and two sentences."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from open_clt import OpenCrossLayerTranscoder, ReplacementModel
from open_clt.errors import ConfigError, TextError
from open_clt.features.figure_data import transcoded_model
from open_clt.language.language_model import LanguageModel
from open_clt.visualization_utils import (
    run_visualization_suite,
    visualize_cross_layer_correlations,
    visualize_feature_embedding,
    visualize_feature_heatmap,
    visualize_feature_importance,
)

TEXTS = ["The river runs past the old mill and into the sea.", "Paris is the capital of France, as Rome is of Italy."]

Draw = Callable[..., Figure]
FIGURES_OF_TEXTS: list[Draw] = [
    visualize_feature_embedding,
    visualize_cross_layer_correlations,
    visualize_feature_importance,
]


@pytest.fixture(scope="module")
def clt() -> OpenCrossLayerTranscoder:
    model = OpenCrossLayerTranscoder(model_name="embedded", num_features=30, device="cpu")
    model.train_transcoder(texts=TEXTS, batch_size=8, num_epochs=3, learning_rate=1e-4, progress=False)
    return model


def drawn(figure: Figure) -> Any:
    """The data of a figure's first axes: its image, the widths of its bars, or the coordinates of its points."""
    ax = figure.axes[0]
    if ax.images:
        return np.asarray(ax.images[0].get_array())
    if ax.patches:
        return np.array([bar.get_width() for container in ax.containers for bar in container])
    return np.asarray(ax.collections[0].get_offsets())


@pytest.mark.slow
def test_a_transcoder_can_be_trained_on_two_sentences(tiny_gpt2: LanguageModel) -> None:
    clt = OpenCrossLayerTranscoder(tiny_gpt2, num_features=20)
    before = {name: tensor.clone() for name, tensor in clt.transcoder.state_dict().items()}
    result = clt.train_transcoder(texts=TEXTS, batch_size=2, num_epochs=3, learning_rate=1e-4, progress=False)
    assert result.steps >= 3
    assert any(not torch.equal(tensor, before[name]) for name, tensor in clt.transcoder.state_dict().items())


@pytest.mark.slow
def test_the_methods_of_the_facade_save_pictures(clt: OpenCrossLayerTranscoder, tmp_path: Path) -> None:
    clt.visualize_feature_activations(text=TEXTS[1], top_n=5, save_path=str(tmp_path / "features.png"))
    clt.create_attribution_graph(text="Rome is", threshold=0.1, save_path=str(tmp_path / "graph.png"))
    for name in ("features.png", "graph.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_replacement_model_generates_from_a_text_up_to_a_length(clt: OpenCrossLayerTranscoder) -> None:
    replacement = ReplacementModel(base_model_name=clt.language_model, transcoder=clt)
    generation = replacement.generate(text="Paris is", max_length=9, stop_at_eos=False)
    assert len(generation.tokens) == 9
    assert torch.equal(generation.tokens, replacement.generate("Paris is", max_length=9, stop_at_eos=False).tokens)
    assert torch.equal(
        generation.tokens, replacement.generate(prompt="Paris is", max_length=9, stop_at_eos=False).tokens
    )


@pytest.mark.parametrize("prompts", [{}, {"prompt": "Paris is", "text": "Rome is"}])
def test_a_replacement_model_needs_one_prompt(clt: OpenCrossLayerTranscoder, prompts: dict[str, Any]) -> None:
    replacement = ReplacementModel(clt.language_model, clt)
    with pytest.raises(ConfigError):
        replacement.generate(**prompts)


def test_a_transcoder_saved_as_a_pt_file_is_a_directory_that_can_be_loaded(
    clt: OpenCrossLayerTranscoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "transcoder.pt"
    clt.save_model(str(path))
    assert path.is_dir()
    assert [str(path) in record.message for record in caplog.records] == [True]
    loaded = OpenCrossLayerTranscoder(clt.language_model, num_features=30)
    loaded.load_model(str(path))
    weights = loaded.transcoder.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in clt.transcoder.state_dict().items())


def test_saving_to_a_directory_does_not_warn(
    clt: OpenCrossLayerTranscoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clt.save_model(tmp_path / "transcoder")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.slow
def test_the_suite_draws_all_pictures_from_one_object(clt: OpenCrossLayerTranscoder, tmp_path: Path) -> None:
    suite = run_visualization_suite(transcoder=clt, texts=TEXTS, output_dir=str(tmp_path / "pictures"))
    assert set(suite.pictures) == set((tmp_path / "pictures").glob("*.png"))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in suite.pictures)
    assert set(suite.paths) - set(suite.pictures) == set((tmp_path / "pictures").glob("*.html"))


@pytest.mark.slow
@pytest.mark.parametrize("draw", [visualize_feature_heatmap, *FIGURES_OF_TEXTS])
def test_a_figure_is_drawn_from_a_transcoder_and_a_text(
    clt: OpenCrossLayerTranscoder, draw: Draw, tmp_path: Path
) -> None:
    figure = draw(clt, TEXTS[1], save_path=str(tmp_path / "figure.png"))
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    values = drawn(figure)
    assert values.size > 0
    assert np.abs(values).max() > 0
    other_values = drawn(draw(clt, TEXTS[0]))
    assert values.shape != other_values.shape or not np.array_equal(values, other_values)


@pytest.mark.slow
@pytest.mark.parametrize("draw", FIGURES_OF_TEXTS)
def test_a_single_text_is_drawn_like_a_list_of_one_text(clt: OpenCrossLayerTranscoder, draw: Draw) -> None:
    np.testing.assert_array_equal(drawn(draw(clt, TEXTS[1])), drawn(draw(clt, [TEXTS[1]])))


def test_a_heatmap_of_a_text_equals_the_heatmap_of_the_facade(clt: OpenCrossLayerTranscoder) -> None:
    heatmap = drawn(visualize_feature_heatmap(clt, TEXTS[1], top_n=7))
    np.testing.assert_array_equal(heatmap, drawn(clt.visualize_feature_activations(TEXTS[1], top_n=7)))
    assert heatmap.max() == pytest.approx(clt.get_top_features(TEXTS[1], top_n=1)[0].activation)


MATRIX = np.eye(4)


@pytest.mark.parametrize(
    ("draw", "arguments"),
    [
        (visualize_feature_heatmap, (MATRIX, "four")),
        (visualize_feature_embedding, (MATRIX, ["a", "b", "c", "d"])),
        (visualize_feature_embedding, (MATRIX, "four")),
        (visualize_cross_layer_correlations, (MATRIX, "four")),
        (visualize_feature_importance, (MATRIX, TEXTS)),
    ],
)
def test_an_array_with_a_text_is_refused(draw: Draw, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError):
        draw(*arguments)


@pytest.mark.parametrize("draw", [visualize_feature_heatmap, visualize_feature_importance])
def test_a_transcoder_without_a_text_is_refused(clt: OpenCrossLayerTranscoder, draw: Draw) -> None:
    with pytest.raises(ConfigError):
        draw(clt)


@pytest.mark.parametrize("texts", [TEXTS, (TEXTS[0],)])
def test_a_heatmap_of_several_texts_is_refused(clt: OpenCrossLayerTranscoder, texts: Any) -> None:
    with pytest.raises(ConfigError):
        visualize_feature_heatmap(clt, texts)


def test_layers_instead_of_texts_are_refused(clt: OpenCrossLayerTranscoder) -> None:
    with pytest.raises(ConfigError):
        visualize_feature_embedding(clt, [0, 1, 2])
    with pytest.raises(TextError):
        visualize_feature_importance(clt, [])


def test_a_model_and_its_transcoder_can_be_one_object_or_two(
    clt: OpenCrossLayerTranscoder, tiny_gpt2: LanguageModel
) -> None:
    assert transcoded_model(None, clt) is clt
    for transcoder in (clt, clt.transcoder):
        pair = transcoded_model(tiny_gpt2, transcoder)
        assert pair.language_model is tiny_gpt2
        assert pair.transcoder is clt.transcoder


def test_a_model_without_a_transcoder_and_a_transcoder_without_a_model_are_refused(
    clt: OpenCrossLayerTranscoder,
) -> None:
    for model, transcoder in ((None, clt.transcoder), (clt.language_model, None), (clt, TEXTS), (None, None)):
        with pytest.raises(ConfigError):
            transcoded_model(model, transcoder)
