"""The pages of features in a browser: the list, one feature, a person's own text."""

from __future__ import annotations

import re
from typing import Any

from open_clt.explorer.explorer import Explorer
from open_clt.explorer.views import features_of
from open_clt.features.firing import feature_activations
from open_clt.transcoders.feature import Feature
from tests.explorer.browser.conftest import drawn, select


def _list(page: Any) -> list[str]:
    return page.locator("#feature-list tbody tr").evaluate_all("(rows) => rows.map((row) => row.dataset.feature)")


def test_the_list_is_searched_sorted_and_filtered_and_back_keeps_it(
    served_explorer: tuple[Explorer, str], page: Any
) -> None:
    rows = served_explorer[0].loaded().rows
    page.click("#link-features")
    page.wait_for_selector("#feature-list tbody tr")
    assert page.inner_text("#found").split()[0] == f"{len(rows):,}"
    page.fill("#search", "Texas")
    page.select_option("#layer", "2")
    page.wait_for_function("new URLSearchParams(location.search).get('layer') === '2'")
    page.click("#feature-list th button >> text=density")
    page.wait_for_function("document.querySelector('th[aria-sort=ascending]')?.textContent.includes('density')")
    page.click("#feature-list th button >> text=density")
    page.wait_for_function("document.querySelector('th[aria-sort=descending]')?.textContent.includes('density')")
    found = [
        row
        for row in rows
        if row.feature.layer == 2
        and any("texas" in text.lower() for text in (row.label, *row.fires_on, *row.top_tokens))
    ]
    expected = [str(row.feature) for row in sorted(found, key=lambda row: row.density, reverse=True)]
    assert _list(page) == expected[:50]
    assert expected
    page.click(f'#feature-list a >> text="{expected[0]}"')
    page.wait_for_selector("#feature-page h1")
    assert page.url.endswith(f"/features/{expected[0][1:]}")
    page.go_back()
    page.wait_for_selector("#feature-list tbody tr")
    assert page.input_value("#search") == "Texas"
    assert page.input_value("#layer") == "2"
    assert _list(page) == expected[:50]
    page.reload()
    page.wait_for_selector("#feature-list tbody tr")
    assert _list(page) == expected[:50]


def test_examples_are_searched_too_if_asked(served_explorer: tuple[Explorer, str], page: Any) -> None:
    rows, text = served_explorer[0].loaded().rows, "the state flower"
    page.click("#link-features")
    page.fill("#search", text)
    page.wait_for_function("document.getElementById('found')?.textContent === '0 features'")
    page.check("#wide")
    found = [str(row.feature) for row in rows if text in row.also.lower()]
    page.wait_for_function(
        "(found) => document.getElementById('found')?.textContent === found", arg=f"{len(found)} features"
    )
    assert len(found) > 0
    assert _list(page) == found[:50]
    page.reload()
    page.wait_for_selector("#feature-list tbody tr")
    assert page.is_checked("#wide")
    assert _list(page) == found[:50]


def test_features_of_the_prompt_are_those_of_the_graph(served_explorer: tuple[Explorer, str], page: Any) -> None:
    features = features_of(served_explorer[0].trace_of("start").graph)
    page.click("#link-features")
    page.check("#here")
    page.wait_for_function(
        "(found) => document.getElementById('found')?.textContent === found", arg=f"{len(features)} features"
    )


def test_a_feature_page_shows_everything_that_is_known(served_explorer: tuple[Explorer, str], page: Any) -> None:
    models = served_explorer[0].loaded()
    node = drawn(page, "feature")[0]
    select(page, node)
    layer, _, index = map(int, node.split(":"))
    record = models.records.record(Feature(layer, index)) if models.records else None
    assert record is not None
    page.click("#panel >> text=Open feature")
    page.wait_for_selector("#feature-page h1")
    text = page.inner_text("#feature-page")
    activations = feature_activations(models.model, models.transcoder, page.input_value("#prompt"))
    activation = float(activations.of([Feature(layer, index)]).max())
    assert f"percentile {record.percentile(activation)}" in text
    histogram = page.locator("#feature-page .f-histogram")
    assert histogram.locator("rect").count() == len(record.histogram)
    for axis in ("activation", "tokens (log scale)"):
        assert axis in histogram.text_content()
    for group in record.groups:
        assert group.name in page.inner_text("#feature-page")
    assert page.locator("#feature-page summary >> text=layer").count() == len(record.outputs)


def test_an_own_text_is_tested(served_explorer: tuple[Explorer, str], page: Any) -> None:
    models = served_explorer[0].loaded()
    node = drawn(page, "feature")[0]
    layer, _, index = map(int, node.split(":"))
    page.goto(f"{page.url.split('/?')[0]}/features/{layer}/{index}")
    page.wait_for_selector("#own-text")
    own = "The capital of the state containing Lubbock is"
    page.fill("#own-text", own)
    page.click("#test-text")
    page.wait_for_selector("#own-result .oc-facts")
    values = feature_activations(models.model, models.transcoder, own).of([Feature(layer, index)])[0]
    assert float(values.max()) > 0
    shaded = page.locator("#own-result .f-active").count()
    assert shaded == int((values != 0).sum())


def test_a_tried_text_stays_when_the_session_changes(page: Any) -> None:
    layer, _, index = drawn(page, "feature")[0].split(":")
    page.goto(f"{page.url.split('/?')[0]}/features/{layer}/{index}")
    page.wait_for_selector("#own-text")
    page.fill("#own-text", "The capital of the state containing Lubbock is")
    page.evaluate("document.querySelector('#feature-page h1').dataset.former = 'yes'")
    page.evaluate("OpenCLT.explorer.go(location.pathname)")
    page.wait_for_selector("#feature-page h1:not([data-former])")
    assert page.input_value("#own-text") == "The capital of the state containing Lubbock is"
    page.click("#test-text")
    page.wait_for_selector("#own-result .oc-facts")


def test_next_previous_random_and_jump(page: Any) -> None:
    page.goto(f"{page.url.split('/?')[0]}/features/1/767")
    page.wait_for_selector("#next")
    page.click("#next")
    page.wait_for_url("**/features/2/0")
    page.click("#previous")
    page.wait_for_url("**/features/1/767")
    page.fill(".x-jump input", "L3/12")
    page.press(".x-jump input", "Enter")
    page.wait_for_url("**/features/3/12")
    page.click("#random")
    page.wait_for_function("!location.pathname.endsWith('/3/12')")
    assert re.search(r"/features/[0-4]/\d+$", page.url)


def test_a_dead_feature_says_so(page: Any) -> None:
    page.evaluate("() => { OpenCLT.explorer.client.get = async () => ({ density: 0, measured: true, label: null }); }")
    page.evaluate("OpenCLT.explorer.go('/features/0/0')")
    page.wait_for_selector(".x-dead")
    assert "dead" in page.inner_text(".x-dead")


def test_a_feature_that_does_not_exist_is_a_sentence(page: Any) -> None:
    page.evaluate("OpenCLT.explorer.go('/features/9/9')")
    page.wait_for_function("document.getElementById('feature-page').textContent.includes('does not have feature')")
