"""Actions: what a person can do to a session, and ``reduce``, which makes the next session of an action.

An action is one of the dataclasses below. ``read_action`` reads it from the plain values that a browser sends, in which
``kind`` names its class: ``{"kind": "pin", "node": "2:5:417"}``. ``History`` adds undo and redo.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, final

from open_clt.config.json import CheckedConfig, from_dict, to_dict
from open_clt.errors import ConfigError
from open_clt.explorer.session.session import MOST_PINS, SHAPES, Group, Run, Session, Steer, check_text, plain_object
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature

MOST_STEPS = 100
"""Largest number of steps that can be undone."""
_MOST_RUNS = 20


@final
@dataclass(frozen=True, kw_only=True)
class ShowGraph(CheckedConfig):
    """Show another graph; pins, groups and changes belong to the former one, and labels stay."""

    graph: str


@final
@dataclass(frozen=True, kw_only=True)
class SetPercent(CheckedConfig):
    """Show the nodes that hold this share of the influence, in percent."""

    percent: int


@final
@dataclass(frozen=True, kw_only=True)
class Hide(CheckedConfig):
    """Show all nodes but those of these shapes."""

    shapes: tuple[str, ...]


@final
@dataclass(frozen=True, kw_only=True)
class HideDense(CheckedConfig):
    """Show the features whose density is at most this."""

    densest: float


@final
@dataclass(frozen=True, kw_only=True)
class Select(CheckedConfig):
    """Select a node, or none."""

    node: str | None = None


@final
@dataclass(frozen=True, kw_only=True)
class Pin(CheckedConfig):
    """Pin a node to the circuit, or take it out if it is pinned."""

    node: str


@final
@dataclass(frozen=True, kw_only=True)
class MakeGroup(CheckedConfig):
    """Put nodes together under a name; they leave their former groups."""

    name: str
    members: tuple[str, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Ungroup(CheckedConfig):
    """Dissolve a group; its members stay pinned."""

    name: str


@final
@dataclass(frozen=True, kw_only=True)
class Rename(CheckedConfig):
    """Give a group another name."""

    name: str
    new_name: str


@final
@dataclass(frozen=True, kw_only=True)
class SetLabel(CheckedConfig):
    """Label a feature; an empty text takes the person's label away."""

    feature: str
    text: str


@final
@dataclass(frozen=True, kw_only=True)
class AddSteer(CheckedConfig):
    """List nodes on the steering page."""

    steer: Steer


@final
@dataclass(frozen=True, kw_only=True)
class SetSteer(CheckedConfig):
    """Replace an entry of the steering page."""

    index: int
    steer: Steer


@final
@dataclass(frozen=True, kw_only=True)
class RemoveSteer(CheckedConfig):
    """Take an entry off the steering page."""

    index: int


@final
@dataclass(frozen=True, kw_only=True)
class RecordRun(CheckedConfig):
    """Add a steering to the history of runs."""

    run: Run


Action: TypeAlias = (
    ShowGraph
    | SetPercent
    | Hide
    | HideDense
    | Select
    | Pin
    | MakeGroup
    | Ungroup
    | Rename
    | SetLabel
    | AddSteer
    | SetSteer
    | RemoveSteer
    | RecordRun
)
"""Anything that a person can do to a session."""


def reduce(session: Session, action: Action) -> Session:
    """Return the session after an action; raises ConfigError if the action is not possible, and changes nothing."""
    return _REDUCERS[type(action)](session, action)


def read_action(content: Mapping[str, Any]) -> Action:
    """Read an action from plain values; raises ConfigError if they are not one."""
    kind = content.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(f"kind is {str(kind)[:40]!r}; it must be one of {', '.join(_KINDS)}.")
    return from_dict(_KINDS[kind], {name: value for name, value in content.items() if name != "kind"})


def _show_graph(session: Session, action: ShowGraph) -> Session:
    if action.graph == session.graph:
        return session
    kept = {name: getattr(session, name) for name in ("percent", "hidden", "densest", "labels")}
    return Session(graph=action.graph, **kept)


def _set_percent(session: Session, action: SetPercent) -> Session:
    return replace(session, percent=action.percent)


def _hide(session: Session, action: Hide) -> Session:
    if unknown := sorted(set(action.shapes) - set(SHAPES)):
        raise ConfigError(f"The shape {unknown[0]!r} cannot be hidden; the shapes are {', '.join(SHAPES)}.")
    return replace(session, hidden=tuple(shape for shape in SHAPES if shape in action.shapes))


def _hide_dense(session: Session, action: HideDense) -> Session:
    return replace(session, densest=action.densest)


def _select(session: Session, action: Select) -> Session:
    return replace(session, selected=action.node)


def _pin(session: Session, action: Pin) -> Session:
    if action.node in session.circuit:
        pins = tuple(pin for pin in session.pins if pin != action.node)
        return replace(session, pins=pins, groups=_without(session.groups, {action.node}))
    return replace(session, pins=_pinned(session.pins, (action.node,)))


def _make_group(session: Session, action: MakeGroup) -> Session:
    members = tuple(dict.fromkeys(action.members))
    if len(members) < 2:
        raise ConfigError("A group has at least two nodes; pin or select more of them.")
    groups = _without(session.groups, set(members))
    return replace(
        session,
        pins=_pinned(session.pins, members),
        groups=(*groups, Group(name=_new_name(groups, action.name), members=members)),
    )


def _ungroup(session: Session, action: Ungroup) -> Session:
    _find(session, action.name)
    return replace(session, groups=tuple(group for group in session.groups if group.name != action.name))


def _rename(session: Session, action: Rename) -> Session:
    group = _find(session, action.name)
    name = _new_name([other for other in session.groups if other is not group], action.new_name)
    return replace(session, groups=tuple(replace(g, name=name) if g is group else g for g in session.groups))


def _set_label(session: Session, action: SetLabel) -> Session:
    name, text = str(Feature.parse(action.feature)), action.text.strip()
    check_text(text)
    labels = {other: label for other, label in session.labels.items() if other != name}
    return replace(session, labels={**labels, name: text} if text else labels)


def _add_steer(session: Session, action: AddSteer) -> Session:
    if any(steer.members == action.steer.members for steer in session.steers):
        return session
    return replace(session, steers=(*session.steers, action.steer))


def _set_steer(session: Session, action: SetSteer) -> Session:
    _check_index(session, action.index)
    steers = list(session.steers)
    steers[action.index] = action.steer
    return replace(session, steers=tuple(steers))


def _remove_steer(session: Session, action: RemoveSteer) -> Session:
    _check_index(session, action.index)
    return replace(session, steers=session.steers[: action.index] + session.steers[action.index + 1 :])


def _record_run(session: Session, action: RecordRun) -> Session:
    return replace(session, runs=(action.run, *session.runs)[:_MOST_RUNS])


_REDUCERS: dict[type[Any], Callable[[Session, Any], Session]] = {
    ShowGraph: _show_graph,
    SetPercent: _set_percent,
    Hide: _hide,
    HideDense: _hide_dense,
    Select: _select,
    Pin: _pin,
    MakeGroup: _make_group,
    Ungroup: _ungroup,
    Rename: _rename,
    SetLabel: _set_label,
    AddSteer: _add_steer,
    SetSteer: _set_steer,
    RemoveSteer: _remove_steer,
    RecordRun: _record_run,
}
_KINDS: dict[str, type[Any]] = {
    "show": ShowGraph,
    "percent": SetPercent,
    "hide": Hide,
    "dense": HideDense,
    "select": Select,
    "pin": Pin,
    "group": MakeGroup,
    "ungroup": Ungroup,
    "rename": Rename,
    "label": SetLabel,
    "steer": AddSteer,
    "set_steer": SetSteer,
    "remove_steer": RemoveSteer,
    "run": RecordRun,
}


def _pinned(pins: tuple[str, ...], nodes: tuple[str, ...]) -> tuple[str, ...]:
    """Pins with further nodes; raises ConfigError if they are too many."""
    pinned = tuple(dict.fromkeys((*pins, *nodes)))
    if len(pinned) > MOST_PINS:
        raise ConfigError(f"{len(pinned)} nodes would be pinned; a circuit has {MOST_PINS} at most.")
    return pinned


def _without(groups: tuple[Group, ...], nodes: set[str]) -> tuple[Group, ...]:
    """Groups without some nodes; a group of which fewer than two members are left is dissolved."""
    left = [replace(g, members=tuple(node for node in g.members if node not in nodes)) for g in groups]
    return tuple(group for group in left if len(group.members) > 1)


def _new_name(groups: tuple[Group, ...] | list[Group], name: str) -> str:
    """The name of a group; raises ConfigError if it is empty, too long, or that of another group."""
    name = name.strip()
    check_text(name)
    if not name:
        raise ConfigError("The name of the group is empty; write a name.")
    if any(group.name == name for group in groups):
        raise ConfigError(f"Another group has the name {name!r}; write a different name.")
    return name


def _find(session: Session, name: str) -> Group:
    for group in session.groups:
        if group.name == name:
            return group
    raise ConfigError(f"The session does not have a group {name[:40]!r}.")


def _check_index(session: Session, index: int) -> None:
    if not 0 <= index < len(session.steers):
        raise ConfigError(f"Entry {index} of the steering page does not exist; it has {len(session.steers)} entries.")


@final
@dataclass(frozen=True, kw_only=True)
class History(CheckedConfig):
    """A session with the sessions before it and after it, between which undo and redo move."""

    past: tuple[Session, ...] = ()
    """Former sessions, oldest first."""
    present: Session = field(default_factory=Session)
    """The session that is shown."""
    future: tuple[Session, ...] = ()
    """Sessions that were undone, the next one to redo first."""

    def act(self, action: Action) -> History:
        """Return the history after an action; what was undone before is forgotten.

        A selection and a record of a run are part of the session but not steps of their own, so undo does not stop at
        them. An action that changes nothing is not a step, and neither is the first graph, before which there is
        nothing to go back to. Raises ConfigError if the action is not possible.
        """
        present = reduce(self.present, action)
        if present == self.present:
            return self
        if isinstance(action, Select | RecordRun) or not self.present.graph:
            return replace(self, present=present)
        return History(past=(*self.past, self.present)[-MOST_STEPS:], present=present)

    def undo(self) -> History:
        """Return the history one step back; the same history at its beginning."""
        if not self.past:
            return self
        *past, present = self.past
        return History(past=tuple(past), present=present, future=(self.present, *self.future))

    def redo(self) -> History:
        """Return the history one step forward; the same history at its end."""
        if not self.future:
            return self
        present, *future = self.future
        return History(past=(*self.past, self.present), present=present, future=tuple(future))

    __repr__ = short_repr


def history_json(history: History) -> dict[str, Any]:
    """Return a history as plain values."""
    return to_dict(history)


def read_history(content: Mapping[str, Any]) -> History:
    """Read what ``history_json`` returned; raises ConfigError if it is not a history."""
    return from_dict(History, plain_object(content, "history"))


def stepped(history: History, content: Mapping[str, Any]) -> History:
    """Return the history after what a browser sent: an action, ``{"kind": "undo"}`` or ``{"kind": "redo"}``."""
    match content.get("kind"):
        case "undo":
            return history.undo()
        case "redo":
            return history.redo()
        case _:
            return history.act(read_action(content))
