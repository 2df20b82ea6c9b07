"""Transcoders on the hub: found by name, fetched in parts or as a whole, and used again without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from open_clt.config import CrossLayerConfig, ReLUConfig
from open_clt.errors import CheckpointError, HubUnreachableError
from open_clt.hub import reachable
from open_clt.hub.partial_file import PartialFile
from open_clt.hub.repository import HubName
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.circuit_tracer_writer import save_circuit_tracer
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.transcoder import Transcoder
from tests.hub.stand_in import Hub, serving
from tests.random_transcoders import random_architecture
from tests.refusals import refuses

CONFIG = CrossLayerConfig(n_layers=3, n_features=5000, d_model=32, nonlinearity=ReLUConfig())


@pytest.fixture(scope="module")
def transcoder() -> Transcoder:
    return random_architecture(CONFIG)


@pytest.fixture
def hub(transcoder: Transcoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a transcoder in each layout of OpenCLT's writers, one of them in a folder."""
    repository = tmp_path / "repository"
    save_transcoder(transcoder, repository)
    save_circuit_tracer(transcoder, repository / "clt" / "width")
    with serving({"org/name": repository}, monkeypatch, tmp_path / "cache") as hub:
        yield hub


def outputs(transcoder: Transcoder) -> torch.Tensor:
    inputs = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    # Only the features of the first ten rows are used, so that few rows of the decoders are needed.
    features = [active.kept(active.features < 10) for active in transcoder.encode(inputs)]
    return transcoder.decode(features, inputs)


@pytest.mark.parametrize("source", ["org/name", "org/name@main", "org/name/clt/width"])
@pytest.mark.parametrize("memory_limit", [None, 1], ids=["in memory", "in files"])
def test_a_transcoder_of_the_hub_equals_the_local_one(
    hub: Hub, transcoder: Transcoder, source: str, memory_limit: int | None
) -> None:
    loaded = load_transcoder(source, memory_limit=memory_limit)
    torch.testing.assert_close(outputs(loaded), outputs(transcoder), atol=1e-5, rtol=1e-4)


def test_only_the_parts_that_are_needed_are_fetched_and_only_once(hub: Hub) -> None:
    loaded = load_transcoder("org/name/clt/width", memory_limit=1)
    assert hub.bytes_of("W_") < 12 * 2**16  # headers and biases
    outputs(loaded)
    assert hub.bytes_of("W_dec") < 3 * 2 * 2**16
    assert hub.bytes_of("W_enc") >= 3 * 5000 * 32 * 4
    hub.requests.clear()
    outputs(load_transcoder("org/name/clt/width", memory_limit=1))
    assert hub.bytes_of("W_") == 0


def test_what_was_used_before_is_used_without_a_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [outputs(load_transcoder("org/name", memory_limit=limit)) for limit in (1, None)]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    for limit, before in zip((1, None), expected, strict=True):
        assert torch.equal(outputs(load_transcoder("org/name", memory_limit=limit)), before)
    assert not hub.requests


def test_what_is_not_there_is_one_sentence(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refuses(CheckpointError, "org/other"):
        load_transcoder("org/other")
    (tmp_path / "empty").mkdir()
    hub.repositories["org/empty"] = tmp_path / "empty"
    with refuses(CheckpointError, "org/empty", "no files"):
        load_transcoder("org/empty")
    with refuses(CheckpointError, "org/name", "nothing"):
        load_transcoder("org/name/nothing")
    with refuses(CheckpointError, "org/name/clt"):
        load_transcoder("org/name/clt")
    with refuses(CheckpointError, tmp_path / "none"):
        load_transcoder(tmp_path / "none")
    monkeypatch.setattr(reachable, "HUB_TIMEOUT", 0.3)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with refuses(HubUnreachableError, "org/unknown"):
        load_transcoder("org/unknown")


def test_a_server_without_answers_for_parts_is_one_sentence(hub: Hub) -> None:
    hub.answers_ranges = False
    with refuses(HubUnreachableError, "HTTP Range"):
        load_transcoder("org/name", memory_limit=1)


def test_a_file_that_is_damaged_on_the_hub_is_one_sentence(hub: Hub) -> None:
    path = hub.repositories["org/name"] / "clt" / "width" / "W_dec_1.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with refuses(CheckpointError, "org/name/clt/width/W_dec_1.safetensors"):
        load_transcoder("org/name/clt/width", memory_limit=1)


def test_names_of_the_hub() -> None:
    assert HubName.parse("org/name") == HubName("org/name")
    assert HubName.parse("org/name/a/b@v1.0") == HubName("org/name", "a/b", "v1.0")
    assert str(HubName("org/name", "a", "v1")) == "org/name/a@v1"
    for text in (
        "name",
        "/org/name",
        "org/../name",
        "org/name/../..",
        "org//name",
        "",
        "org/name@",
        "https://a/b",
        "a/b@../c",
    ):
        assert HubName.parse(text) is None, text


def test_parts_survive_the_process_that_fetched_them(tmp_path: Path) -> None:
    content = bytes(range(256)) * 2000
    asked: list[tuple[int, int]] = []

    def fetch(begin: int, end: int) -> bytes:
        asked.append((begin, end))
        return content[begin:end]

    first = PartialFile(tmp_path / "part", len(content), fetch)
    assert first.read(70_000, 70_010) == content[70_000:70_010]
    assert len(asked) == 1
    second = PartialFile(tmp_path / "part", len(content), fetch)
    assert second.read(70_005, 140_000) == content[70_005:140_000]
    assert second.read(len(content) - 3, len(content)) == content[-3:]
    assert [begin for begin, _ in asked[1:]] == [131_072, 458_752]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"x" * 7)], ids=["deleted", "cut"])
def test_parts_whose_file_is_gone_are_fetched_again(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    def fetch(begin: int, end: int) -> bytes:
        return b"x" * (end - begin)

    assert PartialFile(tmp_path / "part", 1000, fetch).read(0, 10) == b"x" * 10
    damage(tmp_path / "part")
    assert PartialFile(tmp_path / "part", 1000, fetch).read(0, 10) == b"x" * 10


def test_a_part_whose_fetch_fails_is_fetched_again(tmp_path: Path) -> None:
    def fail(begin: int, end: int) -> bytes:
        raise HubUnreachableError("gone")

    with pytest.raises(HubUnreachableError):
        PartialFile(tmp_path / "part", 1000, fail).read(0, 10)
    assert PartialFile(tmp_path / "part", 1000, lambda begin, end: b"x" * (end - begin)).read(0, 10) == b"x" * 10


def test_a_transcoder_in_parts_cannot_be_confused_with_one_of_another_commit(
    hub: Hub, transcoder: Transcoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs(load_transcoder("org/name", memory_limit=1))
    other = random_architecture(CONFIG, seed=9)
    assert isinstance(other, CrossLayerTranscoder)
    save_transcoder(other, hub.repositories["org/name"])
    monkeypatch.setattr("tests.hub.stand_in.COMMIT", "f" * 40)
    torch.testing.assert_close(outputs(load_transcoder("org/name", memory_limit=1)), outputs(other))
