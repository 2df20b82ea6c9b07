"""The truth suite: shortcuts by enumeration of paths, prompts whose cue is known, and rows of the tables."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from open_clt.config import CrossLayerConfig, JumpReLUConfig, MoltConfig, ReLUConfig
from open_clt.embedded import facts
from open_clt.errors import AttributionError, ConfigError
from open_clt.evaluation.calibration import reliability
from open_clt.evaluation.trials import Trial
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.operations import subgraph
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.formats.saelens_writer import save_saelens
from open_clt.transcoders.make import make_transcoder
from tests.graphs.hand_graph import NAMES, hand_graph
from tests.refusals import refuses

BENCHMARKS = Path(__file__).parents[3] / "benchmarks" / "truth"


class Modules(NamedTuple):
    """The scripts, which import each other by bare names."""

    suite: Any
    known_prompts: Any
    dictionaries: Any
    bypass: Any
    shares: Any
    reliability: Any
    table: Any


@pytest.fixture(scope="module")
def scripts() -> Iterator[Modules]:
    sys.path.insert(0, str(BENCHMARKS))
    columns = ("bypass", "shares", "reliability", "table")
    names = [f"columns.{name}" if name in columns else name for name in Modules._fields]
    try:
        yield Modules(*map(importlib.import_module, names))
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
    assert scripts.bypass.bypass_share(graph, 1, mask) == pytest.approx(expected, rel=1e-6)
    assert (expected == 1.0) == (not through)
    # The edges of the last token are negative, so it has no positive influence of which there could be a share.
    assert scripts.bypass.bypass_share(graph, 2, mask) is None


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
    share = scripts.shares.Share.of(values, generator)
    mean = sum(values) / len(values)
    spread = 1.96 * (mean * (1 - mean) / len(values)) ** 0.5
    assert share.mean == pytest.approx(mean)
    assert share.low == pytest.approx(mean - spread, abs=0.01)
    assert share.high == pytest.approx(mean + spread, abs=0.01)
    assert scripts.shares.Share.of([], generator) is None


FEW = ["--limit", "2", "--others", "2", "--names", "1", "--tokens", "20000", "--attention", "1", "--ablations", "5"]


def trials_of(generator: random.Random, count: int) -> list[Trial]:
    """Trials that turn out as predicted the more often, the more the graph predicts: with the odds of the change."""
    made = list[Trial]()
    for _ in range(count):
        predicted = 10 ** generator.uniform(-2, 2)
        is_right = generator.random() < predicted / (1 + predicted)
        measured = predicted if is_right else -predicted
        made.append(Trial(False, None, 0.1, predicted, measured, answer_changed=False))
    return made


def test_the_error_of_a_calibration_is_measured_on_tasks_that_are_not_fitted(scripts: Modules) -> None:
    transcoder = make_transcoder(CrossLayerConfig(n_layers=2, d_model=4, n_features=20))
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    fitted = {"two_hop": trials_of(rng, 300), "agreement": trials_of(rng, 300)}
    good = scripts.reliability.calibration_shares({**fitted, "induction": trials_of(rng, 300)}, transcoder, generator)
    wrong = [trial._replace(measured=-trial.measured) for trial in trials_of(rng, 300)]
    bad = scripts.reliability.calibration_shares({**fitted, "induction": wrong}, transcoder, generator)
    assert good["ece"]["mean"] < 0.1 < 0.3 < bad["ece"]["mean"]
    assert good["ece"]["low"] < good["ece"]["high"] < bad["ece"]["low"]
    assert good["ece"]["prompts"] == 300
    assert good["as_predicted"]["mean"] == pytest.approx(0.5, abs=0.05)
    assert good["as_predicted"]["prompts"] == 900
    with refuses(ConfigError, "not fitted"):
        scripts.reliability.calibration_shares(fitted, transcoder, generator)


def test_the_errors_of_draws_equal_those_of_one_draw_after_another(scripts: Modules) -> None:
    generator = torch.Generator().manual_seed(0)
    probability, outcome = torch.rand(30, generator=generator).double(), torch.rand(30, generator=generator) < 0.4
    drawn = torch.randint(30, (5, 30), generator=generator)
    expected = [reliability(probability[rows].tolist(), outcome[rows].tolist()).ece for rows in drawn]
    assert scripts.reliability.errors(probability, outcome, drawn).tolist() == pytest.approx(expected)


def test_a_dash_has_its_reason_below_the_tables(scripts: Modules) -> None:
    share = {"mean": 0.5, "low": 0.25, "high": 0.754, "prompts": 8}
    numbers = {"dictionary": "A", "fvu": 0.1, "l0": 3.0, "top1_agreement": 0.9}
    graphs = {task: {"cue": share, "control": None} for task in scripts.known_prompts.TASKS}
    with_graphs = {**numbers, **graphs, "naming": None, "dashes": {"naming": "Not asked for."}}
    without = {**numbers, "dictionary": "B", "dashes": dict.fromkeys((*graphs, "naming"), "It has no graphs.")}
    lines = scripts.table.tables([with_graphs, without]).splitlines()
    assert "| A | 50 (25 to 75) | - | - | - | - | - |" in lines
    assert "| B | - | - | - | - | - | - |" in lines
    assert "A, naming: Not asked for." in lines
    assert [line for line in lines if "It has no graphs." in line] == [
        "B, two_hop, indirect_object, induction, agreement, pronoun, successor, naming: It has no graphs."
    ]


def test_dictionaries_without_graphs_say_why(scripts: Modules, embedded: LanguageModel) -> None:
    shape = {"n_layers": embedded.n_layers, "d_model": embedded.d_model}
    clt = CrossLayerConfig(n_features=20, **shape)
    sae = replace(clt, reach=1, nonlinearity=JumpReLUConfig(), input_hook="hook_mlp_out", target_hook="hook_mlp_out")
    molt = MoltConfig(nonlinearity=ReLUConfig(), ranks=(1,), counts=(20,), **shape)
    reasons = [
        scripts.dictionaries.Dictionary("A", embedded, make_transcoder(config)).why_no_graphs()
        for config in (clt, sae, molt)
    ]
    assert reasons[0] is None
    assert "hook_mlp_out" in reasons[1]
    assert "Molt" in reasons[2]


def test_a_directory_without_graphs_is_refused(scripts: Modules, embedded: LanguageModel, tmp_path: Path) -> None:
    dictionary = scripts.dictionaries.Dictionary("A", embedded, None)
    with refuses(AttributionError, str(tmp_path)):
        scripts.dictionaries.Graphs(dictionary, tmp_path)


@pytest.mark.slow
def test_the_last_line_has_an_object_for_each_dictionary(scripts: Modules, capsys: pytest.CaptureFixture[str]) -> None:
    scripts.suite.main([*FEW, "--trials", "2"])
    row = json.loads(capsys.readouterr().out.splitlines()[-1])["embedded"]
    for task in scripts.known_prompts.TASKS:
        assert {"cue", "necessary", "control", "sufficient"} <= row[task].keys()
    assert 0 <= row["two_hop"]["bypass"]["mean"] <= 1
    assert {"path", "ablation", "swap", "all"} <= row["two_hop"].keys()
    assert row["naming"]["named"]["prompts"] == 1
    assert row["attention"]["pair"]["prompts"] == 4
    assert row["calibration"]["ece"]["prompts"] == 2 * 2 * 5
    assert row["dashes"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("config", ["sae", "molt"])
def test_a_dictionary_without_graphs_has_a_row_of_dashes(
    scripts: Modules, capsys: pytest.CaptureFixture[str], embedded: LanguageModel, tmp_path: Path, config: str
) -> None:
    shape = {"n_layers": embedded.n_layers, "d_model": embedded.d_model}
    sae = replace(
        CrossLayerConfig(n_features=20, reach=1, nonlinearity=JumpReLUConfig(), **shape),
        input_hook="hook_mlp_out",
        target_hook="hook_mlp_out",
    )
    transcoder = make_transcoder(
        sae if config == "sae" else MoltConfig(nonlinearity=ReLUConfig(), ranks=(1,), counts=(20,), **shape)
    )
    if config == "sae":
        save_saelens(transcoder, tmp_path / "d")
    else:
        save_transcoder(transcoder, tmp_path / "d")
    scripts.suite.main(["--transcoder", str(tmp_path / "d")])
    row = json.loads(capsys.readouterr().out.splitlines()[-1])["d"]
    assert row["fvu"] > 0
    assert set(row["dashes"]) == set(scripts.suite.GROUPS)
    assert all(row[group] is None for group in scripts.suite.GROUPS)


@pytest.mark.slow
def test_graphs_of_a_directory_are_scored_like_our_own(
    scripts: Modules, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With everything kept, the files lack only the inputs that viewers do not show, so the same features lead."""

    def row(*options: str) -> dict[str, Any]:
        scripts.suite.main([*FEW, "--attention", "0", "--trials", "2", "--threshold", "1", *options])
        return json.loads(capsys.readouterr().out.splitlines()[-1])["embedded"]

    ours, theirs = row("--export", str(tmp_path)), row("--graphs", str(tmp_path))
    assert set(theirs["dashes"]) == {"attention"}
    different = 0.0
    for task in scripts.known_prompts.TASKS:
        for name in ("cue", "sufficient"):
            assert theirs[task][name] == ours[task][name]
        different += abs(theirs[task]["necessary"]["mean"] - ours[task]["necessary"]["mean"])
    assert (
        different <= 0.5
    )  # without biases, influence can order features differently: in one of two prompts, for one task
    for name in ("path", "ablation", "swap", "all"):
        assert theirs["two_hop"][name]["mean"] == ours["two_hop"][name]["mean"]
    assert theirs["naming"]["named"] == ours["naming"]["named"]


@pytest.mark.slow
def test_a_prompt_without_a_graph_is_left_out(
    scripts: Modules, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    dictionary = scripts.dictionaries.Dictionary.load()
    first, second = scripts.known_prompts.known_prompts(dictionary.model, "two_hop", 2)
    scripts.dictionaries.Graphs(dictionary, export=tmp_path).of(second.prompt, second.answer)
    scripts.suite.main([*FEW, "--attention", "0", "--graphs", str(tmp_path)])
    row = json.loads(capsys.readouterr().out.splitlines()[-1])["embedded"]
    assert row["two_hop"]["cue"]["prompts"] == 1
    assert "swap" not in row["two_hop"]  # there is no graph of another city
    assert "agreement" in row["dashes"]["agreement"]
    with refuses(AttributionError, first.prompt):
        scripts.dictionaries.Graphs(dictionary, tmp_path).of(first.prompt, first.answer)
    with refuses(AttributionError, "' the'"):
        scripts.dictionaries.Graphs(dictionary, tmp_path).of(second.prompt, " the")


@pytest.mark.slow
def test_the_list_has_every_prompt_with_its_answer(scripts: Modules, capsys: pytest.CaptureFixture[str]) -> None:
    scripts.suite.main(["--list", "--limit", "3", "--others", "2"])
    prompts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [prompt["task"] for prompt in prompts].count("two_hop") == 3
    assert all(prompt["answer"].startswith(" ") and prompt["prompt"] for prompt in prompts)
