"""The truth suite: shortcuts by enumeration of paths, prompts whose cue is known, and one row of the table."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from open_clt.embedded import facts
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.operations import subgraph
from open_clt.language.language_model import LanguageModel, load_language_model
from tests.graphs.hand_graph import NAMES, hand_graph

BENCHMARKS = Path(__file__).parents[3] / "benchmarks" / "truth"


class Modules(NamedTuple):
    """The scripts, which import each other by bare names."""

    suite: Any
    known_prompts: Any


@pytest.fixture(scope="module")
def scripts() -> Iterator[Modules]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield Modules(*(importlib.import_module(name) for name in Modules._fields))
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def embedded() -> LanguageModel:
    return load_language_model("embedded")


def one_output() -> AttributionGraph:
    return subgraph(hand_graph(), [name for name in NAMES if name not in ("logit:2:41", "target:2:1")])


def influence_by_paths(graph: AttributionGraph, source: int, avoided: set[int]) -> float:
    """The sum over all paths of positive edges of the product of their shares of the rows."""
    weights = graph.adjacency()
    shares = weights / weights.abs().sum(1, keepdim=True).clamp(min=1e-30)
    output = graph.ids().index("logit:2:40")

    def onwards(node: int) -> float:
        if node == output:
            return 1.0
        following = [int(target) for target in (shares[:, node] > 0).nonzero().flatten()]
        return sum(float(shares[t, node]) * onwards(t) for t in following if t not in avoided)

    return onwards(source)


@pytest.mark.parametrize("through", [["0:1:5"], ["1:2:3"], ["0:1:5", "0:2:5"], []])
def test_a_bypass_is_the_share_of_paths_past_the_chosen_nodes(scripts: Modules, through: list[str]) -> None:
    graph = one_output()
    chosen = {graph.ids().index(name) for name in through}
    mask = torch.tensor([row in chosen for row in range(graph.n_nodes)])
    source = graph.ids().index("token:1:11")
    expected = influence_by_paths(graph, source, chosen) / influence_by_paths(graph, source, set())
    assert scripts.suite.bypass_share(graph, 1, mask) == pytest.approx(expected, rel=1e-6)
    assert (expected == 1.0) == (not through)
    # The edges of the last token are negative, so it has no positive influence of which there could be a share.
    assert scripts.suite.bypass_share(graph, 2, mask) is None


@pytest.mark.parametrize("development", [False, True])
def test_the_cue_is_the_token_that_the_rule_names(scripts: Modules, embedded: LanguageModel, development: bool) -> None:
    for task in scripts.known_prompts.TASKS:
        prompts = scripts.known_prompts.known_prompts(embedded, task, 20, development=development)
        assert len(prompts) >= 15
        for known in prompts:
            tokens = embedded.token_strings(embedded.tokenize(known.prompt))
            cue = tokens[known.cue].strip()
            assert known.cue > 0
            assert known.competitor != known.answer
            if task == "two_hop":
                state = next(state for state in facts.STATES if f" {state.capital}" == known.answer)
                assert cue in state.cities
            if task in ("indirect_object", "induction"):
                assert cue == known.answer.strip()
            if task == "indirect_object":
                assert known.prompt.count(str(known.competitor).strip()) == 2
            if task == "agreement":
                plural = cue in {many for _, many in facts.NOUNS}
                assert plural == (known.answer in (" are", " were", " have"))
            if task == "pronoun":
                assert (cue in facts.WOMEN) == (known.answer in (" she", " her"))


def test_development_prompts_are_not_held_out(scripts: Modules, embedded: LanguageModel) -> None:
    for task in scripts.known_prompts.TASKS:
        held_out, development = (
            {known.prompt for known in scripts.known_prompts.known_prompts(embedded, task, 60, development=chosen)}
            for chosen in (False, True)
        )
        assert not held_out & development


def test_a_share_has_the_interval_of_its_bootstrap(scripts: Modules) -> None:
    generator = torch.Generator().manual_seed(0)
    rng = random.Random(0)
    values = [float(rng.random() < 0.7) for _ in range(400)]
    share = scripts.suite.Share.of(values, generator)
    mean = sum(values) / len(values)
    spread = 1.96 * (mean * (1 - mean) / len(values)) ** 0.5
    assert share.mean == pytest.approx(mean)
    assert share.low == pytest.approx(mean - spread, abs=0.01)
    assert share.high == pytest.approx(mean + spread, abs=0.01)
    assert scripts.suite.Share.of([], generator) is None


@pytest.mark.slow
def test_the_last_line_has_an_object_for_each_dictionary(scripts: Modules, capsys: pytest.CaptureFixture[str]) -> None:
    scripts.suite.main(["--limit", "2"])
    row = json.loads(capsys.readouterr().out.splitlines()[-1])["embedded"]
    for task in scripts.known_prompts.TASKS:
        assert {"cue", "necessary", "control", "sufficient"} <= row[task].keys()
    assert 0 <= row["two_hop"]["bypass"]["mean"] <= 1
    assert row["dashes"] == {}
