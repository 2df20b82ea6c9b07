"""``open-clt attribute --consensus`` averages the graphs of several prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from open_clt.cli import main
from open_clt.graphs.formats.circuit_tracer_reader import read_circuit_tracer
from open_clt.graphs.formats.networkx import read_graphml
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from tests.commands.mistakes import assert_mistake
from tests.graphs.formats.viewer_schema import broken_rules

TEMPLATE = "The capital of {country} is"
COUNTRIES = ("France", "Italy", "Japan")


def prompts_file(folder: Path, **content: Any) -> str:
    path = folder / "prompts.json"
    values = [{"country": country} for country in COUNTRIES]
    path.write_text(json.dumps({"templates": [TEMPLATE], "values": values, **content}))
    return str(path)


@pytest.mark.slow
def test_the_consensus_of_a_template_is_printed_saved_exported_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, figure = tmp_path / "graphs", tmp_path / "consensus.svg"
    formats = [option for name in ("native", "graphml", "circuit-tracer") for option in ("--format", name)]
    options = ["--slug", "capitals", "--output", str(output), "--figure", str(figure), *formats]
    assert main(["attribute", "--prompts", prompts_file(tmp_path), "--consensus", *options]) == 0
    printed, error = capsys.readouterr()
    assert error == ""
    assert "Consensus of 3 graphs" in printed
    assert "answers: Paris, Rome, Tokyo" in printed
    assert "{country}" in printed
    assert "100%" in printed
    assert "Opacity by frequency" in figure.read_text()
    graph = AttributionGraph.load(output)
    assert graph.consensus is not None
    assert graph.consensus.prompts == tuple(TEMPLATE.format(country=country) for country in COUNTRIES)
    assert graph.info.prompt == TEMPLATE
    assert "{country}" in graph.info.token_strings
    again = read_graphml(output / "capitals.graphml")
    assert again.consensus is not None
    assert again.consensus.frequency.tolist() == graph.consensus.frequency.tolist()
    content = json.loads((output / "capitals.json").read_text())
    assert broken_rules(content) == []
    assert "Consensus of 3 graphs" in content["metadata"]["info"]["description"]
    assert len(read_circuit_tracer(output / "capitals.json").graph.ids()) <= graph.n_nodes


@pytest.mark.slow
def test_prompts_without_a_template_are_aligned_from_both_ends(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["attribute", "--prompt", "The capital of France is", "--prompt", "France's capital is", "--consensus"])
        == 0
    )
    printed = capsys.readouterr().out
    assert "answers: Paris\n" in printed
    assert "[-" in printed


@pytest.mark.slow
def test_a_calibration_is_stored_and_later_graphs_have_its_confidence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPEN_CLT_CACHE", str(tmp_path / "cache"))
    prompts = ["attribute", "--prompts", prompts_file(tmp_path), "--output", str(tmp_path / "graphs")]
    assert main([*prompts, "--consensus", "--calibrate", "--max-features", "12"]) == 0
    printed = capsys.readouterr().out
    assert "calibration: 144 interventions" in printed
    assert "confidence" in printed
    assert list((tmp_path / "cache").rglob("calibration.json"))
    graph = AttributionGraph.load(tmp_path / "graphs")
    known = graph.nodes.confidence[graph.of_kind(NodeKind.FEATURE)]
    assert bool(((known > 0) & (known < 1)).all())
    assert bool(graph.nodes.confidence[~graph.of_kind(NodeKind.FEATURE)].isnan().all())


def test_a_calibration_needs_a_consensus(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["attribute", "--prompt", "The capital of France is", "--calibrate"]
    assert_mistake(capsys, arguments, "--calibrate", "--consensus")


@pytest.mark.parametrize("prompts", [["The capital of France is"], ["The capital of France is"] * 2])
def test_one_prompt_has_no_consensus(prompts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = [option for prompt in prompts for option in ("--prompt", prompt)]
    assert_mistake(capsys, ["attribute", *options, "--consensus"], "--consensus", "two")


def test_options_of_the_check_are_not_used_with_a_consensus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["attribute", "--prompts", prompts_file(tmp_path), "--consensus", "--no-faithfulness"]
    assert_mistake(capsys, arguments, "--no-faithfulness", "--consensus")


@pytest.mark.slow
def test_a_prompt_that_has_not_the_form_of_the_template_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["attribute", "--prompts", prompts_file(tmp_path), "--prompt", "In France they speak", "--consensus"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "In France they speak" in error
    assert TEMPLATE in error


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"values": []}, "templates"),
        ({"more": 1}, "templates"),
        ({"templates": ["The capital of France is"]}, "no slot"),
        ({"templates": [TEMPLATE, "{capital} is in"]}, "capital"),
        ({"values": [{"country": 3}]}, "country"),
        ({"values": [{"country": "France", "city": "Paris"}]}, "Paris"),
        ({"values": ["France"]}, "'France'"),
    ],
)
def test_a_damaged_file_of_templates_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict[str, Any], named: str
) -> None:
    path = prompts_file(tmp_path, **content)
    assert_mistake(capsys, ["attribute", "--prompts", path, "--consensus"], path, named)
