"""The example scripts that run commands of OpenCLT end with their results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from open_clt.data.dataset.reader import ActivationDataset
from open_clt.evaluation.report_file import load_report
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import read_record

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_activations_are_harvested_served_and_trained_on(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    script = [sys.executable, EXAMPLES / "harvest_serve_train.py", "--directory", tmp_path]
    environment = {**os.environ, "OPEN_CLT_CACHE": str(tmp_path / "cache")}
    subprocess.run([*script, "--tokens", "6000", "--steps", "20"], check=True, env=environment, timeout=600)
    dataset = ActivationDataset(tmp_path / "datasets" / "sentences")
    assert (len(dataset), dataset.manifest.harvested.bytes_per_token) == (6000, 2568)
    transcoder = load_transcoder(tmp_path / "runs" / "clt")
    assert transcoder.config.language_model == "embedded"
    # The same settings with the directory in place of the server give the same weights, bit for bit.
    again = [sys.executable, "-m", "open_clt", "train", "--config", tmp_path / "runs" / "clt" / "config.yaml"]
    again += ["--data.path", dataset.source, "--output", tmp_path / "again"]
    subprocess.run(again, check=True, env=environment, timeout=600)
    for name, tensor in load_transcoder(tmp_path / "again").state_dict().items():
        assert torch.equal(tensor, transcoder.state_dict()[name]), name
    record = read_record(tmp_path / "runs" / "clt")
    assert record["settings"]["dataset"]["path"].startswith("http://127.0.0.1:")
    assert (record["dataset"]["tokens"], record["steps"]) == (6000, 20)
    assert load_report(tmp_path / "runs" / "evaluation").measured_on.contexts > 100
