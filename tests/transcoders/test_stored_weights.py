"""A transcoder whose encoders and decoders stay in its files computes what it computes in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from open_clt.attribution.attribute import attribute
from open_clt.config import BatchTopKConfig, JumpReLUConfig, NonlinearityConfig, ReLUConfig, TopKConfig
from open_clt.errors import CheckpointError, ConfigError
from open_clt.evaluation.evaluate import measure
from open_clt.evaluation.faithfulness import faithfulness
from open_clt.files import StoredTensor
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.interventions.intervene import intervene
from open_clt.replacement.interventions.intervention import Intervention
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.circuit_tracer_writer import save_circuit_tracer
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from tests.random_transcoders import random_transcoder
from tests.refusals import refuses

PROMPT = "The cat sat on the dog"
NONLINEARITIES = (
    ReLUConfig(),
    JumpReLUConfig(initial_threshold=0.5),
    TopKConfig(k=6),
    TopKConfig(k=6, across_layers=True),
    BatchTopKConfig(k=6),
)


def both(
    model: LanguageModel, folder: Path, *, block: int = 200, **settings: object
) -> tuple[CrossLayerTranscoder, CrossLayerTranscoder]:
    """A random transcoder with standardisation, loaded into memory, and with weights that are read in small blocks."""
    save_transcoder(random_transcoder(model, **settings), folder)  # type: ignore[arg-type]
    in_memory, stored = load_transcoder(folder), load_transcoder(folder, memory_limit=1)
    assert isinstance(in_memory, CrossLayerTranscoder)
    assert isinstance(stored, CrossLayerTranscoder)
    assert in_memory.stored is None
    assert stored.stored is not None
    stored.stored = replace(stored.stored, block_numbers=block)
    return in_memory, stored


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES, ids=str)
@pytest.mark.parametrize("settings", [{}, {"reach": 2, "skip": True}], ids=["clt", "reach 2 with skip"])
def test_every_method_of_inference_gives_the_same_numbers(
    tiny_gpt2: LanguageModel, tmp_path: Path, nonlinearity: NonlinearityConfig, settings: dict[str, object]
) -> None:
    in_memory, stored = both(tiny_gpt2, tmp_path, nonlinearity=nonlinearity, **settings)
    inputs = torch.randn(9, tiny_gpt2.n_layers, tiny_gpt2.d_model, generator=torch.Generator().manual_seed(0))
    chosen = torch.tensor([3, 0, 39, 3])
    with torch.no_grad():
        for ours, theirs in zip(stored.encode(inputs), in_memory.encode(inputs), strict=True):
            torch.testing.assert_close(ours.dense(), theirs.dense())
        for layer in range(tiny_gpt2.n_layers):
            torch.testing.assert_close(
                stored.preactivations_of(inputs[:, layer], layer, chosen),
                in_memory.preactivations_of(inputs[:, layer], layer, chosen),
            )
            assert torch.equal(stored.decoders(layer, chosen), in_memory.decoders(layer, chosen))
        torch.testing.assert_close(stored(inputs).reconstruction, in_memory(inputs).reconstruction)
    torch.testing.assert_close(stored.decoder_norms(), in_memory.decoder_norms())
    assert stored.n_parameters == in_memory.n_parameters
    assert (stored.device, stored.dtype) == (in_memory.device, in_memory.dtype)


def test_blocks_as_large_as_a_layer_give_the_same_numbers_bit_for_bit(tiny_gpt2: LanguageModel, tmp_path: Path) -> None:
    in_memory, stored = both(tiny_gpt2, tmp_path, block=2**20, nonlinearity=JumpReLUConfig(initial_threshold=0.5))
    graphs = [attribute(tiny_gpt2, transcoder, PROMPT) for transcoder in (in_memory, stored)]
    assert graphs[0].ids() == graphs[1].ids()
    assert torch.equal(graphs[0].edges.weight, graphs[1].edges.weight)


@pytest.mark.slow
def test_graphs_interventions_replacement_and_evaluation_work_unchanged(
    tiny_gpt2: LanguageModel, tmp_path: Path
) -> None:
    transcoders = both(tiny_gpt2, tmp_path, nonlinearity=JumpReLUConfig(initial_threshold=0.5))
    contexts = tiny_gpt2.tokenize(PROMPT)[None].expand(3, -1)
    results: list[dict[str, Tensor]] = []
    for transcoder in transcoders:
        graph = attribute(tiny_gpt2, transcoder, PROMPT)
        assert graph.check().relative_to_row < 1e-5
        replacement = ReplacementModel(tiny_gpt2, transcoder)
        node = graph.node(0)
        record = intervene(replacement, PROMPT, Intervention(node.layer, node.position, node.index, value=0.0))
        results.append(
            {
                "edges": graph.adjacency(),
                "logits": replacement.logits(contexts),
                "after": record.after.logits,
                "faithfulness": faithfulness(graph, replacement, max_features=2).direct.measured,
                "fvu": torch.tensor([row["fvu"] for row in measure(replacement, contexts).layers()]),
            }
        )
    for name, computed in results[1].items():
        torch.testing.assert_close(computed, results[0][name], atol=1e-5, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_keep_their_type_and_are_multiplied_in_float32(
    tiny_gpt2: LanguageModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    save_circuit_tracer(random_transcoder(tiny_gpt2, nonlinearity=ReLUConfig()), tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    in_memory, stored = load_transcoder(tmp_path), load_transcoder(tmp_path, memory_limit=1)
    assert stored.stored is not None
    assert stored.stored.encoders[0].dtype is dtype
    inputs = torch.randn(5, tiny_gpt2.n_layers, tiny_gpt2.d_model, generator=torch.Generator().manual_seed(0))
    assert in_memory.dtype is stored.dtype is torch.float32
    torch.testing.assert_close(stored(inputs).reconstruction, in_memory(inputs).reconstruction)
    assert load_transcoder(tmp_path, memory_limit=1, dtype=torch.bfloat16).encode(inputs.bfloat16())[0].values.dtype


def test_nothing_is_read_before_it_is_used(
    tiny_gpt2: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading reads no table, encoding no decoder, and writing only the rows of active features."""
    read: list[tuple[str, int]] = []
    rows, whole = StoredTensor.rows, StoredTensor.read
    monkeypatch.setattr(
        StoredTensor, "rows", lambda self, index: (read.append((self.name, len(index))), rows(self, index))[1]
    )
    monkeypatch.setattr(StoredTensor, "read", lambda self: (read.append((self.name, len(self))), whole(self))[1])
    _, stored = both(tiny_gpt2, tmp_path)
    read.clear()
    inputs = torch.randn(1, tiny_gpt2.n_layers, tiny_gpt2.d_model, generator=torch.Generator().manual_seed(0))
    features = stored.encode(inputs)
    assert {name for name, _ in read} == {"W_enc"}
    read.clear()
    stored.decode(features, inputs)
    assert {name for name, _ in read} == {"W_dec.0", "W_dec.1", "W_dec.2"}
    assert sum(count for _, count in read) == sum(len(layer.features) for layer in features)


@pytest.mark.parametrize("weighted", [True, False])
def test_topk_across_layers_reads_decoders_once_if_their_norms_weigh_the_ranking(
    tiny_gpt2: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weighted: bool
) -> None:
    read: list[str] = []
    whole = StoredTensor.read
    monkeypatch.setattr(StoredTensor, "read", lambda self: (read.append(self.name), whole(self))[1])
    _, stored = both(tiny_gpt2, tmp_path, nonlinearity=TopKConfig(k=3, across_layers=True, weighted=weighted))
    inputs = torch.randn(2, tiny_gpt2.n_layers, tiny_gpt2.d_model, generator=torch.Generator().manual_seed(0))
    for expected in ({"W_dec.0", "W_dec.1", "W_dec.2"} if weighted else set[str](), set[str]()):
        read.clear()
        stored.encode(inputs)
        assert set(read) - {"W_enc"} == expected


def test_what_needs_all_weights_in_memory_says_so(tiny_gpt2: LanguageModel, tmp_path: Path) -> None:
    _, stored = both(tiny_gpt2, tmp_path, nonlinearity=ReLUConfig())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    uses = (
        stored.folded,
        lambda: stored.W_enc,
        lambda: stored.W_dec,
        lambda: stored.prefix(10),
    )
    for use in uses:
        with refuses(ConfigError, "memory_limit"):
            use()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_number_that_is_not_finite_is_found_when_it_is_read(tiny_gpt2: LanguageModel, tmp_path: Path) -> None:
    save_circuit_tracer(random_transcoder(tiny_gpt2, nonlinearity=ReLUConfig()), tmp_path)
    inputs = torch.ones(2, tiny_gpt2.n_layers, tiny_gpt2.d_model)
    features = [torch.ones(2, 40)] * tiny_gpt2.n_layers

    def damage(name: str) -> None:
        tensors = load_file(tmp_path / f"{name}.safetensors")
        tensors[name][7] = torch.inf
        save_file(tensors, tmp_path / f"{name}.safetensors")

    damage("W_dec_1")
    stored = load_transcoder(tmp_path, memory_limit=1)
    stored.encode(inputs)
    with refuses(CheckpointError, "W_dec_1", "row 7"):
        stored.decode(features, inputs)
    with refuses(CheckpointError, "W_dec_1", "layer 1"):
        load_transcoder(tmp_path)
    damage("W_enc_2")
    with refuses(CheckpointError, "W_enc_2", "layer 2"):
        load_transcoder(tmp_path, memory_limit=1).encode(inputs)
