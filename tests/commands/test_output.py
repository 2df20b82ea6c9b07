"""Output directories of commands: conflicts are found before a model is loaded, and only results of our own go."""

from __future__ import annotations

from pathlib import Path

import pytest

import practice_run
from open_clt import files
from open_clt.cli import main
from open_clt.graphs.formats.circuit_tracer import write_circuit_tracer
from open_clt.graphs.formats.circuit_tracer_schema import GraphCard
from open_clt.graphs.formats.networkx import write_graphml
from tests.commands.mistakes import assert_mistake
from tests.faults.artefacts import graph_of, report_of, save_in_circuit_tracers_layout, save_native, save_report

PROMPT = ["attribute", "--prompt", "one"]
NAMED = [*PROMPT, "--slug", "cat"]
TWO_PROMPTS = ["attribute", "--prompt", "one", "--prompt", "two"]


class Loaded(Exception):
    """A model would be loaded."""


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise Loaded

    for module in ("attribute", "evaluate", "convert"):
        monkeypatch.setattr(f"open_clt.commands.{module}.load", refuse)
    monkeypatch.setattr("open_clt.language.language_model.load_language_model", refuse)
    monkeypatch.setattr(practice_run, "load_model", refuse)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


CONFLICTS = {
    "graph": (PROMPT, "graph.json"),
    "tensors of a graph": (PROMPT, "graph.safetensors"),
    "one of several graphs": (TWO_PROMPTS, "two/graph.json"),
    "graph for viewers": ([*NAMED, "--format", "circuit-tracer"], "cat.json"),
    "list of graphs": ([*NAMED, "--format", "circuit-tracer"], "graph-metadata.json"),
    "GraphML": ([*NAMED, "--format", "graphml"], "cat.graphml"),
    "report": (["evaluate"], "evaluation.json"),
    "layers of a report": (["evaluate"], "evaluation.csv"),
    "report in a comparison": (["compare", "embedded"], "embedded/evaluation.json"),
    "transcoder": (["convert"], "config.json"),
    "transcoder for circuit-tracer": (["convert", "--format", "circuit-tracer"], "W_enc_30.safetensors"),
    "settings of another program": (["convert", "--format", "circuit-tracer", "--overwrite"], "config.yaml"),
}


@pytest.mark.parametrize("case", CONFLICTS)
@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_file_of_another_program_is_named_before_anything_is_loaded(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, name = CONFLICTS[case]
    files.write_text(tmp_path / name, '{"mine": 1}')
    assert_mistake(capsys, [*command, "--output", str(tmp_path)], str(tmp_path / name))
    assert contents(tmp_path) == {name: b'{"mine": 1}'}


@pytest.mark.parametrize(
    ("command", "name"), [(["evaluate"], "evaluation.png"), (["compare", "embedded"], "comparison.csv")]
)
@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_manifest_says_which_results_are_replaced(
    command: list[str], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*command, "--output", str(tmp_path)]
    files.write_text(tmp_path / name, "results of an older version")
    with pytest.raises(Loaded):
        main(command)
    files.list_names(tmp_path, ["other.csv"])
    assert_mistake(capsys, command, str(tmp_path / name))
    files.list_names(tmp_path, [name])
    with pytest.raises(Loaded):
        main(command)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_earlier_results_do_not_stop_a_command(tmp_path: Path) -> None:
    graph_of(1).save(tmp_path)
    write_circuit_tracer(graph_of(1), tmp_path, GraphCard(slug="cat"))
    write_graphml(graph_of(1), tmp_path / "cat.graphml")
    save_report(report_of(1), tmp_path)
    formats = [word for name in ("native", "circuit-tracer", "graphml") for word in ("--format", name)]
    for command in ([*PROMPT, *formats], ["evaluate"]):
        with pytest.raises(Loaded):
            main([*command, "--output", str(tmp_path)])


@pytest.mark.parametrize(("layout", "other"), [("native", "circuit-tracer"), ("circuit-tracer", "native")])
@pytest.mark.usefixtures("nothing_is_loaded")
def test_convert_replaces_a_transcoder_of_the_same_layout_only_if_the_user_says_so(
    layout: str, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    {"native": save_native, "circuit-tracer": save_in_circuit_tracers_layout}[layout](tmp_path, 1)
    before = contents(tmp_path)
    command = ["convert", "--output", str(tmp_path), "--format"]
    assert_mistake(capsys, [*command, layout], str(tmp_path), "--overwrite")
    assert_mistake(capsys, [*command, other, "--overwrite"], str(tmp_path))
    assert contents(tmp_path) == before
    with pytest.raises(Loaded):
        main([*command, layout, "--overwrite"])


@pytest.mark.parametrize("command", [PROMPT, ["evaluate"], ["compare", "embedded"], ["convert"]])
@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_directory_in_use_is_refused(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with files.locked(tmp_path):
        assert_mistake(capsys, [*command, "--output", str(tmp_path)], str(tmp_path))


@pytest.mark.parametrize("name", ["checkpoint/config.json", "graph/graph.json", "metrics.json", "feature_heatmap.png"])
@pytest.mark.usefixtures("nothing_is_loaded")
def test_practice_run_refuses_files_of_other_programs(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(practice_run, "keep_freed_memory", lambda: None)
    files.list_names(tmp_path, ["comparison.md"])
    files.write_text(tmp_path / name, "{}")
    before = contents(tmp_path)
    assert practice_run.main(["--output-dir", str(tmp_path)]) == 2
    assert str(tmp_path / name) in "".join(capsys.readouterr().err.split())
    assert contents(tmp_path) == before
