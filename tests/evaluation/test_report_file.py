"""Report files: a saved report is read back equal, and files that are not reports are refused."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from open_clt.data.contexts import pack_contexts
from open_clt.errors import CheckpointError, ConfigError
from open_clt.evaluation.measured_on import measured_on
from open_clt.evaluation.report import GraphReport, Report, comparison_table, report
from open_clt.evaluation.report_file import is_report, load_report, save_reconstruction, save_report
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.model import ReplacementModel
from tests.random_transcoders import random_transcoder
from tests.refusals import refuses
from tests.tiny_models import TEXTS


@pytest.fixture(scope="module")
def measured(tiny_gpt2: LanguageModel) -> Report:
    replacement = ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2))
    contexts = pack_contexts(TEXTS, tiny_gpt2, 12, max_contexts=4)
    return report(replacement, contexts, name="random", text="some texts", prompts=["a b c d"])


def test_a_saved_report_is_read_back_equal(measured: Report, tmp_path: Path) -> None:
    files = save_report(measured, tmp_path)
    assert load_report(tmp_path) == load_report(files.everything) == measured


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_tables_hold_every_number_of_the_layers_and_of_the_totals(measured: Report, tmp_path: Path) -> None:
    files = save_report(measured, tmp_path)
    for layer, row in zip(measured.layers(), rows(files.layers), strict=True):
        norms = [float(row.pop(f"decoder_norm_p{share}")) for share in (0, 5, 25, 50, 75, 95, 100)]
        assert norms == list(layer["decoder_norms"])
        numbers = {name: value for name, value in layer.items() if name != "decoder_norms"}
        assert {name: float(value) for name, value in row.items()} == numbers
    (total,) = rows(files.totals)
    for name, number in measured.evaluation.totals().items():
        assert float(total[name]) == number
    assert int(total["parameters"]) == measured.parameters
    (graph,) = measured.graphs
    assert float(total["graph_replacement"]) == graph.replacement
    assert float(total["graph_completeness"]) == graph.completeness
    assert total["name"] == "random"
    assert total["measured_on"] == "4 contexts of 12 tokens of some texts"


def test_reports_on_different_contexts_are_not_compared(measured: Report, tiny_gpt2: LanguageModel) -> None:
    contexts = pack_contexts(TEXTS, tiny_gpt2, 12, max_contexts=4)
    same, fewer, other = measured_on(contexts.clone()), measured_on(contexts[:3]), measured_on(contexts.flip(0))
    assert measured.measured_on.fingerprint == same.fingerprint
    assert len({same.fingerprint, fewer.fingerprint, other.fingerprint, measured_on(contexts.T).fingerprint}) == 4
    for different in (fewer, other):
        with refuses(ConfigError, "random on 4 contexts of 12 tokens of some texts", "second"):
            comparison_table([measured, measured._replace(name="second", measured_on=different)])
    comparison_table([measured, measured._replace(name="second", measured_on=same)])


def test_a_table_warns_of_graph_scores_of_different_prompts_or_limits(measured: Report) -> None:
    (graph,) = measured.graphs
    without_warning = comparison_table([measured, measured._replace(graphs=())]).splitlines()
    for changed in (graph._replace(prompt="others"), graph._replace(max_feature_nodes=7)):
        table = comparison_table([measured, measured._replace(graphs=(changed,))]).splitlines()
        assert len(table) == len(without_warning) + 1


def test_a_report_in_format_version_2_is_read(tmp_path: Path) -> None:
    """The file has the keys with which format version 2 was first written."""
    layer = {"fvu": 0.25, "l0": 3.0, "dead_share": 0.0, "dense_share": 0.5, "decoder_norms": [0.5] * 7}
    layer |= {"layer": 0, "ce_alone": 3.5, "kl_alone": 0.25, "top1_agreement_alone": 0.75}
    numbers = {
        "tokens": 30, "fvu": 0.25, "worst_fvu": 0.25, "worst_layer": 0, "l0": 3.0, "l0_total": 3.0, "dead_share": 0.0,
        "dense_share": 0.5, "ce_original": 3.0, "ce_replacement": 4.0, "ce_ablated": 7.0, "ce_recovered": 0.75,
        "kl": 0.5, "top1_agreement": 0.625,
    }  # fmt: skip
    content = {
        "format": "open-clt-evaluation", "format_version": 2, "name": "old", "model": "gpt2", "settings": {"reach": 2},
        "parameters": 100, "density_histogram": [1] * 24, "layers": [layer],
        "measured_on": {"text": "a book", "contexts": 3, "positions": 11, "fingerprint": "abc"},
        "graphs": [{"prompt": "a b", "replacement": 0.5, "completeness": 0.75, "max_feature_nodes": None}],
    }  # fmt: skip
    (tmp_path / "evaluation.json").write_text(json.dumps(content | numbers))
    loaded = load_report(tmp_path)
    assert loaded.evaluation.totals() == numbers
    assert loaded.layers() == [layer | {"decoder_norms": (0.5,) * 7}]
    assert loaded.graph_completeness == 0.75
    again = json.loads(save_report(loaded, tmp_path / "again").everything.read_text())
    assert again == content | numbers


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format": "other"}', '{"format": "open-clt-evaluation"}'])
def test_a_file_that_is_not_a_report_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(content)
    with refuses(CheckpointError, "evaluation.json"):
        load_report(tmp_path)


def test_a_report_that_does_not_name_its_contexts_is_refused(measured: Report, tmp_path: Path) -> None:
    path = save_report(measured, tmp_path).everything
    content = json.loads(path.read_text()) | {"format_version": 1}
    del content["measured_on"]
    path.write_text(json.dumps(content))
    with refuses(CheckpointError, "evaluation.json", 1):
        load_report(path)


def test_a_report_of_a_later_version_is_refused(measured: Report, tmp_path: Path) -> None:
    path = save_report(measured, tmp_path).everything
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with refuses(CheckpointError, "evaluation.json", 99):
        load_report(path)


def test_a_file_with_only_the_reconstruction_is_not_a_report_and_says_why(tmp_path: Path) -> None:
    path = save_reconstruction({"fvu": 0.25, "l0": 3.0}, tmp_path, reason="There was no language model.")
    assert json.loads(path.read_text())["fvu"] == 0.25
    assert not is_report(tmp_path)  # so a comparison of directories measures the transcoder
    assert is_report(path)
    with refuses(CheckpointError, "There was no language model"):
        load_report(path)


@pytest.mark.parametrize(
    "change",
    [
        {"decoder_norms": ((math.nan,) * 7,) * 3},
        {"decoder_norms": ()},
        {"parameters": 10**30},
        {"parameters": "many"},
        {"graphs": (GraphReport("a", math.inf, 0.5),)},
        {"settings": {"bandwidth": math.nan}},
    ],
    ids=str,
)
def test_a_report_that_could_not_be_read_is_not_saved(change: dict[str, Any], measured: Report, tmp_path: Path) -> None:
    with refuses(CheckpointError, "evaluation.json"):
        save_report(measured._replace(**change), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_a_report_with_a_number_that_is_not_finite_is_refused(value: str, measured: Report, tmp_path: Path) -> None:
    path = save_report(measured, tmp_path).everything
    content = json.loads(path.read_text())
    content["layers"][0]["fvu"] = float(value)
    path.write_text(json.dumps(content))
    with refuses(CheckpointError, path, value):
        load_report(path)
