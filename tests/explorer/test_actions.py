"""Sessions and actions: what each action changes, what is refused, and undo and redo."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_clt.errors import ConfigError
from open_clt.explorer.session.actions import History, history_json, read_action, read_history, reduce, stepped
from open_clt.explorer.session.session import Group, Session, Steer, read_session, session_json
from tests.refusals import refuses

_START = History(present=Session(graph="start"))


def _after(*contents: dict[str, Any], history: History = _START) -> History:
    for content in contents:
        history = stepped(history, content)
    return history


def _group(name: str, *members: str) -> dict[str, Any]:
    return {"kind": "group", "name": name, "members": list(members)}


def test_every_action_changes_the_session_as_it_says() -> None:
    session = _after(
        {"kind": "percent", "percent": 60},
        {"kind": "hide", "shapes": ["error"]},
        {"kind": "dense", "densest": 0.2},
        {"kind": "select", "node": "0:1:2"},
        {"kind": "pin", "node": "0:1:2"},
        _group("cities", "1:2:3", "1:2:4"),
        {"kind": "rename", "name": "cities", "new_name": "towns"},
        {"kind": "label", "feature": "0_2", "text": "  Texas "},
        {"kind": "steer", "steer": {"name": "Texas", "members": ["0:1:2"], "scale": 0.0}},
        {"kind": "set_steer", "index": 0, "steer": {"name": "Texas", "members": ["0:1:2"], "scale": 2.5}},
    ).present
    assert session == Session(
        graph="start",
        percent=60,
        hidden=("error",),
        densest=0.2,
        selected="0:1:2",
        pins=("0:1:2", "1:2:3", "1:2:4"),
        groups=(Group(name="towns", members=("1:2:3", "1:2:4")),),
        labels={"L0/2": "Texas"},
        steers=(Steer(name="Texas", members=("0:1:2",), scale=2.5),),
    )


def test_a_pin_that_is_pinned_is_taken_out_of_its_group_too() -> None:
    grouped = _after(_group("g", "0:1:1", "0:1:2", "0:1:3"))
    smaller = _after({"kind": "pin", "node": "0:1:1"}, history=grouped).present
    assert smaller.groups == (Group(name="g", members=("0:1:2", "0:1:3")),)
    dissolved = reduce(smaller, read_action({"kind": "pin", "node": "0:1:2"}))
    assert dissolved.groups == ()
    assert dissolved.pins == ("0:1:3",)


def test_a_node_belongs_to_the_group_that_took_it_last() -> None:
    session = _after(_group("a", "0:1:1", "0:1:2", "0:1:3"), _group("b", "0:1:3", "0:1:4")).present
    assert [group.members for group in session.groups] == [("0:1:1", "0:1:2"), ("0:1:3", "0:1:4")]


def test_ungrouped_nodes_stay_pinned() -> None:
    session = _after(_group("a", "0:1:1", "0:1:2"), {"kind": "ungroup", "name": "a"}).present
    assert session.groups == ()
    assert session.pins == ("0:1:1", "0:1:2")


def test_another_graph_keeps_labels_and_drops_what_belongs_to_the_former_one() -> None:
    history = _after({"kind": "pin", "node": "0:1:2"}, {"kind": "label", "feature": "L0/2", "text": "Texas"})
    assert _after({"kind": "show", "graph": "b"}, history=history).present == Session(
        graph="b", labels={"L0/2": "Texas"}
    )


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"kind": "explode"}, "explode"),
        ({"kind": 3}, "3"),
        ({}, "None"),
        ({"kind": "pin"}, "node"),
        ({"kind": "pin", "node": 3}, "node"),
        ({"kind": "pin", "node": "a", "more": 1}, "more"),
        ({"kind": "percent", "percent": 0}, "0"),
        ({"kind": "percent", "percent": 101}, "101"),
        ({"kind": "percent", "percent": "80"}, "percent"),
        ({"kind": "hide", "shapes": ["token"]}, "token"),
        ({"kind": "dense", "densest": 0.0}, "0"),
        ({"kind": "dense", "densest": 2}, "2"),
        (_group("g", "0:1:1"), "two"),
        (_group(" ", "0:1:1", "0:1:2"), "empty"),
        (_group("a\nb", "0:1:1", "0:1:2"), "printed"),
        ({"kind": "ungroup", "name": "g"}, "g"),
        ({"kind": "rename", "name": "g", "new_name": "h"}, "g"),
        ({"kind": "label", "feature": "Texas", "text": "a"}, "Texas"),
        ({"kind": "label", "feature": "L0/1", "text": "x" * 201}, "201"),
        ({"kind": "steer", "steer": {"name": "a", "members": ["0:1:1"], "scale": 6.0}}, "6"),
        ({"kind": "remove_steer", "index": 0}, "0"),
    ],
)
def test_an_action_that_is_not_possible_is_refused_and_changes_nothing(content: dict[str, Any], named: str) -> None:
    with refuses(ConfigError, named):
        stepped(_START, content)


def test_two_groups_cannot_have_one_name() -> None:
    history = _after(_group("a", "0:1:1", "0:1:2"), _group("b", "0:2:1", "0:2:2"))
    for content in (_group("a", "0:3:1", "0:3:2"), {"kind": "rename", "name": "b", "new_name": "a"}):
        with refuses(ConfigError, "'a'"):
            stepped(history, content)


def test_a_circuit_has_two_hundred_nodes_at_most() -> None:
    history = _after(_group("a", *(f"0:1:{index}" for index in range(200))))
    with refuses(ConfigError, 201, 200):
        stepped(history, {"kind": "pin", "node": "1:1:1"})


def test_six_undos_return_to_the_start_and_six_redos_to_the_end() -> None:
    steps: list[dict[str, Any]] = [
        {"kind": "pin", "node": "0:1:1"},
        {"kind": "select", "node": "0:1:1"},  # a selection is not a step
        {"kind": "pin", "node": "0:1:2"},
        {"kind": "percent", "percent": 60},
        {"kind": "percent", "percent": 60},  # neither is an action that changes nothing
        _group("a", "0:1:1", "0:1:2"),
        {"kind": "label", "feature": "L0/1", "text": "x"},
        {"kind": "ungroup", "name": "a"},
    ]
    end = _after(*steps)
    start = _after(*[{"kind": "undo"}] * 6, history=end)
    assert session_json(start.present) == session_json(_START.present)
    assert _after({"kind": "undo"}, history=start) == start
    again = _after(*[{"kind": "redo"}] * 6, history=start)
    assert session_json(again.present) == session_json(end.present)
    assert _after({"kind": "redo"}, history=again) == again


def test_the_first_graph_is_not_a_step() -> None:
    assert _after({"kind": "show", "graph": "start"}, history=History()).past == ()


def test_an_action_after_an_undo_forgets_what_was_undone() -> None:
    history = _after({"kind": "pin", "node": "0:1:1"}, {"kind": "undo"}, {"kind": "pin", "node": "0:1:2"})
    assert history.future == ()
    assert history.present.pins == ("0:1:2",)


_NODES = st.sampled_from(["0:1:1", "0:1:2", "0:2:3", "1:2:4"])
_ACTIONS = st.one_of(
    st.builds(lambda node: {"kind": "pin", "node": node}, _NODES),
    st.builds(lambda node: {"kind": "select", "node": node}, _NODES),
    st.builds(lambda percent: {"kind": "percent", "percent": percent}, st.integers(1, 100)),
    st.builds(lambda name, nodes: _group(name, *nodes), st.sampled_from("abc"), st.lists(_NODES, min_size=2)),
    st.builds(lambda name: {"kind": "ungroup", "name": name}, st.sampled_from("abc")),
    st.sampled_from([{"kind": "undo"}, {"kind": "redo"}]),
)


@settings(deadline=None, max_examples=50)
@given(st.lists(_ACTIONS, max_size=30))
def test_any_actions_leave_a_session_that_a_file_can_hold(contents: list[dict[str, Any]]) -> None:
    history = _START
    for content in contents:
        try:
            history = stepped(history, content)
        except ConfigError:
            continue
    assert read_history(history_json(history)) == history
    session = history.present
    assert read_session(session_json(session)) == session
    members = [node for group in session.groups for node in group.members]
    assert len(members) == len(set(members))
    assert set(members) <= set(session.pins)
    assert all(len(group.members) > 1 for group in session.groups)
