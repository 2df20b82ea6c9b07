"""The scripts in examples/ end with their results."""

from __future__ import annotations

import os
import runpy
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


FILES = {
    "train_and_evaluate": ("transcoder/transcoder.safetensors", "transcoder/metrics.csv", "report/evaluation.json"),
    "features_and_labels": ("features",),
    "replace_and_steer": (),
    "attribution_graph": ("graph.png", "groups.svg", "graph/graph.json", "austin.json", "graph.graphml", "report.html"),
    "consensus": ("consensus/graph.json", "core.png"),
    "verify_a_circuit": ("circuit.yaml",),
    "without_training": ("neurons.png", "attention.png"),
    "bring_and_convert": ("published/config.yaml", "published/W_enc_4.safetensors"),
    "explorer_session": ("session.json",),
}
"""What each script of one job writes into the directory that it is given."""
OTHERS = {"harvest_serve_train", "train_embedded_model", "train_embedded_transcoder"}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_an_example_ends_with_its_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "session.json" if name == "explorer_session" else tmp_path
    monkeypatch.setattr(sys, "argv", [name, str(target)])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert [file for file in FILES[name] if not (tmp_path / file).exists()] == []
    assert capsys.readouterr().out.count("\n") > 3


def test_every_example_is_run_and_is_short_and_says_how_to_run_it() -> None:
    scripts = {path.stem: path.read_text() for path in EXAMPLES.glob("*.py")}
    assert set(scripts) == {*FILES, *OTHERS}
    for name, text in scripts.items():
        assert f"    python examples/{name}.py" in text
        assert name in OTHERS or len(text.splitlines()) <= 50, name


def test_the_guide_lists_every_example_and_every_notebook() -> None:
    page = (EXAMPLES.parent / "docs" / "start" / "notebooks.md").read_text()
    files = [*EXAMPLES.glob("*.py"), *(EXAMPLES.parent / "notebooks").glob("*.ipynb")]
    assert [path.name for path in files if f"/{path.name})" not in page] == []
