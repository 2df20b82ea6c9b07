"""The two-hop benchmark: the features of a state, their controls, and the shares that are counted."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from open_clt.embedded import facts, templates
from open_clt.graphs.operations import subgraph
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.replacement.interventions.observation import observe
from open_clt.replacement.model import ReplacementModel
from tests.graphs.hand_graph import NAMES, hand_graph

BENCHMARKS = Path(__file__).parents[3] / "benchmarks" / "truth"
SHARES = {"path_share", "ablation_share", "swap_share", "all_share", "prompts"}
CONTROLS = {"control_many_share", "control_much_share", "control_exchange_share"}


class Modules(NamedTuple):
    """The scripts, which import each other by bare names."""

    known_circuits: Any
    state_features: Any


@pytest.fixture(scope="module")
def scripts() -> Iterator[Modules]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        names: list[ModuleType] = [importlib.import_module(name) for name in Modules._fields]
        yield Modules(*names)
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_a_path_has_positive_edges_only(scripts: Modules) -> None:
    one_output = subgraph(hand_graph(), [name for name in NAMES if name not in ("logit:2:41", "target:2:1")])
    # Feature 0:2:7 has an edge from the token, but its own edges are negative.
    assert scripts.state_features.on_path(one_output, 1) == {(0, 1, 5), (0, 2, 5), (1, 2, 3)}
    assert scripts.state_features.on_path(one_output, 2) == set()


def test_as_much_takes_the_number_of_features_that_write_most_nearly_as_much(scripts: Modules) -> None:
    others = [4.0, 2.0, 2.0, 2.0]
    written = {0: 0.0, 1: 4.0, 2: 6.0, 3: 8.0, 4: 10.0}
    for total in (0.5, 2.5, 5.5, 6.5, 9.5, 30.0):
        nearest = min(written, key=lambda count: abs(written[count] - total))
        assert scripts.state_features.as_much([total / 2, total / 2], others) == nearest
    assert scripts.state_features.as_many([1.0, 1.0], others) == 2


def test_controls_are_other_features_at_the_same_layers_and_positions(scripts: Modules) -> None:
    pool = {
        (layer, position, feature): 1.0 + feature for layer in (0, 1) for position in (3, 4) for feature in range(9)
    }
    members = {place: pool[place] for place in [(0, 3, 1), (0, 3, 2), (1, 4, 8)]}
    norms = torch.ones(2, 9)
    for enough in (scripts.state_features.as_many, scripts.state_features.as_much):
        drawn = scripts.state_features.matched(members, pool, norms, enough, torch.Generator().manual_seed(1))
        assert drawn
        assert drawn.items() <= pool.items()
        assert not drawn.keys() & members.keys()
        assert {place[:2] for place in drawn} <= {(0, 3), (1, 4)}
    many = scripts.state_features.matched(
        members, pool, norms, scripts.state_features.as_many, torch.Generator().manual_seed(1)
    )
    assert sorted(place[:2] for place in many) == [(0, 3), (0, 3), (1, 4)]


def test_the_features_of_a_state_are_more_active_for_its_other_cities(scripts: Modules) -> None:
    cities = scripts.state_features.CITIES
    means = torch.ones(len(cities), 2, 1, 4)  # feature 0 is equally active for every city
    for row, (city, state) in enumerate(cities):
        means[row, 0, 0, 1] += 0.3 * (state == "Texas")
        means[row, 1, 0, 2] += 0.2 * (state == "Texas")  # less than the factor 1.25 requires
        means[row, :, 0, 3] = 1e6 * (city == "Dallas")
    features = scripts.state_features.StateFeatures(means, 1.25)
    assert features.of("Texas", without="Dallas").nonzero().tolist() == [[0, 0, 1]]
    assert features.of("Texas", without="Houston").nonzero().tolist() == [[0, 0, 1], [0, 0, 3], [1, 0, 3]]


@pytest.mark.slow
def test_activations_of_a_city_in_a_batch_equal_those_of_its_prompts_alone(
    scripts: Modules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow twin reads one city at a time, without batches or padding."""
    cities = [("Chattanooga", "Tennessee"), ("Dallas", "Texas"), ("Sitka", "Alaska")]
    monkeypatch.setattr(scripts.state_features, "CITIES", cities)
    clt = OpenCrossLayerTranscoder.from_pretrained("embedded")
    model = ReplacementModel(clt.language_model, clt.transcoder, error_correction=True)
    activations = scripts.state_features.city_activations(clt.language_model, clt.transcoder)
    for row, (city, _) in enumerate(cities):
        expected = torch.zeros_like(activations[row])
        for template in templates.CITY_TEMPLATES:
            run = observe(model, template.format(x=city))
            start = scripts.state_features.city_position(clt.language_model, template.format(x=city), city)
            dense = torch.stack([layer.dense() for layer in run.features])
            expected += torch.stack([dense[:, start], dense[:, start + 1 :].amax(1)]) / len(templates.CITY_TEMPLATES)
        assert torch.allclose(activations[row], expected, atol=1e-4)


def test_no_development_prompt_is_held_out(scripts: Modules) -> None:
    held_out, development = (scripts.known_circuits.questions(None, chosen) for chosen in (False, True))
    assert len(held_out) == 208
    assert len(development) == scripts.known_circuits.DEVELOPMENT_PROMPTS
    assert not {question.prompt for question in held_out} & {question.prompt for question in development}
    capitals = {state.name: f" {state.capital}" for state in facts.STATES}
    for question in held_out:
        assert question.answer == capitals[question.state]
        assert question.city in question.prompt


def test_a_supernode_without_features_answers_no_question_about_it_with_yes(scripts: Modules) -> None:
    circuits = scripts.known_circuits
    question = circuits.Question("The capital of the state containing Dallas is", "Dallas", "Texas")
    other = question.about("Burlington", "Vermont")
    tokens = dict.fromkeys(circuits.Changes._fields, " Montpelier")
    held = circuits.Outcome(question, other, 0, " Austin", tokens, {}).held()
    assert not any(held[name] for name in ("path_share", "ablation_share", "all_share", "capital_share"))
    assert all(held[name] for name in ("swap_share", "control_many_share"))
    held = circuits.Outcome(question, other, 3, " Austin", tokens, {}).held()
    assert all(held[name] for name in ("all_share", "capital_share"))


@pytest.mark.slow
def test_the_last_line_holds_the_figures(scripts: Modules, capsys: pytest.CaptureFixture[str]) -> None:
    scripts.known_circuits.main(["--limit", "2"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for figures in (result, result["replaced"]):
        assert figures.keys() >= SHARES | CONTROLS
        assert figures["all_share"] <= min(figures["path_share"], figures["ablation_share"], figures["swap_share"]) <= 1
        assert 0 < figures["prompts"] <= 2
    assert result["path_share"] == 1
    assert result["features"] > 5
    assert result["probability_ablation"] < result["probability_much"] <= 1
