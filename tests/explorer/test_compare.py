"""The jobs of the compare page: they compute what Python's functions compute, and mistakes are sentences."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from open_clt.embedded.held_out import HeldOutText
from open_clt.errors import ConfigError
from open_clt.explorer.explorer import Explorer
from open_clt.explorer.jobs.table import start
from open_clt.explorer.measurements import Measurements
from open_clt.explorer.session.session import Session, session_json
from open_clt.explorer.views import EDGE_THRESHOLD
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.operations import GraphComparison, compare_graphs
from open_clt.transcoders.formats.native import save_transcoder
from tests.explorer.conftest import PROMPT, done
from tests.random_transcoders import random_transcoder
from tests.refusals import refuses

SECOND = "The capital of the state containing Chicago is"
PERCENT = 70


@pytest.fixture(scope="module")
def graphs(explorer: Explorer) -> dict[str, AttributionGraph]:
    """The whole graphs of two prompts, by their keys."""
    keys = [done(start(explorer, "trace_compared", {"prompt": text})).result["graph"] for text in (PROMPT, SECOND)]
    return {key: explorer.trace_of(key).graph for key in keys}


def _compare(explorer: Explorer, keys: list[str | None], *, across: bool = False, **session: Any) -> Any:
    first, second = keys
    request = {"first": first, "second": second, "across": across, "percent": PERCENT}
    return done(start(explorer, "compare", {**request, "session": session_json(Session(**session))})).result


def _expected(graphs: dict[str, AttributionGraph], *, across: bool) -> GraphComparison:
    pruned = [graph.prune(PERCENT / 100, EDGE_THRESHOLD) for graph in graphs.values()]
    return compare_graphs(*pruned, across_positions=across)


@pytest.mark.parametrize("across", [False, True])
def test_two_graphs_are_compared_as_python_compares_them(
    explorer: Explorer, graphs: dict[str, AttributionGraph], across: bool
) -> None:
    made, expected = _compare(explorer, [*graphs], across=across), _expected(graphs, across=across)
    comparison = made["comparison"]
    assert comparison["shared"] == list(expected.shared_nodes)
    assert comparison["only"] == [len(expected.nodes_only_first), len(expected.nodes_only_second)]
    assert comparison["overlaps"] == pytest.approx([expected.node_overlap, expected.edge_overlap], abs=1e-4)
    assert comparison["cosine"] == pytest.approx(expected.weight_cosine, abs=1e-4)
    weights = {
        pair[:2]: pair[2:] for pair in (*expected.shared_edges, *expected.edges_only_first, *expected.edges_only_second)
    }
    listed = [((source, target), (first, second)) for source, target, first, second in comparison["edges"]]
    for edge, pair in listed:
        assert pair == pytest.approx(weights[edge], rel=1e-5)
    largest = sorted((abs(first - second) for first, second in weights.values()), reverse=True)
    assert [abs(first - second) for _, (first, second) in listed] == pytest.approx(
        largest[: len(listed)], rel=1e-4, abs=1e-5
    )
    for end in {end for edge, _ in listed for end in edge}:
        name = comparison["names"][end]
        assert not name.startswith(end)  # names, not ids
        assert not re.match(r"feature \d+", name)
        assert not name.startswith("fires ")


@pytest.mark.parametrize("across", [False, True])
def test_every_node_has_the_id_by_which_it_is_matched(
    explorer: Explorer, graphs: dict[str, AttributionGraph], across: bool
) -> None:
    made = _compare(explorer, [*graphs], across=across)
    shared = set(made["comparison"]["shared"])
    keys = [set(side["keys"].values()) for side in made["sides"]]
    assert keys[0] & keys[1] == shared
    for side in made["sides"]:
        assert {node["id"] for node in side["picture"]["nodes"]} <= set(side["keys"])
        for node, key in side["anywhere"].items():
            assert key.split(":").count("*") == 1
            assert side["keys"][node] == (key if across else node)


def test_one_prompt_alone_is_shown(explorer: Explorer, graphs: dict[str, AttributionGraph]) -> None:
    made = _compare(explorer, [next(iter(graphs)), None])
    assert made["comparison"] is None
    assert [side["prompt"] for side in made["sides"]] == [PROMPT]


def test_a_graph_is_the_same_as_itself(explorer: Explorer, graphs: dict[str, AttributionGraph]) -> None:
    key = next(iter(graphs))
    comparison = _compare(explorer, [key, key])["comparison"]
    assert (comparison["only"], comparison["overlaps"], comparison["cosine"]) == ([0, 0], [1, 1], pytest.approx(1))
    assert all(first == second for _, _, first, second in comparison["edges"])


def test_the_persons_labels_name_the_nodes(explorer: Explorer, graphs: dict[str, AttributionGraph]) -> None:
    key, graph = next(iter(graphs.items()))
    pruned = graph.prune(PERCENT / 100, EDGE_THRESHOLD)
    row = int(pruned.of_kind(NodeKind.FEATURE).nonzero()[0])
    name = f"L{int(pruned.nodes.layer[row])}/{int(pruned.nodes.index[row])}"
    side = _compare(explorer, [key, None], labels={name: "my own words"})["sides"][0]
    labels = {node["id"]: node["label"] for node in side["picture"]["nodes"]}
    assert labels[pruned.node(row).id] == "my own words"


_REQUEST = {"first": "start", "second": "start", "percent": 80, "session": session_json(Session())}


@pytest.mark.parametrize(
    "changes",
    [
        {"first": "unknown"},
        {"second": "unknown"},
        {"first": None},
        {"percent": 0},
        {"percent": "80"},
        {"session": {"percent": 0}},
    ],
)
def test_a_mistake_is_refused_before_anything_is_computed(explorer: Explorer, changes: dict[str, Any]) -> None:
    with refuses(ConfigError):
        start(explorer, "compare", {**_REQUEST, **changes})


@pytest.fixture
def measuring(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> Explorer:
    """The explorer, which measures on a short text and remembers nothing from other tests."""
    monkeypatch.setattr(explorer, "measurements", Measurements(HeldOutText(max_tokens=200)))
    return explorer


@pytest.mark.slow
def test_two_transcoders_are_measured_on_the_same_text(measuring: Explorer, tmp_path: Path) -> None:
    models = measuring.loaded()
    other = random_transcoder(models.model)
    save_transcoder(other, tmp_path / "second")
    made = done(start(measuring, "compare_transcoders", {"source": str(tmp_path / "second")})).result
    own, second = measuring.measurements.report, measuring.measurements.measure(models, other, "second")
    assert own is not None
    assert [row[0] for row in made["rows"]] == ["embedded", "second"]
    assert [row[1] for row in made["rows"]] == [f"{each.evaluation.reconstruction.fvu:.4f}" for each in (own, second)]
    assert own.measured_on == second.measured_on
    assert len(made["heads"]) == len(made["rows"][0])
    assert made["figure"]["data"]


def test_an_address_alone_loads_nothing(measuring: Explorer) -> None:
    assert done(start(measuring, "compare_transcoders", {"source": "/nowhere", "kept": True})).result is None


@pytest.mark.parametrize(("source", "error"), [("", ConfigError), ("  ", ConfigError), (3, ConfigError)])
def test_a_source_is_a_text(measuring: Explorer, source: Any, error: type[Exception]) -> None:
    with refuses(error, "source"):
        start(measuring, "compare_transcoders", {"source": source})


def test_a_transcoder_that_cannot_be_read_is_named(measuring: Explorer, tmp_path: Path) -> None:
    job = start(measuring, "compare_transcoders", {"source": str(tmp_path)})
    assert job.finished.wait(120)
    assert job.state == "failed"
    assert tmp_path.name in job.error
    assert job.error.endswith(".")
    assert "\n" not in job.error
