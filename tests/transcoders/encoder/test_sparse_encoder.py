"""The sparse encoder gives the strongest features of the transcoder itself, and does not read decoders."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from open_clt import SparseCLTEncoder, SparseEncoder
from open_clt.config import (
    BatchTopKConfig,
    FixedJumpReLUConfig,
    JumpReLUConfig,
    NonlinearityConfig,
    ReLUConfig,
    TopKConfig,
)
from open_clt.errors import CheckpointError, ConfigError, NotFiniteError, ResourceError
from open_clt.transcoders.encoder.sparse_encoder import EncodedLayer
from open_clt.transcoders.formats.circuit_tracer_writer import save_circuit_tracer
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.transcoder import Transcoder
from tests.random_transcoders import ARCHITECTURES, architecture, random_architecture
from tests.refusals import refuses

NONLINEARITIES = (
    ReLUConfig(),
    JumpReLUConfig(initial_threshold=0.5),
    FixedJumpReLUConfig(),
    TopKConfig(k=6),
    TopKConfig(k=30, keep_negative=True),
    TopKConfig(k=6, offsets=True),
    TopKConfig(k=30, offsets=True),
    BatchTopKConfig(k=6),
)


def made(nonlinearity: NonlinearityConfig | None = None, name: str = "clt") -> Transcoder:
    return random_architecture(architecture(name, nonlinearity=nonlinearity or JumpReLUConfig(initial_threshold=0.5)))


def states(seed: int = 0, *, texts: int = 2, positions: int = 7, width: int = 8) -> Float[Tensor, "batch position d"]:
    return torch.randn(texts, positions, width, generator=torch.Generator().manual_seed(seed))


def expected(transcoder: Transcoder, layer: int, hidden: Tensor, top_k: int, least: float) -> list[list[set[Any]]]:
    """The strongest features of each position, from the dense features of the transcoder, in a plain loop."""
    result: list[list[set[Any]]] = []
    for text in hidden:
        of_text: list[set[Any]] = []
        for row in transcoder.encode_layer(text, layer).dense().tolist():
            kept = [(index, value) for index, value in enumerate(row) if value != 0 and abs(value) >= least]
            kept.sort(key=lambda entry: -abs(entry[1]))
            of_text.append({(index, round(value, 4)) for index, value in kept[:top_k]})
        result.append(of_text)
    return result


def encoded(found: EncodedLayer) -> list[list[set[Any]]]:
    return [
        [
            {(i, round(a, 4)) for i, a in zip(indices, activations, strict=True) if a != 0}
            for indices, activations in zip(*rows, strict=True)
        ]
        for rows in zip(found.indices.tolist(), found.activations.tolist(), strict=True)
    ]


@pytest.mark.parametrize("least", [0.0, 0.7])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES, ids=str)
def test_features_are_the_strongest_of_the_transcoder(nonlinearity: NonlinearityConfig, least: float) -> None:
    transcoder, hidden = made(nonlinearity), states()
    encoder = SparseEncoder(transcoder, top_k=4, activation_threshold=least)
    for layer in encoder.layers:
        found = encoder.encode_layer(layer, hidden)
        assert encoded(found) == expected(transcoder, layer, hidden, 4, least)
        assert (found.activations.abs().diff(dim=2) <= 0).all()
        everything = expected(transcoder, layer, hidden, 40, least)
        shares = [[len(features) / 40 for features in text] for text in everything]
        torch.testing.assert_close(found.sparsity, torch.tensor(shares))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_kind_of_transcoder_is_encoded(name: str) -> None:
    transcoder = made(TopKConfig(k=5), name)
    hidden = states()
    found = SparseEncoder(transcoder).encode_all_layers({0: hidden, 2: hidden})
    assert {layer: encoded(each) for layer, each in found.items()} == {
        layer: expected(transcoder, layer, hidden, 20, 0) for layer in (0, 2)
    }


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES, ids=str)
def test_chunks_change_nothing(nonlinearity: NonlinearityConfig) -> None:
    encoder, hidden = SparseEncoder(made(nonlinearity), top_k=5, chunk_size=3), states(positions=10)
    whole = encoder.encode_chunked(1, hidden)
    for part in (encoder.encode_layer(1, hidden), encoder.encode_chunked(1, hidden, 1)):
        active = whole.activations != 0
        assert torch.equal(part.indices[active], whole.indices[active])
        torch.testing.assert_close(part.activations, whole.activations, rtol=1e-5, atol=1e-6)
        assert torch.equal(part.sparsity, whole.sparsity)


@pytest.mark.parametrize("in_memory", [True, False])
def test_decoders_are_never_read(in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transcoder = made()
    save_circuit_tracer(transcoder, tmp_path)
    for layer in range(3):
        path = tmp_path / f"W_dec_{layer}.safetensors"
        save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(path).items()}, path)
    if not in_memory:
        monkeypatch.setattr("open_clt.transcoders.encoder.sparse_encoder.available_on", lambda device: 100)
        monkeypatch.setattr("open_clt.transcoders.encoder.layers._BLOCK_NUMBERS", 100)
    encoder = SparseEncoder(str(tmp_path), top_k=4)
    assert encoded(encoder.encode_layer(2, states())) == expected(transcoder, 2, states(), 4, 0)
    assert isinstance(encoder.encoders[2].weight, Tensor) == in_memory


@pytest.mark.parametrize("in_memory", [True, False])
def test_an_encoder_that_is_not_finite_is_refused(
    in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_circuit_tracer(made(), tmp_path)
    path = tmp_path / "W_enc_1.safetensors"
    tensors = load_file(path)
    tensors["W_enc_1"][3, 2] = torch.nan
    save_file(tensors, path)
    if not in_memory:
        monkeypatch.setattr("open_clt.transcoders.encoder.sparse_encoder.available_on", lambda device: 100)
    encoder = SparseEncoder(tmp_path)
    encoder.encode_layer(0, states())
    with refuses(CheckpointError, "W_enc_1"):
        encoder.encode_layer(1, states())


def test_states_are_normalised_on_request() -> None:
    transcoder, hidden = made(), 5 * states() + 2
    found = SparseEncoder(transcoder, top_k=4, normalize="layernorm").encode_layer(0, hidden)
    assert encoded(found) == expected(transcoder, 0, functional.layer_norm(hidden, (8,)), 4, 0)


def test_fewer_features_than_asked_for_leave_zeros() -> None:
    found = SparseEncoder(made(TopKConfig(k=3)), top_k=50).encode_layer(0, states())
    assert found.activations.shape == found.indices.shape == (2, 7, 50)
    assert (found.activations[..., 3:] == 0).all()
    assert (found.activations[..., 0] > 0).all()


def test_states_of_another_type_and_empty_ones_are_encoded() -> None:
    encoder = SparseEncoder(made(), top_k=2)
    assert encoder.encode_layer(0, states().double()).activations.dtype == torch.float32
    assert encoder.encode_layer(0, states(positions=0)).activations.shape == (2, 0, 2)


def test_the_strongest_features_of_a_text_are_those_of_all_layers_and_positions() -> None:
    transcoder = made()
    hidden = {layer: states(layer, texts=1) for layer in range(3)}
    found = SparseEncoder(transcoder, top_k=40).extract_attribution_features(hidden, top_k_global=9)
    dense = torch.stack([transcoder.encode_layer(hidden[layer][0], layer).dense() for layer in range(3)]).detach()
    entries = zip(dense[dense != 0].tolist(), dense.nonzero().tolist(), strict=True)
    places = sorted(((value, *place) for value, place in entries), reverse=True)
    assert [(each.feature.layer, each.position, each.feature.index) for each in found] == [p[1:] for p in places[:9]]
    assert [each.activation for each in found] == pytest.approx([place[0] for place in places[:9]])
    assert found[-1].share == pytest.approx(sum(place[0] for place in places[:9]) / float(dense.sum()), rel=1e-4)


@pytest.mark.parametrize("in_file", [True, False])
def test_some_layers_of_a_stored_transcoder_are_loaded(in_file: bool, tmp_path: Path) -> None:
    transcoder = made()
    save_transcoder(transcoder, tmp_path)
    source = tmp_path / "config.json" if in_file else tmp_path
    encoder = SparseEncoder.load_transcoders(source, [0, 2], "cpu", top_k=4)
    assert encoder.layers == (0, 2)
    assert encoded(encoder.encode_layer(2, states())) == expected(transcoder, 2, states(), 4, 0)
    with refuses(ConfigError, 1, "0, 2"):
        encoder.encode_layer(1, states())


def test_the_alias_returns_dictionaries(tmp_path: Path) -> None:
    transcoder = made()
    save_transcoder(transcoder, tmp_path)
    alias = SparseCLTEncoder(SparseCLTEncoder.load_transcoders(tmp_path, [0, 1], "cpu"), top_k=4)
    encoder = SparseEncoder(tmp_path, top_k=4, activation_threshold=1.0)
    for ours, theirs in [
        (encoder.encode_layer(1, states()), alias.encode_layer(1, states())),
        (encoder.encode_chunked(1, states(), 2), alias.encode_chunked(1, states(), 2)),
        (encoder.encode_layer(0, states()), alias.encode_all_layers({0: states()})[0]),
    ]:
        assert list(theirs) == ["layer", "activations", "indices", "sparsity"]
        assert theirs["layer"] == ours.layer
        assert torch.equal(theirs["activations"], ours.activations)
        assert torch.equal(theirs["indices"], ours.indices)
    features = encoder.extract_attribution_features({0: states(texts=1), 1: states(1, texts=1)}, 5)
    nodes = alias.extract_attribution_features({0: states(texts=1), 1: states(1, texts=1)}, top_k_global=5)
    assert len(nodes) == len(features) > 1
    assert nodes[0] == {
        "node_id": f"{features[0].feature.layer}_{features[0].feature.index}_{features[0].position}",
        "feature": features[0].feature.index,
        "layer": str(features[0].feature.layer),
        "ctx_idx": features[0].position,
        "feature_type": "cross layer transcoder",
        "influence": features[0].share,
        "activation": features[0].activation,
    }


@pytest.mark.parametrize("threshold", [None, 0.5, torch.linspace(0, 1, 40)], ids=["none", "one", "each"])
def test_the_alias_takes_tensors(threshold: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {"W_enc": torch.randn(40, 8, generator=generator), "b_enc": torch.randn(40, generator=generator)}
    alias = SparseCLTEncoder({5: {**tensors, "threshold": threshold}}, top_k=40, activation_threshold=0.2)
    found = alias.encode_layer(5, states())
    pre = states() @ tensors["W_enc"].T + tensors["b_enc"]
    dense = torch.where((pre > (0 if threshold is None else threshold)) & (pre >= 0.2), pre, 0)
    torch.testing.assert_close(torch.zeros(2, 7, 40).scatter(2, found["indices"], found["activations"]), dense)


@pytest.mark.slow
def test_a_compiled_encoder_gives_the_same_features(tmp_path: Path) -> None:
    """In a process of its own, because torch.compile does not follow the checks of shapes."""
    save_transcoder(made(), tmp_path)
    program = f"""
import torch
from open_clt import SparseEncoder
states = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(0))
compiled, plain = (SparseEncoder({str(tmp_path)!r}, top_k=4, use_compile=each).encode_layer(0, states)
                   for each in (True, False))
torch.testing.assert_close(compiled.activations, plain.activations)
assert torch.equal(compiled.indices, plain.indices) and plain.activations.any()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600)


MISTAKES: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({"top_k": 0}, ("top_k", 0)),
    ({"activation_threshold": -1.0}, ("activation_threshold", -1.0)),
    ({"chunk_size": 0}, ("chunk_size", 0)),
    ({"dtype": torch.int8}, ("dtype", "torch.int8")),
    ({"dtype": "float32"}, ("dtype", "float32")),
]


@pytest.mark.parametrize(("settings", "named"), MISTAKES, ids=str)
def test_illegal_settings_are_refused(settings: dict[str, Any], named: tuple[Any, ...]) -> None:
    with refuses(ConfigError, *named):
        SparseEncoder(made(), **settings)


def test_other_mistakes_are_one_sentence(tmp_path: Path) -> None:
    encoder = SparseEncoder(made())
    with refuses(ConfigError, "topk"):
        SparseEncoder(made(TopKConfig(k=3, across_layers=True)))
    with refuses(ConfigError, 3, "0 to 2"):
        encoder.encode_layer(3, states())
    with refuses(ConfigError, "(2, 7, 9)", 8):
        encoder.encode_layer(0, states(width=9))
    with refuses(ConfigError, "chunk_size", 0):
        encoder.encode_chunked(0, states(), 0)
    with refuses(ConfigError, "top_k_global", 0):
        encoder.extract_attribution_features({0: states(texts=1)}, 0)
    with refuses(ConfigError, 2):
        encoder.extract_attribution_features({0: states()})
    with refuses(NotFiniteError, "nan", "position 3"):
        encoder.encode_layer(0, states().index_fill(1, torch.tensor([3]), torch.nan))
    with refuses(CheckpointError, tmp_path):
        SparseEncoder(tmp_path)
    with refuses(ConfigError, "W_enc", 4):
        SparseCLTEncoder({4: {"W_enc": torch.zeros(3, 2)}})
    with refuses(ConfigError, 2, 3):
        SparseCLTEncoder({4: {"W_enc": torch.zeros(3, 2), "b_enc": torch.zeros(3), "threshold": torch.zeros(2)}})
    with pytest.raises(ConfigError):
        SparseCLTEncoder({})
    with refuses(ResourceError, "top_k"):
        SparseEncoder(made(), top_k=10**13).encode_layer(0, states())
    with refuses(ConfigError, "source"):
        SparseEncoder({0: made()})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"W_enc": "x"}, "W_enc"),
        ({"W_enc": torch.zeros(3, 2, device="meta")}, "W_enc"),
        ({"W_enc": torch.full((3, 2), torch.nan)}, "W_enc"),
        ({"W_enc": torch.zeros(0, 2), "b_enc": torch.zeros(0)}, "W_enc"),
        ({"b_enc": torch.full((3,), torch.inf)}, "b_enc"),
        ({"threshold": torch.nan}, "threshold"),
    ],
    ids=str,
)
def test_the_alias_refuses_tensors_without_numbers(changed: dict[str, Any], named: str) -> None:
    with refuses(ConfigError, named, "layer 4"):
        SparseCLTEncoder({4: {"W_enc": torch.zeros(3, 2), "b_enc": torch.zeros(3), **changed}})


def test_the_alias_takes_weights_of_another_type_than_biases() -> None:
    tensors = {"W_enc": torch.ones(3, 8, dtype=torch.bfloat16), "b_enc": torch.tensor([0.0, 1.0, 2.0])}
    found = SparseCLTEncoder({4: tensors}, top_k=1).encode_layer(4, torch.ones(1, 1, 8))
    assert found["activations"].item() == 10
    assert found["indices"].item() == 2
