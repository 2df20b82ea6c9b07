"""The steering page in a browser: what is shown equals what Python computes."""

from __future__ import annotations

from typing import Any

import pytest

from open_clt.evaluation.effects import predicted_effects
from open_clt.explorer.explorer import Explorer
from open_clt.explorer.jobs.steering import relative_changes
from open_clt.explorer.session.session import read_session
from open_clt.graphs.nodes import NodeKind
from open_clt.replacement.interventions.intervene import intervene
from open_clt.replacement.interventions.intervention import Constrained, Iterative, interventions_on
from tests.explorer.browser.conftest import drawn, pin, session_of, settled


def _group(page: Any) -> list[str]:
    """Group the three most influential features, and list the group on the steering page."""
    members = drawn(page, "feature")[:3]
    pin(page, *members)
    page.click("text=Group the pins")
    page.wait_for_selector("#groups input")
    settled(page)
    page.click("text=Steer these")
    page.wait_for_selector("#steers fieldset")
    settled(page)
    return members


def _number(text: str) -> float:
    return float(text.replace("\u2212", "-").replace("+", ""))


@pytest.mark.parametrize("frozen", ["nothing", "direct"])
def test_ablating_a_group_shows_before_after_and_the_prediction(
    served_explorer: tuple[Explorer, str], page: Any, frozen: str
) -> None:
    explorer, _ = served_explorer
    members = _group(page)
    page.select_option("#frozen", frozen)
    page.click("#steer-run")
    page.wait_for_selector("#effects tbody tr")
    settled(page)
    models, graph = explorer.loaded(), explorer.trace_of("start").graph
    patching = Iterative() if frozen == "nothing" else Constrained()
    record = intervene(models.corrected, graph.info.prompt, interventions_on(members, value=0.0), patching)
    for when, top in (("before", record.top_before), ("after", record.top_after)):
        shown = page.locator(f'#steer-result [data-when="{when}"] .x-token').all_text_contents()
        assert [text.lstrip("·") for text in shown] == [each.token.strip() for each in top]
    assert float(page.get_attribute("#steer-kl", "data-kl")) == pytest.approx(record.kl_divergence, abs=1e-6)
    session = read_session(session_of(page))
    relative = relative_changes(graph, session.steers)[None]
    predicted = predicted_effects(graph, relative, paths=frozen == "nothing")[0, graph.of_kind(NodeKind.LOGIT)]
    rows = page.locator("#effects tbody tr")
    assert rows.count() == len(predicted)
    for row, value in zip(rows.all(), predicted.tolist(), strict=True):
        numbers = [_number(text) for text in row.locator(".x-number").all_text_contents()]
        assert numbers[0] == pytest.approx(value, rel=0.02, abs=1e-3)
        if frozen == "direct":
            assert numbers[1] == pytest.approx(numbers[0], rel=0.02, abs=1e-2)
    assert session.runs[0].steers == session.steers


def test_a_factor_of_one_changes_nothing(page: Any) -> None:
    _group(page)
    page.click("text=Unchanged (1)")
    page.wait_for_selector('#steer-kl[data-kl="0"]')
    settled(page)
    assert session_of(page)["steers"][0]["scale"] == 1


def test_the_slider_and_the_number_set_the_factor(page: Any) -> None:
    _group(page)
    page.fill('#steers input[type="number"]', "-2.5")
    page.press('#steers input[type="number"]', "Enter")
    page.wait_for_function("OpenCLT.explorer.store.session().steers[0].scale === -2.5")
    settled(page)
    assert page.input_value('#steers input[type="range"]') == "-2.5"
    page.dblclick('#steers input[type="range"]')
    page.wait_for_function("OpenCLT.explorer.store.session().steers[0].scale === 1")


def test_the_text_is_continued_without_and_with_the_changes(page: Any) -> None:
    _group(page)
    page.click("#continue")
    page.wait_for_selector('#continuations [data-when="after"]')
    texts = [page.inner_text(f'#continuations [data-when="{when}"] bdi').strip() for when in ("before", "after")]
    assert texts[0].startswith("Austin")
    assert texts[0] != texts[1]


def test_only_features_can_be_steered(page: Any) -> None:
    page.evaluate("OpenCLT.explorer.steer.add(['embedding:1:0'], 'a token')")
    page.wait_for_selector("#banner .x-info")
    assert session_of(page)["steers"] == []
