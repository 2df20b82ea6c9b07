"""The same settings give the same numbers as before the restructuring of November 2026.

The JSON files in this folder hold numbers that the code gave before it: weights after a few training steps, edges and
scores of graphs, an evaluation, an intervention and a continuation, all of the embedded model. That code was given the
transcoder that ships since 28 November. It does not know different numbers of active features for each layer, so the
numbers of a conversion are those of the code of that day. Processors add numbers
in different orders, which round differently, so most numbers are compared to a few parts in 100,000. Numbers that
rounding changes more, such as a count of the active features, are compared less closely.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from open_clt import AttributionGraph, Intervention, OpenCrossLayerTranscoder, attribute, faithfulness, intervene
from open_clt.data.contexts import pack_contexts
from open_clt.embedded.corpus import generate_texts
from open_clt.evaluation.conversion import convert_transcoder
from open_clt.evaluation.measured_on import measured_on
from open_clt.evaluation.report import report
from open_clt.graphs.nodes import NodeId, NodeKind
from open_clt.replacement.interventions.intervention import Constrained, Iterative
from open_clt.training.flags.command_line import train_command

FOLDER = Path(__file__).parent
PROMPT = "The capital of the state containing Dallas is"


def stored(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def close(value: Any) -> Any:
    return pytest.approx(value, rel=5e-5, abs=1e-6)


@pytest.fixture(scope="module")
def clt() -> OpenCrossLayerTranscoder:
    return OpenCrossLayerTranscoder.from_pretrained("embedded")


@pytest.fixture(scope="module")
def contexts(clt: OpenCrossLayerTranscoder) -> torch.Tensor:
    return pack_contexts(list(generate_texts(300, seed=3)), clt.language_model, 40, from_start=True)[:24]


@pytest.mark.parametrize(
    "case",
    ["topk", "jumprelu", *(pytest.param(case, marks=pytest.mark.slow) for case in ("batchtopk_skip_reach", "molt"))],
)
def test_training_gives_the_same_weights(case: str, tmp_path: Path) -> None:
    expected = stored("training")
    flags = [*expected["common"], *expected["cases"][case]["flags"], "--output", str(tmp_path / "out")]
    result = train_command(flags).training
    assert result.curves.loss == close(expected["cases"][case]["loss"])
    tensors = load_file(tmp_path / "out" / "transcoder.safetensors")
    assert tensors.keys() == expected["cases"][case]["weights"].keys()
    for name, weights in expected["cases"][case]["weights"].items():
        tensor = tensors[name].double()
        assert list(tensor.shape) == weights["shape"], name
        assert float(tensor.norm()) == pytest.approx(weights["norm"], rel=1e-4), name
        assert tensor.flatten()[:2].tolist() == pytest.approx(weights["first"], rel=1e-3, abs=1e-5), name
    held_out = result.summary()["held_out"]
    for name, value in expected["cases"][case]["held_out"].items():
        # Rounding decides whether an activation beside a threshold counts as active: l0 differs between processors.
        assert held_out[name] == pytest.approx(value, rel=1e-3 if name.startswith("l0") else 1e-4), name


@pytest.mark.parametrize("case", ["budget", "whole", "compatible"])
def test_graphs_have_the_same_edges_and_scores(clt: OpenCrossLayerTranscoder, case: str) -> None:
    expected = stored("graph")[case]
    graph = attribute(clt.language_model, clt.transcoder, PROMPT, **expected["settings"])
    assert (graph.n_nodes, graph.n_edges) == (expected["n_nodes"], expected["n_edges"])
    assert graph.scores()._asdict() == close(expected["scores"])
    pruned = graph.prune()
    assert [pruned.n_nodes, pruned.n_edges] == expected["pruned"]
    assert pruned.scores()._asdict() == close(expected["pruned_scores"])
    assert graph.path_lengths().tolist()[:6] == close(expected["path_lengths"])
    indices = {node_id: index for index, node_id in enumerate(graph.ids())}
    adjacency, influence = graph.adjacency(), graph.influence()
    for source, target, weight in expected["edges"]:
        assert float(adjacency[indices[target], indices[source]]) == close(weight)
    for node_id, value in expected["influence"]:
        assert float(influence[indices[node_id]]) == close(value)


def test_a_graph_has_the_same_faithfulness(clt: OpenCrossLayerTranscoder) -> None:
    expected = stored("graph")["faithfulness"]
    graph = attribute(clt.language_model, clt.transcoder, PROMPT)
    measured = faithfulness(graph, clt.replacement_model(), max_features=6).report()
    assert measured["features"] == expected["features"]
    for effects in ("direct", "total"):
        assert measured[effects] == pytest.approx(expected[effects], rel=1e-3)
    # A divergence under 1e-6 is the rounding of the probabilities.
    expected_divergence = pytest.approx(expected["influence"]["kl_divergence"], rel=3e-3, abs=1e-6)
    assert measured["influence"]["kl_divergence"] == expected_divergence


@pytest.mark.slow
def test_a_report_has_the_same_numbers(clt: OpenCrossLayerTranscoder, contexts: torch.Tensor) -> None:
    expected = stored("evaluation")
    assert measured_on(contexts).fingerprint == expected["fingerprint"]
    reported = report(clt.replacement_model(), contexts, name="x", prompts=[PROMPT], max_feature_nodes=64)
    for name, value in expected["report_row"].items():
        assert reported.row()[name] == (value if isinstance(value, str) else close(value)), name
    for layer, before in zip(reported.layers(), expected["layers"], strict=True):
        for name, value in before.items():
            assert layer[name] == close(value), name


def test_a_conversion_gives_the_same_thresholds(clt: OpenCrossLayerTranscoder, contexts: torch.Tensor) -> None:
    expected = stored("evaluation")
    converted = convert_transcoder(clt.language_model, clt.transcoder, contexts)
    after = converted.after.as_dict()
    for name, value in expected["converted"].items():
        assert after[name] == close(value), name


@pytest.mark.parametrize("patching", [Constrained(), Iterative()], ids=["constrained", "iterative"])
def test_an_intervention_has_the_same_effects(clt: OpenCrossLayerTranscoder, patching: Constrained | Iterative) -> None:
    expected = stored("evaluation")["intervention"]
    node = NodeId.parse(expected["node"], clt.language_model.n_layers)
    intervention = Intervention(node.layer, node.position, node.index, value=0.0)
    record = intervene(clt.replacement_model(), PROMPT, intervention, patching)
    effects = expected[patching.kind]
    assert record.kl_divergence == pytest.approx(effects["kl"], rel=1e-3)
    assert [top.token for top in record.top_after] == [token for token, _ in effects["top"]]
    assert [top.probability for top in record.top_after] == pytest.approx(
        [probability for _, probability in effects["top"]], rel=1e-3
    )
    assert record.changes.layer.shape[0] == effects["n"]


def test_the_replacement_model_writes_the_same_continuation(clt: OpenCrossLayerTranscoder) -> None:
    generated = clt.replacement_model().generate(PROMPT, max_new_tokens=12)
    assert generated.continuation == stored("evaluation")["generation"]


def test_a_graph_of_the_first_format_is_read(clt: OpenCrossLayerTranscoder) -> None:
    graph = AttributionGraph.load(FOLDER / "graph_v1")
    computed = attribute(clt.language_model, clt.transcoder, PROMPT, max_feature_nodes=40).prune()
    assert graph.ids() == computed.ids()
    torch.testing.assert_close(graph.edges.weight, computed.edges.weight, rtol=1e-4, atol=1e-6)
    assert (graph.info.settings.use_first_position, graph.info.settings.max_feature_nodes) == (False, 40)
    assert graph.of_kind(NodeKind.FEATURE).sum() == computed.of_kind(NodeKind.FEATURE).sum()
