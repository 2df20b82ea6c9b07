from __future__ import annotations

import re
from pathlib import Path

import pytest

from open_clt import files
from open_clt.config import CrossLayerConfig, TopKConfig
from open_clt.errors import ConfigError, TextError
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.visualization.index_page import Entry, write_index
from open_clt.visualization.suite import run_visualization_suite
from tests.refusals import refuses
from tests.tiny_models import TEXTS


@pytest.fixture(scope="module")
def transcoder(tiny_gpt2: LanguageModel) -> CrossLayerTranscoder:
    return CrossLayerTranscoder(
        CrossLayerConfig(
            n_layers=tiny_gpt2.n_layers, d_model=tiny_gpt2.d_model, n_features=24, nonlinearity=TopKConfig(k=3)
        ),
        seed=0,
    )


@pytest.mark.slow
def test_the_suite_draws_all_pictures(
    tiny_gpt2: LanguageModel, transcoder: CrossLayerTranscoder, tmp_path: Path
) -> None:
    suite = run_visualization_suite(tiny_gpt2, transcoder, iter(TEXTS), tmp_path / "pictures", suffix=".svg")
    assert len(suite.pictures) == 8
    names = {path.name for path in suite.paths}
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {*names, files.MANIFEST}
    assert files.listed_names(tmp_path / "pictures") == names
    assert all(path.read_bytes().startswith(b"<?xml") for path in suite.pictures)
    index, interactive = suite.index.read_text(), suite.interactive.read_text()
    assert all(f'<img src="{path.name}"' in index for path in suite.pictures)
    assert f'href="{suite.interactive.name}"' in index
    assert interactive.count("Plotly.newPlot(") >= len(suite.pictures)
    assert len(interactive) < 7e6  # plotly's program is in it once
    assert not {"http://", "https://"} & set(re.findall("https?://", index))
    assert suite.feature_heatmap.name == "feature_heatmap.svg"


def test_a_picture_of_another_program_is_named_before_anything_is_drawn(
    tiny_gpt2: LanguageModel, transcoder: CrossLayerTranscoder, tmp_path: Path
) -> None:
    files.list_names(tmp_path, ["feature_heatmap.png"])
    foreign = files.write_text(tmp_path / "embedding_pca.png", "mine")
    with refuses(ConfigError, foreign):
        run_visualization_suite(tiny_gpt2, transcoder, TEXTS, tmp_path)
    assert foreign.read_text() == "mine"
    assert not (tmp_path / "feature_heatmap.png").exists()


@pytest.mark.parametrize("texts", [[], "one string"])
def test_missing_texts_are_refused(
    tiny_gpt2: LanguageModel, transcoder: CrossLayerTranscoder, tmp_path: Path, texts: list[str]
) -> None:
    with refuses(TextError):
        run_visualization_suite(tiny_gpt2, transcoder, texts, tmp_path)


def test_texts_that_are_too_short_are_refused(
    tiny_gpt2: LanguageModel, transcoder: CrossLayerTranscoder, tmp_path: Path
) -> None:
    with refuses(TextError):
        run_visualization_suite(tiny_gpt2, transcoder, ["a"], tmp_path)


def test_an_index_escapes_titles_and_names(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    entries = [Entry(tmp_path / "a b&c.png", bad), Entry(tmp_path / "pages" / "d.html", bad)]
    page = write_index(tmp_path / "index.html", bad, entries, note=bad).read_text()
    assert "<script" not in page
    assert 'src="a%20b%26c.png"' in page
    assert 'href="pages/d.html"' in page
