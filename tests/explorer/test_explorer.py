"""The explorer without its pages: what jobs compute equals what Python's functions compute."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

from open_clt.attribution.attribute import attribute
from open_clt.attribution.heads import head_contributions
from open_clt.attribution.qk import explain_edge
from open_clt.embedded import TRANSCODER_DIRECTORY
from open_clt.errors import CheckpointError, ConfigError
from open_clt.evaluation.effects import predicted_changes
from open_clt.explorer.explorer import Explorer
from open_clt.explorer.exports import EXPORTS
from open_clt.explorer.feature_list import Query, listed
from open_clt.explorer.jobs.graphs import brief_names
from open_clt.explorer.jobs.table import start
from open_clt.explorer.models import Source
from open_clt.explorer.session.circuit import circuit_of
from open_clt.explorer.session.session import Group, Session, Steer, session_json
from open_clt.explorer.session.session_file import SavedSession, load_session, save_session
from open_clt.explorer.traces import Trace, Traces
from open_clt.features.feature_files import FeatureFiles
from open_clt.features.labelling.automatic import in_brief
from open_clt.features.table import FeatureRow, row_of
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.operations import node_numbers, subgraph
from open_clt.graphs.supernodes import group, suggest_supernodes
from open_clt.replacement.interventions.intervene import intervene
from open_clt.replacement.interventions.intervention import Iterative, interventions_on
from open_clt.transcoders.feature import Feature
from tests.explorer.conftest import PROMPT, done
from tests.features.rich_record import rich_record
from tests.graphs.formats.viewer_schema import broken_rules
from tests.graphs.hand_graph import hand_attention, hand_graph
from tests.refusals import refuses


@pytest.fixture(scope="module")
def trace(explorer: Explorer) -> Trace:
    return explorer.trace_of(done(start(explorer, "trace", {"prompt": PROMPT})).result["graph"])


@pytest.fixture(scope="module")
def features(trace: Trace) -> list[str]:
    """Ids of the features of the traced graph, most influential first."""
    graph = trace.graph
    rows = graph.of_kind(NodeKind.FEATURE).nonzero().flatten()
    order = graph.influence()[rows].argsort(descending=True)
    return [graph.node(row).id for row in rows[order].tolist()]


def _request(trace: Trace, **choices: Any) -> dict[str, Any]:
    return session_json(Session(graph=trace.key, **choices))


def test_a_trace_is_the_graph_that_python_computes(explorer: Explorer, trace: Trace) -> None:
    models = explorer.loaded()
    expected = attribute(models.model, models.transcoder, PROMPT, max_feature_nodes=60)
    assert trace.graph.ids() == expected.ids()
    assert torch.equal(trace.graph.edges.weight, expected.edges.weight)
    last = trace.predictions[-1]
    logits = models.model.logits(torch.tensor([expected.info.tokens]))[0, -1].softmax(-1)
    assert last["model"][0][1] == pytest.approx(float(logits.max()), abs=1e-4)
    assert len(trace.predictions) == len(expected.info.tokens)


def test_a_prompt_is_traced_once(explorer: Explorer, trace: Trace) -> None:
    assert done(start(explorer, "trace", {"prompt": PROMPT})).result == {"graph": trace.key}
    assert explorer.trace_of(trace.key) is trace


def test_a_trace_is_found_in_the_cache_after_a_restart(explorer: Explorer, trace: Trace) -> None:
    later = Traces(explorer.traces._folder).find(trace.key)  # pyright: ignore[reportPrivateUsage]
    assert later is not None
    assert later.predictions == trace.predictions
    assert torch.equal(later.graph.edges.weight, trace.graph.edges.weight)


def test_a_damaged_trace_of_the_cache_is_not_used(trace: Trace, tmp_path: Path) -> None:
    Traces(tmp_path).keep(trace)
    (tmp_path / trace.key / "graph.safetensors").write_bytes(b"broken")
    assert Traces(tmp_path).find(trace.key) is None
    assert Traces(tmp_path).find("../../etc") is None


def test_the_view_is_the_pruned_graph(explorer: Explorer, trace: Trace) -> None:
    view = done(start(explorer, "view", {"session": _request(trace, percent=60)})).result
    pruned = trace.graph.prune(0.6, 0.98)
    assert view["shown"] == {"nodes": pruned.n_nodes, "edges": pruned.n_edges}
    assert {node["id"] for node in view["picture"]["nodes"]} <= set(pruned.ids())
    assert view["scores"]["shown"] == pytest.approx(list(pruned.scores()), abs=1e-4)
    assert view["left_out"] == trace.graph.info.left_out() != ""


def test_a_label_of_the_person_is_the_label_in_the_view(explorer: Explorer, trace: Trace, features: list[str]) -> None:
    layer, _, index = features[0].split(":")
    text = "<img src=x onerror=alert(1)>"
    view = done(start(explorer, "view", {"session": _request(trace, labels={f"L{layer}/{index}": text})})).result
    assert text in [node["label"] for node in view["picture"]["nodes"] if node["id"] == features[0]]


def test_the_circuit_is_the_grouped_graph_of_the_pins(explorer: Explorer, trace: Trace, features: list[str]) -> None:
    pins = tuple(features[:4])
    of_layer_0 = tuple(pin for pin in pins if pin.startswith("0:"))  # so the group and the other pins form no cycle
    assert 1 < len(of_layer_0) < 4
    session = Session(graph=trace.key, pins=pins, groups=(Group(name="g", members=of_layer_0),))
    view = done(start(explorer, "circuit", {"session": session_json(session)})).result
    ends = [trace.graph.node(row).id for row in _ends(trace.graph)]
    expected = group(subgraph(trace.graph, [*pins, *ends]), session.supernodes)
    assert view["scores"] == pytest.approx(list(expected.scores()), abs=1e-4)
    assert view["names"] == [each.label for each in expected.groups]
    assert [weight for *_, weight in view["edges"]] == pytest.approx(expected.edges.weight.tolist(), rel=1e-4)
    assert done(start(explorer, "circuit", {"session": _request(trace)})).result is None


def _ends(graph: AttributionGraph) -> list[int]:
    return graph.of_kind(NodeKind.EMBEDDING, NodeKind.LOGIT, NodeKind.TARGET).nonzero().flatten().tolist()


def test_suggested_groups_are_those_of_python(explorer: Explorer, trace: Trace) -> None:
    made = done(start(explorer, "suggestions", {"session": _request(trace, percent=90)})).result
    models = explorer.loaded()
    labels = {row.feature: row.label for row in models.rows if row.label}
    expected = suggest_supernodes(trace.graph.with_labels(labels).prune(0.9, 0.98), models.transcoder)
    assert [suggested["members"] for suggested in made] == [list(each.members) for each in expected]
    for suggested, each in zip(made, expected, strict=True):
        assert suggested["name"] in (in_brief(each.label), each.label)
    assert len({suggested["name"] for suggested in made}) == len(made)
    assert any(suggested["name"] != each.label for suggested, each in zip(made, expected, strict=True))


def test_names_that_would_be_equal_in_brief_stay_whole() -> None:
    names = ["fires on “ a”", "fires on “a”", "fires on “ b”; promotes “ c”"]
    assert brief_names(names) == [*names[:2], "“b” → “c”"]


def test_heads_of_an_edge_add_up_to_it(explorer: Explorer, trace: Trace, features: list[str]) -> None:
    graph, models = trace.graph, explorer.loaded()
    target = graph.node(graph.n_nodes - 1).id
    parts = done(start(explorer, "heads", {"graph": trace.key, "source": features[0], "target": target})).result
    source_row, target_row = node_numbers(graph, [features[0], target]).tolist()
    expected = head_contributions(models.model, models.transcoder, graph, target_row).edge(source_row)
    assert parts["total"] == pytest.approx(float(graph.adjacency()[target_row, source_row]), abs=1e-4)
    layer, head, value = parts["heads"][0]
    assert value == pytest.approx(float(expected.heads[layer, head]), abs=1e-6)
    assert abs(value) == pytest.approx(float(expected.heads.abs().max()), abs=1e-6)


@pytest.mark.slow
def test_a_head_of_an_edge_is_explained(explorer: Explorer, trace: Trace, features: list[str]) -> None:
    graph, models = trace.graph, explorer.loaded()
    ends = {"graph": trace.key, "source": features[0], "target": graph.node(graph.n_nodes - 1).id}
    layer, head, value = done(start(explorer, "heads", ends)).result["heads"][0]
    looks = done(start(explorer, "attention", {**ends, "layer": layer, "head": head})).result
    rows = node_numbers(graph, [ends["source"], ends["target"]]).tolist()
    expected = explain_edge(models.model, models.transcoder, graph, *rows, share=0.0)
    of_head = [part for part in expected if part.carried.look[:2] == (layer, head)]
    assert sum(part.carried.weight for part in of_head) == pytest.approx(value, abs=1e-5)
    assert [look["key"] for look in looks] == [part.carried.look.key for part in of_head[:2]]
    weights = [pair.weight for pair in of_head[0].explanation.pairs(6, constants=False)]
    assert [weight for *_, weight in looks[0]["pairs"]] == weights
    with refuses(ConfigError, "head"):
        start(explorer, "attention", {**ends, "layer": layer, "head": "1"})


def test_what_a_graph_stores_of_attention_is_shown_without_models(tmp_path: Path) -> None:
    stored = replace(hand_graph(), attention=hand_attention()).save(tmp_path / "cat")
    made = Explorer(Source(transcoder=str(tmp_path / "missing")), cache=tmp_path / "cache", graph=stored)
    try:
        key = made.status()["start"]
        shown = done(start(made, "view", {"session": session_json(Session(graph=key))})).result
        assert (shown["name"], shown["has_attention"]) == ("cat", True)
        ends = {"graph": key, "source": "0:1:5", "target": "1:2:3"}
        parts = done(start(made, "heads", ends)).result
        assert parts == {"direct": 0.5, "total": 2.0, "heads": [[1, 2, 1.5]], "share": 0.25}
        (look,) = done(start(made, "attention", {**ends, "layer": 1, "head": 2})).result
        assert (look["key"], look["weight"], look["attention"], look["constant"]) == (1, 1.5, 0.75, -0.5)
        assert look["pairs"][0] == ["0:2:7 ' cat\\n' animals", "0:1:8 ' the'", 1.5]
        assert done(start(made, "attention", {**ends, "layer": 0, "head": 0})).result == []
        other = done(start(made, "heads", {**ends, "source": "0:2:5"})).result
        assert other == {"direct": 1.5, "total": 1.5, "heads": [], "share": 0.25}
    finally:
        made.close()
    with refuses(CheckpointError, "nothing"):
        Explorer(Source(), cache=tmp_path / "cache", graph=tmp_path / "nothing")


def test_steering_equals_intervene_and_the_prediction_of_the_graph(
    explorer: Explorer, trace: Trace, features: list[str]
) -> None:
    steer = Steer(name="x", members=(features[0],), scale=0.0)
    run = done(start(explorer, "steer", {"session": _request(trace, steers=(steer,)), "frozen": "nothing"})).result
    record = intervene(explorer.loaded().corrected, PROMPT, interventions_on(features[0], value=0.0), Iterative())
    assert [each["token"] for each in run["after"]] == [top.token for top in record.top_after]
    assert [each["probability"] for each in run["after"]] == pytest.approx(
        [top.probability for top in record.top_after], abs=1e-5
    )
    assert run["kl_divergence"] == pytest.approx(record.kl_divergence, abs=1e-6)
    graph = trace.graph
    ablated = node_numbers(graph, [features[0]])
    predicted = predicted_changes(graph, ablated)[0, graph.of_kind(NodeKind.LOGIT)]
    assert [each["predicted"] for each in run["effects"]] == pytest.approx(predicted.tolist(), abs=1e-5)


def test_direct_effects_are_what_the_edges_predict(explorer: Explorer, trace: Trace, features: list[str]) -> None:
    steers = (
        Steer(name="x", members=tuple(features[:2]), scale=0.0),
        Steer(name="y", members=(features[2],), scale=-2.0),
        Steer(name="z", members=(features[3],), scale=3.0),
    )
    run = done(start(explorer, "steer", {"session": _request(trace, steers=steers), "frozen": "direct"})).result
    for effect in run["effects"]:
        assert effect["measured"] == pytest.approx(effect["predicted"], abs=1e-3)
        assert abs(effect["predicted"]) > 0.01


def test_a_factor_of_one_changes_nothing(explorer: Explorer, trace: Trace, features: list[str]) -> None:
    steers = (Steer(name="x", members=tuple(features[:3]), scale=1.0, everywhere=True),)
    run = done(start(explorer, "steer", {"session": _request(trace, steers=steers), "frozen": "nothing"})).result
    assert run["kl_divergence"] == 0
    assert run["before"] == run["after"]


def test_what_cannot_be_asked_is_refused_at_once(explorer: Explorer, trace: Trace) -> None:
    with refuses(ConfigError, "empty"):
        start(explorer, "trace", {"prompt": "  "})
    with refuses(ConfigError, "trace the prompt"):
        start(explorer, "view", {"session": session_json(Session(graph="unknown"))})
    with refuses(ConfigError, "session"):
        start(explorer, "view", {"session": 3})
    with refuses(ConfigError, "40"):
        start(explorer, "continuations", {"session": _request(trace), "tokens": 1000})
    with refuses(ConfigError, "add a feature"):
        start(explorer, "steer", {"session": _request(trace), "frozen": "nothing"})


def test_a_prompt_that_is_too_long_is_refused_before_anything_runs(explorer: Explorer) -> None:
    with pytest.raises(Exception, match="tokens"):
        start(explorer, "trace", {"prompt": "The capital of Texas is Austin. " * 300})


def test_a_feature_is_described_with_and_without_records(explorer: Explorer) -> None:
    shown = explorer.feature("L1/5")
    assert shown["feature"] == "L1/5"
    assert shown["top"]
    with refuses(ConfigError, "L9/5"):
        explorer.feature("L9/5")
    with refuses(ConfigError, "Texas"):
        explorer.feature("Texas")


@pytest.mark.slow
def test_one_feature_is_measured_on_the_text_of_the_explorer(explorer: Explorer) -> None:
    row = max(explorer.loaded().rows, key=lambda row: row.density)
    shown = done(start(explorer, "measure", {"feature": str(row.feature)})).result
    assert shown["density"] == pytest.approx(row.density, rel=0.3)
    assert shown["groups"][0]["examples"]
    assert explorer.feature(str(row.feature)) == shown
    explorer.measured.clear()


@pytest.mark.parametrize("kind", EXPORTS)
def test_every_export_is_a_file_of_its_kind(explorer: Explorer, trace: Trace, features: list[str], kind: str) -> None:
    request = _request(trace, pins=(features[0],))
    result = done(start(explorer, "export", {"session": request, "kind": kind})).result
    file = explorer.file(result["file"])
    assert file is not None
    beginnings = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF", "html": b"<!DOCTYPE html>", "json": b"{"}
    assert file.content.startswith(beginnings.get(kind, b"{"))
    assert file.name.startswith("the-capital-of")
    if kind == "png":
        assert Image.open(io.BytesIO(file.content)).size > (400, 300)
    if kind == "svg":
        assert ElementTree.fromstring(file.content).tag.endswith("svg")
    if kind == "json":
        assert broken_rules(json.loads(file.content)) == []
    if kind in ("json", "session"):
        opened = explorer.opened(file.name, file.content)
        assert opened.pins == (features[0],)
        again = explorer.trace_of(opened.graph).graph
        assert set(again.ids()) <= set(trace.graph.ids())


def test_a_session_file_holds_the_session_and_the_graph(trace: Trace, features: list[str], tmp_path: Path) -> None:
    pins = tuple(features[:3])
    session = Session(graph=trace.key, pins=pins, groups=(Group(name="g", members=pins[:2]),), labels={"L0/1": "Texas"})
    path = save_session(SavedSession(session, trace, "abc"), tmp_path / "s.json")
    saved = load_session(path)
    assert saved.session == session
    assert saved.trace.predictions == trace.predictions
    assert torch.equal(saved.graph.edges.weight, trace.graph.edges.weight)
    assert saved.graph.labels == session.feature_labels
    circuit, expected = saved.circuit, circuit_of(trace.graph, session)
    assert circuit is not None
    assert expected is not None
    assert torch.equal(circuit.edges.weight, expected.edges.weight)


def test_files_that_are_not_sessions_are_refused(explorer: Explorer, trace: Trace, tmp_path: Path) -> None:
    for content in (b"", b"[]", b"{}", b'{"format": "open-clt-session", "format_version": 1}', b"\x00" * 99):
        with pytest.raises(CheckpointError):
            explorer.opened("a.json", content)
    other = save_session(SavedSession(Session(graph=trace.key), trace, "another"), tmp_path / "s.json")
    with refuses(ConfigError, "another", "s.json"):
        explorer.opened("s.json", other.read_bytes())


def test_a_source_that_cannot_be_loaded_is_a_sentence(tmp_path: Path) -> None:
    made = Explorer(Source(transcoder=str(tmp_path / "missing")), cache=tmp_path)
    job = start(made, "trace", {"prompt": PROMPT})
    assert job.finished.wait(120)
    assert "missing" in job.error
    assert "missing" in made.status()["failed"]
    with refuses(ConfigError, "missing"):
        made.loaded()
    made.close()


def found(rows: list[FeatureRow], text: str) -> list[str]:
    return [row["feature"] for row in listed(rows, Query(text=text, wide=True), {}, None)["rows"]]


def test_every_text_of_a_record_that_a_list_could_show_is_found() -> None:
    record = rich_record(0, 1)
    rows = [row_of(record), row_of(replace(rich_record(0, 2), examples=(), top_tokens=(), fires_on=()))]
    effects = [*(effect.token for effect in record.top_tokens), *(share.token for share in record.fires_on)]
    assert len(effects) > 2
    for token in effects:
        assert "L0/1" in found(rows, token.strip())
    example = "".join(record.examples[0].tokens)
    assert found(rows, example[2:-2]) == ["L0/1"]
    assert found(rows, example[2:-2].upper()) == ["L0/1"]
    assert found(rows, "in none of the records") == []


def test_the_feature_of_texas_is_found_by_the_words_of_its_examples() -> None:
    rows = FeatureFiles(TRANSCODER_DIRECTORY).table()
    texas = next(row for row in rows if row.feature == Feature(4, 128))
    shown = " ".join([texas.label, *texas.fires_on, *texas.top_tokens])
    assert "find" not in shown
    query = Query(text="You can find Austin in Texas", layer=4, wide=True)
    pages = [listed(rows, replace(query, page=page), {}, None)["rows"] for page in range(4)]
    assert "L4/128" in [row["feature"] for page in pages for row in page]
    assert listed(rows, replace(query, wide=False), {}, None)["total"] == 0


@pytest.mark.parametrize("layer", [0, 4])
def test_the_table_that_ships_is_that_of_its_records(layer: int) -> None:
    files = FeatureFiles(TRANSCODER_DIRECTORY)
    rows = [row for row in files.table() if row.feature.layer == layer][::50]
    assert rows == [row_of(record) for record in files.records([row.feature for row in rows])]
