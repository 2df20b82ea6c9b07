"""``open-clt attribute``: graphs are what was asked for, and are written where and as it was asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from open_clt.cli import main
from open_clt.config import CrossLayerConfig, JumpReLUConfig
from open_clt.graphs.formats.circuit_tracer_reader import read_circuit_tracer
from open_clt.graphs.formats.networkx import read_graphml
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.language.language_model import load_language_model
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.formats.native import save_transcoder
from tests.graphs.formats.viewer_schema import broken_rules

PROMPT = "The capital of the state containing Dallas is"
FRANCE = "The capital of France is"

Traced = Callable[..., AttributionGraph]


@pytest.fixture
def traced(tmp_path: Path) -> Traced:
    """The graph that the command saves for some options."""

    def trace(*options: str) -> AttributionGraph:
        assert main(["attribute", "--prompt", PROMPT, "--no-faithfulness", "--output", str(tmp_path), *options]) == 0
        return AttributionGraph.load(tmp_path)

    return trace


def test_a_graph_is_written_with_its_picture_and_its_faithfulness(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure, output = tmp_path / "graph.svg", tmp_path / "graph"
    options = ["--figure", str(figure), "--output", str(output), "--max-features", "3"]
    assert main(["attribute", "--prompt", PROMPT, *options]) == 0
    assert figure.stat().st_size > 1000
    info = AttributionGraph.load(output).info
    assert info.prompt == PROMPT
    assert info.faithfulness is not None
    assert len(info.faithfulness["features"]) == 3
    captured = capsys.readouterr()
    assert captured.err == ""
    direct = f"direct effects   Spearman {info.faithfulness['direct']['spearman']:.3f}"
    for words in ("output ' Austin' (p=0.9", "replacement score", "3 features ablated", direct):
        assert words in captured.out


def test_targets_are_tokens_differences_and_features(traced: Traced) -> None:
    graph = traced("--target", " Austin", "--target", " Austin-- Dallas", "--target", "3:-1:17")
    assert graph.info.target_names[:2] == (" Austin", "' Austin' - ' Dallas'")
    assert graph.info.target_names[2] == f"L3/17 at position {len(graph.info.tokens) - 1}"
    kinds = [graph.node(number).kind for number in range(graph.n_nodes - 3, graph.n_nodes)]
    assert kinds == [NodeKind.LOGIT, NodeKind.TARGET, NodeKind.TARGET]
    assert graph.info.faithfulness is None


def test_a_position_is_where_the_prediction_is_made(traced: Traced) -> None:
    for options in (("--position", "4"), ("--position", "4", "--target", " state")):
        graph = traced(*options)
        assert int(graph.nodes.position[-1]) == 4
        assert not graph.adjacency()[-1, graph.nodes.position > 4].any()


def test_a_budget_bounds_the_features(traced: Traced) -> None:
    graph = traced("--max-feature-nodes", "25", "--compatible")
    assert int(graph.of_kind(NodeKind.FEATURE).sum()) == 25
    assert graph.info.compatible


def test_every_format_holds_the_same_graph(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"0_5": "unused", "4_300": "also"}')
    formats = ["--format", "native", "--format", "circuit-tracer", "--format", "graphml"]
    options = ["--max-features", "2", "--output", str(tmp_path), "--slug", "dallas", "--scan", "./features"]
    assert main(["attribute", "--prompt", PROMPT, *formats, *options, "--threshold", "0.6"]) == 0
    whole = AttributionGraph.load(tmp_path)
    pruned = whole.prune(0.6, 0.98)
    assert read_graphml(tmp_path / "dallas.graphml").ids() == pruned.ids()
    content = json.loads((tmp_path / "dallas.json").read_text())
    assert broken_rules(content) == []
    metadata = content["metadata"]
    assert metadata["scan"] == "./features"
    assert metadata["faithfulness"] == whole.info.faithfulness
    assert metadata["pruning_settings"]["node_threshold"] == 0.6
    viewed = read_circuit_tracer(tmp_path / "dallas.json").graph
    assert {name for name in viewed.ids() if not name.startswith("error:")} <= set(pruned.ids())
    assert viewed.info.faithfulness == whole.info.faithfulness
    listed = json.loads((tmp_path / "graph-metadata.json").read_text())["graphs"]
    assert [entry["slug"] for entry in listed] == ["dallas"]


@pytest.mark.parametrize("ours", [True, False], ids=["L2/417", "2_417"])
def test_labels_stand_in_the_graph_and_in_its_files(traced: Traced, tmp_path: Path, ours: bool) -> None:
    plain = traced().prune(0.8)
    node = next(plain.node(number) for number in range(plain.n_nodes) if plain.node(number).kind is NodeKind.FEATURE)
    key = str(Feature(node.layer, node.index)) if ours else f"{node.layer}_{node.index}"
    (tmp_path / "labels.json").write_text(json.dumps({key: "about Texas"}))
    options = ("--labels", str(tmp_path / "labels.json"), "--format", "native", "--format", "circuit-tracer")
    graph = traced(*options, "--slug", "named")
    assert graph.labels == {Feature(node.layer, node.index): "about Texas"}
    nodes = json.loads((tmp_path / "named.json").read_text())["nodes"]
    assert {entry["clerp"] for entry in nodes if entry["node_id"] == f"{node.layer}_{node.index}_{node.position}"} == {
        "about Texas"
    }


def test_several_prompts_are_written_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text(f"{FRANCE}\n\n{PROMPT}\n")
    output = tmp_path / "graphs"
    options = ["--prompts", str(tmp_path / "prompts.txt"), "--output", str(output), "--no-faithfulness"]
    formats = ["--format", "native", "--format", "circuit-tracer", "--figure", str(tmp_path / "why.svg")]
    assert main(["attribute", "--prompt", FRANCE, *options, *formats]) == 0
    names = ["the-capital-of-france-is", "the-capital-of-france-is-2", "the-capital-of-the-state-containing-dallas-is"]
    assert [AttributionGraph.load(output / name).info.prompt for name in names] == [FRANCE, FRANCE, PROMPT]
    listed = json.loads((output / "graph-metadata.json").read_text())["graphs"]
    assert [entry["slug"] for entry in listed] == names
    assert all((output / f"{name}.json").exists() and (tmp_path / f"why-{name}.svg").exists() for name in names)
    captured = capsys.readouterr()
    assert captured.err == ""  # a progress bar is for terminals
    assert [captured.out.index(f"{name}: ") for name in names] == sorted(captured.out.index(f"{n}: ") for n in names)


BAD = [
    ([], "empty", ""),
    ([], "is one token", "The"),
    ([], "shorten it", "word " * 200),
    (["--prompt", "word " * 200], "Prompt 2 of 2, 'word", PROMPT),
    (["--prompts", "/nowhere"], "cannot be read as text", PROMPT),
    (["--target", " Sacramentoo"], "not one", PROMPT),
    (["--target", " Austin--xyzzy"], "'xyzzy' is", PROMPT),
    (["--target", "0:5:768"], "L0/768", PROMPT),
    (["--target", "5:5:1"], "L5/1", PROMPT),
    (["--target", "0:99:1"], "position is 99", PROMPT),
    (["--target", "0:*:1"], "every position", PROMPT),
    (["--position", "-10"], "position is -10", PROMPT),
    (["--max-feature-nodes", "0"], "max_feature_nodes is 0", PROMPT),
    (["--max-features", "0"], "max_features is 0", PROMPT),
    (["--max-logits", "0"], "max_count is 0", PROMPT),
    (["--threshold", "2", "--no-faithfulness"], "node_threshold is 2", PROMPT),
    (["--figure", "graph.bmp"], "bmp", PROMPT),
    (["--figure", f"{__file__}/graph.png"], "cannot be written", PROMPT),
    (["--output", __file__], "cannot be written", PROMPT),
    (["--slug", "a b"], "slug is 'a b'", PROMPT),
    (["--slug", "graph"], "another file", PROMPT),
    (["--labels", "/nowhere"], "/nowhere", PROMPT),
    (["--transcoder", "/nowhere"], "config.json", PROMPT),
    (["--model", "/nowhere"], "give the directory", PROMPT),
]


@pytest.mark.parametrize(("options", "message", "prompt"), BAD)
def test_bad_input_is_one_line_and_status_2(
    options: list[str], message: str, prompt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["attribute", "--prompt", prompt, *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": "b"}', '{"1_2": 3}'])
def test_labels_must_name_features(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.json").write_text(content)
    assert main(["attribute", "--prompt", PROMPT, "--labels", str(tmp_path / "labels.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_no_prompt_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attribute"]) == 2
    assert "--prompts" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n \n")
    assert main(["attribute", "--prompts", str(tmp_path / "empty.txt")]) == 2
    assert "no prompt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shape", "message"), [({"n_layers": 5, "d_model": 64}, "n_layers = 5"), ({}, "No feature is active")]
)
def test_transcoders_that_do_not_fit_or_do_not_fire_are_one_line_and_status_2(
    shape: dict[str, int], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_language_model("embedded")
    sizes = {"n_layers": model.n_layers, "d_model": model.d_model, **shape}
    silent = CrossLayerConfig(n_features=8, nonlinearity=JumpReLUConfig(initial_threshold=1e6), **sizes)
    save_transcoder(CrossLayerTranscoder(silent), tmp_path)
    assert main(["attribute", "--prompt", PROMPT, "--transcoder", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
