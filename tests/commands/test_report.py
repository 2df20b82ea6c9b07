"""``open-clt report`` writes one HTML file, and refuses mistakes before it loads a model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from open_clt.cli import main
from open_clt.embedded import start_graph
from open_clt.features.feature_files import write_feature_files
from open_clt.features.records import FeatureRecord
from open_clt.transcoders.feature import Feature
from tests.commands.mistakes import assert_mistake

PROMPT = "The capital of the state containing Dallas is"
QUICK = ["--no-faithfulness", "--max-tokens", "800"]


def data_of(path: Path) -> dict[str, Any]:
    match = re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert match is not None
    return json.loads(match[1])


@pytest.mark.slow
def test_a_report_is_written_with_labels_and_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, labels = tmp_path / "new" / "report.html", tmp_path / "labels.json"
    labels.write_text('{"L2/244": "<b>state capitals</b>"}')
    arguments = ["report", "--prompt", PROMPT, "--output", str(report), "--labels", str(labels)]
    assert main([*arguments, "--max-features", "2", "--max-tokens", "800"]) == 0
    printed, error = capsys.readouterr()
    assert error == ""
    assert str(report) in printed
    data = data_of(report)
    nodes = {node["id"]: node for node in data["graph"]["nodes"]}
    labelled = [node for node in nodes.values() if node["feature"] == "L2/244"]
    assert [(node["label"], node["automatic"]) for node in labelled] == [("<b>state capitals</b>", False)]
    assert any(group["examples"] for record in data["features"].values() for group in record["groups"])
    assert sum(node["shape"] == "output" for node in nodes.values()) == 1
    text = report.read_text()
    assert "<b>" not in text
    assert "2 features were ablated" in text


def test_the_records_that_ship_are_read_without_a_text(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    assert main(["report", "--prompt", PROMPT, "--output", str(report), "--no-faithfulness"]) == 0
    data = data_of(report)
    labels = {node["feature"]: node["label"] for node in data["graph"]["nodes"] if node["feature"]}
    assert labels.items() <= {str(feature): label for feature, label in start_graph().labels.items()}.items()
    assert data["features"].keys() == labels.keys()
    assert all(record["groups"][0]["examples"] for record in data["features"].values())
    assert "487,500 tokens of generated sentences" in report.read_text()


def test_options_select_target_size_and_feature_files(tmp_path: Path) -> None:
    write_feature_files([FeatureRecord(Feature(2, 244), 0.5, 3.0, (), (), ())], tmp_path, n_layers=5, n_features=768)
    report = tmp_path / "report.html"
    options = ["--target", " Austin-- Dallas", "--threshold", "0.5", "--features", str(tmp_path)]
    assert main(["report", "--prompt", PROMPT, "--output", str(report), *options, "--no-faithfulness"]) == 0
    data = data_of(report)
    outputs = [node for node in data["graph"]["nodes"] if node["shape"] == "output"]
    assert [node["kind"] for node in outputs] == ["target"]
    assert set(data["features"]) <= {"L2/244"}
    assert len(data["graph"]["nodes"]) < 60


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--output", "report.txt"], "report.txt"),
        (["--output", "taken.html"], "taken.html"),
        (["--output", "r.html", "--labels", "none.json"], "none.json"),
        (["--output", "r.html", "--features", "none"], "none"),
        (["--output", "r.html", "--features", "."], "index.json.gz"),
        (["--output", "r.html", "--max-features", "0"], "'0'"),
        (["--output", "r.html", "--max-features", "2", "--no-faithfulness"], "--max-features"),
        (["--output", "r.html", "--features", "records", "--seed", "0"], "--seed"),
        (["--output", "r.html", "--target", "2:-1:244", "--position", "3"], "--position"),
        ([], "--output"),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(
    options: list[str],
    named: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("open_clt.commands.report.load", fail)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.html").mkdir()
    assert_mistake(capsys, ["report", "--prompt", PROMPT, *options], named)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--threshold", "0"], "node_threshold"),
        (["--column", "words"], "'words'"),
        (["--target", " no such token"], "no such token"),
        (["--text", "none.jsonl"], "none.jsonl"),
    ],
)
def test_mistakes_in_what_is_computed_leave_no_file(
    options: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.html"
    assert_mistake(capsys, ["report", "--prompt", PROMPT, "--output", str(report), *QUICK, *options], named)
    assert not report.exists()
