"""Labels by a language model: prompts have Delphi's form, scores are those of the answers, and no record is lost."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from open_clt.errors import ServiceError
from open_clt.features.labelling.service import endpoint as endpoint_module
from open_clt.features.labelling.service.delphi import decisions_in, explanation_in
from open_clt.features.labelling.service.endpoint import Endpoint
from open_clt.features.labelling.service.explained import Scorer, explain, explain_records, score_explanation
from open_clt.features.records import FeatureExample, FeatureLabel, FeatureRecord
from open_clt.transcoders.feature import Feature
from tests.features.labelling.made_records import background_for, record_for
from tests.features.labelling.service.stand_in import Raw, answering
from tests.refusals import refuses

FEATURE = Feature(1, 3)
EXAMPLE = re.compile(r"^Example \d+: (.*)$", re.MULTILINE)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "wait", lambda _: None)


def on_texas(tokens: Sequence[str], position: int) -> bool:
    return tokens[position] == " Texas"


def perfect(messages: list[dict[str, str]]) -> str:
    """A model that explains as "Texas" and finds the word, or the marked word, in each example."""
    if "Description" not in messages[1]["content"]:
        return "They are all states.\n[EXPLANATION]: the state **Texas**\n"
    wanted = "<< Texas>>" if "<<" in messages[1]["content"] else " Texas"
    return f"Here you are: {[int(wanted in text) for text in EXAMPLE.findall(messages[1]['content'])]}"


def test_a_label_has_the_explanation_and_its_score() -> None:
    record, background = record_for(FEATURE, on_texas, raises=[" Austin"]), background_for([(FEATURE, on_texas)])
    with answering(perfect) as service:
        label = explain(record, Endpoint(url=service.url, model="small"), background)
    assert label == FeatureLabel("the state **Texas", label.confidence, 1.0, automatic=True)
    system, user = (message["content"] for message in service.requests[0]["messages"])
    assert "16 tokens" in system  # how the windows were cut
    assert "[EXPLANATION]:" in system
    assert "<< Texas>>" in user
    assert "(' Texas', 10)" in user
    assert " Austin" in user
    assert len(EXAMPLE.findall(user)) == 16  # the examples that are not held out


def test_tokens_are_marked_above_a_share_of_the_largest_activation() -> None:
    example = FeatureExample((" a", " b", " c", " d", " e"), torch.tensor([0.0, 1.3, 2.0, 1.1, 4.0]), 4)
    record = FeatureRecord(FEATURE, 0.1, 4.0, (example,), (), ())
    with answering(perfect) as service:
        explain(record, Endpoint(url=service.url, model="small"), background_for([]), scorer=None)
    content = service.requests[0]["messages"][1]["content"]
    assert " a<< b c>> d<< e>>" in content
    assert "(' b', 3), (' c', 5), (' d', 3), (' e', 10)" in content


@pytest.mark.parametrize("scorer", ["detection", "fuzzing"])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (perfect, 1.0),
        (lambda messages: "[1, 1, 1, 1, 1] or so" if "5 examples" in messages[0]["content"] else "[1,1]", 0.5),
        (lambda messages: "I cannot say.", math.nan),
    ],
)
def test_scores_are_balanced_accuracies(scorer: Scorer, answer: object, expected: float) -> None:
    record, background = record_for(FEATURE, on_texas), background_for([(FEATURE, on_texas)])
    with answering(answer) as service:  # pyright: ignore[reportArgumentType]
        endpoint = Endpoint(url=service.url, model="small")
        score = score_explanation("Texas", record, endpoint, background, scorer=scorer, n_test=10)
    assert score == pytest.approx(expected, nan_ok=True)


def test_no_held_out_context_is_shown_to_the_explainer() -> None:
    record, background = record_for(FEATURE, on_texas), background_for([(FEATURE, on_texas)])
    with answering(perfect) as service:
        explain(record, Endpoint(url=service.url, model="small"), background)
    explainer, *scorers = (set(EXAMPLE.findall(request["messages"][1]["content"])) for request in service.requests)
    shown = {text.replace("<<", "").replace(">>", "") for text in explainer}
    assert shown
    assert shown.isdisjoint(set().union(*scorers))


@pytest.mark.parametrize("failure", [Raw(500), Raw(401), "garbage", Raw(body=b"{}"), Raw(429)], ids=str)
def test_records_keep_their_labels_if_the_endpoint_fails(failure: object, caplog: pytest.LogCaptureFixture) -> None:
    """The first record gets a label, then the endpoint fails and is not asked for ever."""
    old = FeatureLabel("old", 0.5, 0.5, automatic=True)
    records = [replace(record_for(Feature(0, index), on_texas), label=old) for index in range(8)]
    count = 0

    def answer(messages: list[dict[str, str]]) -> object:
        nonlocal count
        count += 1
        return "[EXPLANATION]: new" if count == 1 else failure

    with answering(answer) as service:  # pyright: ignore[reportArgumentType]
        endpoint = Endpoint(url=service.url, model="small", tries=2)
        labelled = list(explain_records(records, endpoint, background_for([]), scorer=None))
    assert [record.feature for record in labelled] == [record.feature for record in records]
    assert [record.label and record.label.text for record in labelled] == ["new", *["old"] * 7]
    assert len(caplog.records) == 3
    assert len(service.requests) <= 1 + 3 * 2


def test_labels_of_users_and_dead_features_are_not_asked_for() -> None:
    own = replace(record_for(FEATURE, on_texas), label=FeatureLabel("mine"))
    dead = FeatureRecord(FEATURE, 0.0, 0.0, (), (), ())
    with answering(perfect) as service:
        endpoint = Endpoint(url=service.url, model="small")
        assert list(explain_records([own, dead], endpoint, background_for([]))) == [own, dead]
    assert not service.requests


def test_only_chosen_features_are_asked_for() -> None:
    records = [record_for(Feature(0, index), on_texas) for index in range(4)]
    chosen = {Feature(0, 1), Feature(0, 3), Feature(2, 0)}
    with answering(perfect) as service:
        endpoint = Endpoint(url=service.url, model="small")
        labelled = list(explain_records(records, endpoint, background_for([]), scorer=None, features=chosen))
    assert [record.feature.index for record in labelled if record.label] == [1, 3]
    assert len(service.requests) == 2


def test_a_label_is_kept_if_only_its_scorer_fails(caplog: pytest.LogCaptureFixture) -> None:
    def answer(messages: list[dict[str, str]]) -> str | Raw:
        return Raw(500) if "Description" in messages[1]["content"] else perfect(messages)

    with answering(answer) as service:
        endpoint = Endpoint(url=service.url, model="small", tries=1)
        label = explain(record_for(FEATURE, on_texas), endpoint, background_for([]))
    assert "Texas" in label.text
    assert math.isnan(label.score)
    assert len(caplog.records) == 1


def test_an_answer_without_an_explanation_is_one_sentence() -> None:
    with answering(lambda _: "EXPLANATION") as service, refuses(ServiceError, service.url, FEATURE):
        explain(record_for(FEATURE, on_texas), Endpoint(url=service.url, model="small"), background_for([]))


@pytest.mark.parametrize(
    ("answer", "explanation"),
    [
        ("[EXPLANATION]: cats", "cats"),
        ("<think>[EXPLANATION]: no</think>\n[explanation] : *cats\tand* dogs\n\n", "cats and* dogs"),
        ("[EXPLANATION]:\n", None),
        ("", None),
        (f"[EXPLANATION]: {'x' * 1000}", "x" * 300),
    ],
)
def test_the_explanation_is_the_last_line_of_its_form(answer: str, explanation: str | None) -> None:
    assert explanation_in(answer) == explanation


@pytest.mark.parametrize(
    ("answer", "decisions"),
    [("[1, 0]", [True, False]), ("[0,0,1] no: [0,1,]", [False, True]), ("[1]", None), ("[1, 2]", None), ("1, 0", None)],
)
def test_decisions_are_a_list_of_the_right_length(answer: str, decisions: list[bool] | None) -> None:
    assert decisions_in(answer, 2) == decisions
