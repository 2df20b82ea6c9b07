"""Noise: the package's own work causes no warning, no output and no log line of a library."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest

from open_clt import Intervention, OpenCrossLayerTranscoder, intervene
from open_clt.cli import main
from open_clt.config import SamplingConfig

PROMPT = "The cat sat on the mat"


@pytest.mark.slow
def test_training_replacement_figures_and_commands_make_no_noise(
    tiny_llama_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        clt = OpenCrossLayerTranscoder(str(tiny_llama_folder), num_features=16)
        clt.train_transcoder([PROMPT] * 40, batch_size=32, num_epochs=1, output_dir=tmp_path / "run")
        clt.create_attribution_graph(PROMPT, save_path=tmp_path / "graph.png")
        clt.visualize_feature_activations(PROMPT, save_path=tmp_path / "features.png")
        clt.replacement_model().compare(PROMPT, SamplingConfig(max_new_tokens=2))
        intervene(clt.replacement_model(), PROMPT, Intervention(layer=0, position=1, feature=2, value=9.0))
        assert capfd.readouterr() == ("", "")
        options = ["--model", str(tiny_llama_folder), "--transcoder", str(tmp_path / "run"), "--prompt", PROMPT]
        assert main(["attribute", *options, "--output", str(tmp_path / "graph")]) == 0
    assert [str(warning.message) for warning in warned] == []
    assert capfd.readouterr().err == ""
    assert [record.name for record in caplog.records if not record.name.startswith("open_clt")] == []
