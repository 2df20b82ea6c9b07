"""Traces in the cache: which ones are deleted, whose files stay, and what a full disk or a stranger's file changes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from open_clt.explorer import traces as module
from open_clt.explorer.traces import Trace, Traces, load_trace
from tests.faults.artefacts import trace_of
from tests.faults.test_artefacts import full_disk, read_only_disk

KEYS = [f"{number:020}" for number in range(5)]


def _kept(folder: Path, key: str, age: int) -> Path:
    """Keep a trace that is so many seconds old, and return its directory."""
    Traces(folder).keep(replace(trace_of(1), key=key))
    path = folder / key / "trace.json"
    os.utime(path, (10_000 - age, 10_000 - age))
    return path.parent


def test_the_oldest_traces_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IN_CACHE", 3)
    for age, key in enumerate(KEYS[:4]):
        _kept(tmp_path, key, age)
    Traces(tmp_path).keep(replace(trace_of(1), key=KEYS[4]))
    assert sorted(path.name for path in tmp_path.iterdir()) == [KEYS[0], KEYS[1], KEYS[4]]


def test_files_that_the_explorer_did_not_write_are_never_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    with_notes, linked, named = (_kept(cache, key, 100) for key in KEYS[:3])
    (with_notes / "notes.txt").write_text("mine")
    linked.rename(elsewhere)
    linked.symlink_to(elsewhere)
    named = named.rename(cache / "the-one-of-my-paper")
    foreign = cache / KEYS[3]
    foreign.mkdir()
    for name in ("trace.json", "graph.json", "graph.safetensors"):
        (foreign / name).write_text('{"mine": 1}')
    (cache / "trace.json").write_text("mine")
    before = {path: path.read_bytes() for folder in (elsewhere, named, foreign) for path in folder.iterdir()}
    monkeypatch.setattr(module, "_IN_CACHE", 0)
    Traces(cache).keep(replace(trace_of(1), key=KEYS[4]))
    assert [path.name for path in with_notes.iterdir()] == ["notes.txt"]
    assert {path: path.read_bytes() for folder in (elsewhere, named, foreign) for path in folder.iterdir()} == before
    assert (cache / "trace.json").read_text() == "mine"
    assert not (cache / KEYS[4]).exists()


def test_a_trace_does_not_replace_files_of_other_programs(tmp_path: Path) -> None:
    foreign = tmp_path / KEYS[0] / "graph.json"
    foreign.parent.mkdir()
    foreign.write_text("mine")
    kept = Traces(tmp_path)
    kept.keep(replace(trace_of(1), key=KEYS[0]))
    assert [path.name for path in foreign.parent.iterdir()] == ["graph.json"]
    assert foreign.read_text() == "mine"
    assert kept.find(KEYS[0]) is not None


@pytest.mark.parametrize("bad_disk", [full_disk, read_only_disk])
def test_without_a_cache_traces_are_kept_in_memory(tmp_path: Path, bad_disk: object) -> None:
    assert callable(bad_disk)
    kept = Traces(tmp_path / "cache")
    with bad_disk():
        kept.keep(replace(trace_of(1), key=KEYS[0]))
    assert kept.find(KEYS[0]) is not None
    assert Traces(tmp_path / "cache").find(KEYS[0]) is None


def test_a_file_in_the_place_of_the_cache_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("mine")
    kept = Traces(tmp_path / "cache")
    kept.keep(replace(trace_of(1), key=KEYS[0]))
    assert kept.find(KEYS[0]) is not None
    assert kept.find(KEYS[1]) is None
    assert (tmp_path / "cache").read_text() == "mine"


@pytest.mark.parametrize("key", ["../" * 3 + "stolen", "/tmp/stolen", "..", "", "a" * 300, "\x00", "Ａ" * 20])
def test_a_key_never_leads_out_of_the_cache(tmp_path: Path, key: str) -> None:
    cache = tmp_path / "a" / "b" / "cache"
    kept = Traces(cache)
    kept.keep(replace(trace_of(1), key=key))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert Traces(cache).find(key) is None


def test_a_file_of_a_stranger_cannot_replace_the_trace_of_another_prompt(tmp_path: Path) -> None:
    kept = Traces(tmp_path)
    ours = replace(trace_of(1), key=KEYS[0])
    kept.keep(ours)
    stranger = kept.keep_foreign(replace(trace_of(2), key=KEYS[0]))
    assert stranger.key != KEYS[0]
    for traces in (kept, Traces(tmp_path)):
        assert _prompt(traces.find(KEYS[0])) == ours.graph.info.prompt
        assert _prompt(traces.find(stranger.key)) == stranger.graph.info.prompt
    assert kept.keep_foreign(replace(trace_of(2), key=KEYS[1])).key == stranger.key


def test_the_same_graph_keeps_its_key(tmp_path: Path) -> None:
    Traces(tmp_path).keep(replace(trace_of(1), key=KEYS[0]))
    again = Traces(tmp_path).keep_foreign(replace(trace_of(1), key=KEYS[0], predictions=()))
    assert again.key == KEYS[0]
    assert again.predictions == trace_of(1).predictions
    assert torch.equal(load_trace(tmp_path / KEYS[0]).graph.edges.weight, again.graph.edges.weight)


def _prompt(trace: Trace | None) -> str:
    assert trace is not None
    return trace.graph.info.prompt
