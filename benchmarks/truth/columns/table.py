"""The truth suite's tables in Markdown: shares in per cent with their intervals, and the reasons for dashes below."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from known_prompts import TASKS

_TABLES: dict[str, tuple[tuple[str, str], ...]] = {
    "The graphs of two-hop prompts": tuple(
        ("two_hop", name) for name in ("cue", "necessary", "control", "sufficient", "bypass", "shortcut")
    ),
    "The state in the middle, names, attention and predictions": (
        *(("two_hop", name) for name in ("path", "ablation", "swap", "all")),
        ("naming", "named"),
        ("attention", "pair"),
        ("attention", "random_head"),
        ("calibration", "as_predicted"),
        ("calibration", "ece"),
    ),
}
"""For each table, its columns: a group of the row, and a share of the group."""
_OTHER_TASKS = ("cue", "necessary", "control", "sufficient")


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """All tables, and below them the reasons for dashes."""
    return "\n".join([*_on_text(rows), *_shares(rows), *_tasks(rows), *_reasons(rows)])


def _on_text(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from ("", "On held-out text", "", "| | FVU | L0 | agreement |", "|---" * 4 + "|")
    for row in rows:
        yield f"| {row['dictionary']} | {row['fvu']:.4f} | {row['l0']:.1f} | {100 * row['top1_agreement']:.1f} |"


def _shares(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One line for each dictionary."""
    for title, columns in _TABLES.items():
        names = [name.replace("_", " ") for _, name in columns]
        yield from ("", title, "", f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|")
        for row in rows:
            cells = [_cell((row.get(group) or {}).get(name)) for group, name in columns]
            yield f"| {row['dictionary']} | {' | '.join(cells)} |"


def _tasks(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The means of the other tasks, one line for each dictionary."""
    tasks = [task for task in TASKS if task != "two_hop"]
    yield from ("", f"Other tasks: {', '.join(_OTHER_TASKS)}", "")
    yield from (f"| | {' | '.join(task.replace('_', ' ') for task in tasks)} |", "|---" * (len(tasks) + 1) + "|")
    for row in rows:
        shares = [[(row.get(task) or {}).get(name) for name in _OTHER_TASKS] for task in tasks]
        cells = [", ".join("-" if share is None else _percent(share["mean"]) for share in each) for each in shares]
        yield f"| {row['dictionary']} | {' | '.join(cells)} |"


def _reasons(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The reasons for dashes, each once for a dictionary."""
    for row in rows:
        groups_of: dict[str, list[str]] = {}
        for group, why in row["dashes"].items():
            groups_of.setdefault(why, []).append(group)
        yield from (f"\n{row['dictionary']}, {', '.join(groups)}: {why}" for why, groups in groups_of.items())


def _cell(share: Mapping[str, float] | None) -> str:
    if share is None:
        return "-"
    return f"{_percent(share['mean'])} ({_percent(share['low'])} to {_percent(share['high'])})"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"
