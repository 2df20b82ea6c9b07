"""The command info says what a transcoder, a graph, a session or a dataset is, and reads no weight."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from open_clt.attribution.attribute import attribute
from open_clt.cli import main
from open_clt.config import MoltConfig, TopKConfig
from open_clt.data.dataset.manifest import MANIFEST, HarvestedText, shard_name
from open_clt.explorer.session.session import Group, Session
from open_clt.explorer.session.session_file import SavedSession, save_session
from open_clt.files import StoredTensor
from open_clt.graphs.formats.circuit_tracer import write_circuit_tracer
from open_clt.graphs.formats.circuit_tracer_schema import GraphCard
from open_clt.graphs.formats.networkx import write_graphml
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.make import make_transcoder
from tests.commands.mistakes import assert_mistake
from tests.data.dataset import small_dataset
from tests.data.dataset.parts import save_shard, save_unfinished
from tests.data.dataset.remote import static_server
from tests.faults.artefacts import trace_of
from tests.hub.stand_in import serving
from tests.random_transcoders import random_transcoder


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, str]:
    """What the command prints, by the name of each row."""
    capsys.readouterr()
    assert main(["info", *map(str, arguments)]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {name: value for name, _, value in (line.partition("  ") for line in lines)}


def test_a_transcoder_is_described_without_reading_weights(
    tiny_gpt2: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    transcoder = random_transcoder(tiny_gpt2, nonlinearity=TopKConfig(k=6), input_hook="mlp.hook_in", reach=2)
    save_transcoder(transcoder, tmp_path)

    def fail(*_: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(StoredTensor, "read", fail)
    monkeypatch.setattr(StoredTensor, "rows", fail)
    rows = {name: value.strip() for name, value in printed(capsys, tmp_path).items()}
    n_parameters = transcoder.n_parameters
    assert n_parameters == 3 * (40 * 32 + 40 + 32) + (2 + 2 + 1) * 40 * 32
    assert rows["layout"] == "native"
    assert rows["layers"] == "3"
    assert rows["features"] == "40 per layer, 120 in all"
    assert rows["nonlinearity"] == "topk, k = 6"
    assert rows["reads"] == "mlp.hook_in"
    assert rows["writes"] == "hook_mlp_out"
    assert rows["parameters"] == f"{n_parameters:,}"
    on_disk = (tmp_path / "transcoder.safetensors").stat().st_size
    assert rows["on disk"] == f"{on_disk / 1e3:.1f} kB (float32)"
    assert f"{4 * n_parameters / 1e3:.1f} kB" in rows["attribution needs"]


def test_a_transcoder_without_decoders_is_described_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = MoltConfig(n_layers=2, d_model=4, ranks=(2,), counts=(3,), nonlinearity=TopKConfig(k=2))
    save_transcoder(make_transcoder(config), tmp_path)
    assert printed(capsys, tmp_path)["kind"].strip().startswith("molt")
    assert printed(capsys, "embedded")["layers"].strip() == "5"


def test_a_transcoder_on_the_hub_is_described_from_its_headers(
    tiny_gpt2: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_transcoder(random_transcoder(tiny_gpt2, n_features=6000), tmp_path / "folder")
    with serving({"org/name": tmp_path / "folder"}, monkeypatch, tmp_path / "cache") as hub:
        rows = printed(capsys, "org/name")
        assert rows["features"].strip() == "6,000 per layer, 18,000 in all"
        assert hub.bytes_of("safetensors") == 2**16  # one block, which holds the header


def test_a_graph_is_described_in_every_layout(
    tiny_gpt2: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = attribute(tiny_gpt2, random_transcoder(tiny_gpt2), "The cat sat", max_feature_nodes=5)
    graph.save(tmp_path / "graph")
    write_graphml(graph, tmp_path / "cat.graphml")
    viewer = write_circuit_tracer(graph, tmp_path / "viewer", GraphCard(slug="cat"))
    for source in (tmp_path / "graph", tmp_path / "cat.graphml"):
        rows = {name: value.strip() for name, value in printed(capsys, source).items()}
        assert rows["prompt"] == "'The cat sat'"
        assert rows["edges"] == f"{graph.n_edges:,}"
        assert rows["active features"].endswith("a budget of 5")
        assert rows["left out"] == graph.info.left_out() != ""
    assert "The cat sat" in printed(capsys, viewer)["prompt"]


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_mistake(capsys, ["info"], "SOURCE")
    assert_mistake(capsys, ["info", ""], "empty")
    assert_mistake(capsys, ["info", str(tmp_path / "none")], tmp_path / "none")
    assert_mistake(capsys, ["info", str(tmp_path)], tmp_path, "known layouts")
    assert_mistake(capsys, ["info", "org/name"], "org/name", "HF_HUB_OFFLINE")
    (tmp_path / "graph.json").write_text("{}")
    assert_mistake(capsys, ["info", str(tmp_path)], tmp_path)


def test_a_session_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = ("0:1:5", "0:2:5")
    session = Session(pins=nodes, groups=(Group(name="Texas", members=nodes),), labels={"L0/5": "a", "L0/7": "b"})
    path = save_session(SavedSession(session, trace_of(1), "abc"), tmp_path / "mine.session.json")
    rows = {name: value.strip() for name, value in printed(capsys, path).items()}
    assert rows["session"] == "of transcoder abc"
    assert (rows["pins"], rows["groups"], rows["labels"]) == ("2", "1: 'Texas'", "2")
    assert rows["edges"] == f"{trace_of(1).graph.n_edges:,}"
    path.write_text(path.read_text()[:-200])
    assert_mistake(capsys, ["info", str(path)], path.name)


def test_a_dataset_is_described_from_its_headers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = HarvestedText(source="rows.jsonl", column="body", context_length=small_dataset.CONTEXT)
    directory = small_dataset.write(tmp_path / "whole", dtype="int8", text=text)
    save_unfinished(tmp_path / "begun", 2)
    save_shard(tmp_path / "begun", 1)
    shutil.copy(tmp_path / "begun" / shard_name(0), tmp_path / "begun" / shard_name(1))

    def fail(*_: object) -> None:
        raise AssertionError("a number was read")

    monkeypatch.setattr(StoredTensor, "read", fail)
    monkeypatch.setattr(StoredTensor, "rows", fail)
    rows = {name: value.strip() for name, value in printed(capsys, directory).items()}
    assert rows["dataset"] == "complete"
    assert (rows["language model"], rows["inputs"], rows["targets"]) == ("tiny", "hook_resid_mid", "hook_mlp_out")
    assert (rows["layers"], rows["width"], rows["type"]) == ("2", "3", "int8")
    assert rows["text"] == "rows.jsonl, column 'body'"
    assert "of 10 tokens" in rows["contexts"]
    assert (rows["tokens"], rows["shards"].split()[:3]) == ("70", ["7", "of", "10"])
    size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    assert rows["on disk"] == f"{size / 1e3:.1f} kB, {2 * 2 * 3 + 2 * 2 * 4 + 8} bytes a token"
    monkeypatch.setenv("OPEN_CLT_CACHE", str(tmp_path / "cache"))
    with static_server.serving(tmp_path) as server:
        remote = printed(capsys, f"{server.address}whole")
        assert {name: value.strip() for name, value in remote.items()} == {**rows, "dataset": "complete, on a server"}
    assert not list((tmp_path / "cache").rglob("shard-*"))
    assert "20 of 70 tokens" in printed(capsys, tmp_path / "begun")["dataset"]


def test_a_dataset_that_is_damaged_or_newer_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = small_dataset.write(tmp_path / "dataset")
    shard, manifest = directory / shard_name(3), directory / MANIFEST
    whole, content = shard.read_bytes(), manifest.read_text()
    shard.write_bytes(whole[:-1])
    assert_mistake(capsys, ["info", str(directory)], shard)
    shard.unlink()
    assert_mistake(capsys, ["info", str(directory)], shard)
    shard.write_bytes(whole)
    for old, new in (('"float32"', '"float64"'), ('"format_version": 1', '"format_version": 9'), ("{", "")):
        manifest.write_text(content.replace(old, new, 1))
        assert_mistake(capsys, ["info", str(directory)], manifest)
