"""``open-clt attribute``: the options select what a graph explains and where and how it is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from open_clt.cli import main
from open_clt.config import CrossLayerConfig, JumpReLUConfig
from open_clt.embedded import start_graph
from open_clt.graphs.formats.circuit_tracer_reader import read_circuit_tracer
from open_clt.graphs.formats.networkx import read_graphml
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.language.language_model import load_language_model
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.formats.native import save_transcoder
from tests.commands.mistakes import assert_mistake
from tests.graphs.formats.viewer_schema import broken_rules

PROMPT = "The capital of the state containing Dallas is"
FRANCE = "The capital of France is"

Trace = Callable[..., AttributionGraph]


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    """A function that runs the command with some options and returns the graph that it saves."""

    def run_and_load(*options: str) -> AttributionGraph:
        assert main(["attribute", "--prompt", PROMPT, "--no-faithfulness", "--output", str(tmp_path), *options]) == 0
        return AttributionGraph.load(tmp_path)

    return run_and_load


@pytest.mark.slow
def test_a_graph_is_saved_with_its_picture_and_its_faithfulness(
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
    assert "output ' Austin' (p=0.9" in captured.out
    assert direct in captured.out


@pytest.mark.slow
def test_attention_is_explained_stored_and_exported(
    trace: Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--max-feature-nodes", "20", "--threshold", "0.4", "--edge-threshold", "0.5"]
    formats = ["--format", "native", "--format", "circuit-tracer", "--slug", "cat"]
    graph = trace("--attention", "--attention-share", "0.5", *options, *formats)
    assert graph.attention is not None
    assert graph.attention.share == 0.5
    assert graph.attention.missing_share() < 1e-5
    assert all(part.target in graph.nodes.ids() for part in graph.attention.carried)
    assert graph.attention.summary() in capsys.readouterr().out
    content = json.loads((tmp_path / "cat.json").read_text())
    assert broken_rules(content) == []
    assert any("qk_tracing_results" in node for node in content["nodes"])
    assert main(["info", str(tmp_path)]) == 0
    assert graph.attention.summary() in capsys.readouterr().out


@pytest.mark.slow
def test_targets_are_tokens_differences_and_features(trace: Trace) -> None:
    graph = trace("--target", " Austin", "--target", " Austin-- Dallas", "--target", "3:-1:17")
    assert graph.info.target_names[:2] == (" Austin", "' Austin' - ' Dallas'")
    assert graph.info.target_names[2] == f"L3/17 at position {len(graph.info.tokens) - 1}"
    kinds = [graph.node(node_index).kind for node_index in range(graph.n_nodes - 3, graph.n_nodes)]
    assert kinds == [NodeKind.LOGIT, NodeKind.TARGET, NodeKind.TARGET]
    assert graph.info.faithfulness is None


@pytest.mark.slow
def test_a_position_selects_the_token_whose_prediction_is_explained(trace: Trace) -> None:
    for options in (("--position", "4"), ("--position", "4", "--target", " state")):
        graph = trace(*options)
        assert int(graph.nodes.position[-1]) == 4
        assert not graph.adjacency()[-1, graph.nodes.position > 4].any()


def test_a_budget_limits_the_number_of_features_and_says_what_it_left_out(
    trace: Trace, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = trace("--max-feature-nodes", "25", "--compatible")
    assert int(graph.of_kind(NodeKind.FEATURE).sum()) == 25
    assert graph.info.compatible
    assert f"left out {graph.info.n_active_features - 25:,} of" in graph.info.left_out()
    assert graph.info.left_out() in capsys.readouterr().out


@pytest.mark.slow
def test_every_format_contains_the_same_graph(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"0_5": "unused", "4_300": "also"}')
    formats = ["--format", "native", "--format", "circuit-tracer", "--format", "graphml"]
    options = ["--max-features", "2", "--output", str(tmp_path), "--slug", "dallas", "--scan", "./features"]
    assert main(["attribute", "--prompt", PROMPT, *formats, *options, "--node-threshold", "0.6"]) == 0
    whole = AttributionGraph.load(tmp_path)
    pruned = whole.prune(0.6, 0.98)
    assert read_graphml(tmp_path / "dallas.graphml").ids() == pruned.ids()
    content = json.loads((tmp_path / "dallas.json").read_text())
    assert broken_rules(content) == []
    metadata = content["metadata"]
    assert metadata["scan"] == "./features"
    assert metadata["faithfulness"] == whole.info.faithfulness
    assert metadata["pruning_settings"]["node_threshold"] == 0.6
    read_back = read_circuit_tracer(tmp_path / "dallas.json").graph
    assert {node_id for node_id in read_back.ids() if not node_id.startswith("error:")} <= set(pruned.ids())
    assert read_back.info.faithfulness == whole.info.faithfulness
    entries = json.loads((tmp_path / "graph-metadata.json").read_text())["graphs"]
    assert [entry["slug"] for entry in entries] == ["dallas"]


@pytest.mark.slow
@pytest.mark.parametrize("own_notation", [True, False], ids=["L2/417", "2_417"])
def test_labels_are_stored_in_the_graph_and_in_its_files(trace: Trace, tmp_path: Path, own_notation: bool) -> None:
    pruned = trace().prune(0.8)
    nodes = map(pruned.node, range(pruned.n_nodes))
    node = next(node for node in nodes if node.kind is NodeKind.FEATURE)
    key = str(Feature(node.layer, node.index)) if own_notation else f"{node.layer}_{node.index}"
    (tmp_path / "labels.json").write_text(json.dumps({key: "about Texas"}))
    options = ("--labels", str(tmp_path / "labels.json"), "--format", "native", "--format", "circuit-tracer")
    graph = trace(*options, "--slug", "named")
    # The user's label wins; all other features have those of the records that ship.
    feature, of_records = Feature(node.layer, node.index), start_graph().labels
    assert graph.labels == {**of_records, feature: "about Texas"}
    entries = json.loads((tmp_path / "named.json").read_text())["nodes"]
    texts = {entry["node_id"]: entry["clerp"] for entry in entries}
    assert texts[f"{node.layer}_{node.index}_{node.position}"] == "about Texas"
    assert len(set(texts.values()) & set(of_records.values())) > 20


@pytest.mark.slow
def test_every_prompt_gets_its_own_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text(f"{FRANCE}\n\n{PROMPT}\n")
    output = tmp_path / "graphs"
    options = ["--prompts", str(tmp_path / "prompts.txt"), "--output", str(output), "--no-faithfulness"]
    formats = ["--format", "native", "--format", "circuit-tracer", "--figure", str(tmp_path / "why.svg")]
    assert main(["attribute", "--prompt", FRANCE, *options, *formats]) == 0
    slugs = ["the-capital-of-france-is", "the-capital-of-france-is-2", "the-capital-of-the-state-containing-dallas-is"]
    assert [AttributionGraph.load(output / slug).info.prompt for slug in slugs] == [FRANCE, FRANCE, PROMPT]
    entries = json.loads((output / "graph-metadata.json").read_text())["graphs"]
    assert [entry["slug"] for entry in entries] == slugs
    assert all((output / f"{slug}.json").exists() and (tmp_path / f"why-{slug}.svg").exists() for slug in slugs)
    captured = capsys.readouterr()
    assert captured.err == ""  # a progress bar is shown on terminals only
    offsets = [captured.out.index(f"{slug}: ") for slug in slugs]
    assert offsets == sorted(offsets)


LONG = "word " * 200
MISTAKES = [
    ("", [], []),
    ("The", [], ["The"]),
    (LONG, [], [203, 128]),
    (PROMPT, ["--prompt", LONG], ["Prompt 2 of 2", 203, 128]),
    (PROMPT, ["--prompts", "/nowhere"], ["/nowhere"]),
    (PROMPT, ["--target", " Sacramentoo"], [" Sacramentoo", "7 tokens"]),
    (PROMPT, ["--target", " Austin--xyzzy"], ["'xyzzy'", "5 tokens"]),
    (PROMPT, ["--target", "0:5:768"], ["L0/768"]),
    (PROMPT, ["--target", "5:5:1"], ["L5/1"]),
    (PROMPT, ["--target", "0:99:1"], ["position", 99]),
    (PROMPT, ["--target", "0:*:1"], ["0:*:1"]),
    (PROMPT, ["--position", "-10"], ["position", -10]),
    (PROMPT, ["--max-feature-nodes", "0"], ["max_feature_nodes", 0]),
    (PROMPT, ["--max-features", "0"], ["--max-features", 0]),
    (PROMPT, ["--max-logits", "0"], ["max_count", 0]),
    (PROMPT, ["--node-threshold", "2", "--no-faithfulness"], ["node_threshold", 2]),
    (PROMPT, ["--figure", "graph.bmp"], ["graph.bmp", ".png", ".svg", ".pdf"]),
    (PROMPT, ["--figure", f"{__file__}/graph.png"], [__file__]),
    (PROMPT, ["--output", __file__], [__file__]),
    (PROMPT, ["--format", "graphml"], ["--format", "--output"]),
    (PROMPT, ["--slug", "a b"], ["slug", "'a b'"]),
    (PROMPT, ["--slug", "graph"], ["slug", "'graph'"]),
    (PROMPT, ["--slug", "cat"], ["--slug", "--format"]),
    (PROMPT, ["--scan", "cat", "--format", "native", "--output", "/nowhere"], ["--scan", "circuit-tracer"]),
    (PROMPT, ["--max-features", "2", "--no-faithfulness"], ["--max-features", "--no-faithfulness"]),
    (PROMPT, ["--target", " Austin", "--max-logits", "10"], ["--max-logits", "--target"]),
    (PROMPT, ["--target", " Austin", "--logit-probability", "0.9"], ["--logit-probability", "--target"]),
    (PROMPT, ["--target", "0:5:7", "--position", "-1"], ["--position", -1]),
    (PROMPT, ["--labels", "/nowhere"], ["/nowhere"]),
    (PROMPT, ["--transcoder", "/nowhere"], ["/nowhere", "org/name"]),
    (PROMPT, ["--model", "/nowhere"], ["/nowhere", "embedded"]),
    (PROMPT, ["--attention"], ["--attention", "--output"]),
    (PROMPT, ["--attention", "--output", "graph", "--format", "graphml"], ["--attention", "graphml"]),
    (PROMPT, ["--attention", "--consensus", "--prompt", FRANCE, "--output", "graph"], ["--attention", "--consensus"]),
    (PROMPT, ["--attention-share", "0.1"], ["--attention-share", "--attention"]),
    (PROMPT, ["--attention", "--attention-share", "0", "--output", "graph"], ["--attention-share", "0"]),
    (PROMPT, ["--attention", "--attention-share", "many", "--output", "graph"], ["--attention-share", "many"]),
]


@pytest.mark.parametrize(("prompt", "options", "named"), MISTAKES)
def test_a_mistake_is_one_line_and_status_2(
    prompt: str, options: list[str], named: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert_mistake(capsys, ["attribute", "--prompt", prompt, *options], *named)


def test_labels_that_nothing_shows_are_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text('{"L2/417": "Texas"}')
    assert_mistake(capsys, ["attribute", "--prompt", PROMPT, "--labels", str(labels)], "--labels", "--output")


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": "b"}', '{"1_2": 3}'])
def test_labels_that_do_not_name_features_are_a_mistake(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text(content)
    assert_mistake(capsys, ["attribute", "--prompt", PROMPT, "--labels", str(labels)], labels)


def test_a_missing_prompt_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_mistake(capsys, ["attribute"], "--prompt", "--prompts")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    assert_mistake(capsys, ["attribute", "--prompts", str(empty)], empty)


@pytest.mark.parametrize(("shape", "named"), [({"n_layers": 5, "d_model": 64}, ["d_model", 64]), ({}, [])])
def test_a_transcoder_that_does_not_fit_or_does_not_fire_is_a_mistake(
    shape: dict[str, int], named: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_language_model("embedded")
    sizes = {"n_layers": model.n_layers, "d_model": model.d_model, **shape}
    nonlinearity = JumpReLUConfig(initial_threshold=1e6)
    silent = CrossLayerConfig(
        n_layers=sizes["n_layers"], d_model=sizes["d_model"], n_features=8, nonlinearity=nonlinearity
    )
    save_transcoder(CrossLayerTranscoder(silent), tmp_path)
    assert_mistake(capsys, ["attribute", "--prompt", PROMPT, "--transcoder", str(tmp_path)], *named)
