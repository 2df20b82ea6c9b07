"""The linear path equals the model on its prompt, and a model that it cannot express is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from open_clt.config import InputHook
from open_clt.errors import LanguageModelError
from open_clt.language.language_model import LanguageModel
from open_clt.language.linear_block import LinearBlock
from open_clt.language.linear_path import LinearPath, read_linear_path
from tests.refusals import refuses

TEXT = "The cat sat on the mat"
HOOKS: tuple[InputHook, ...] = ("hook_resid_mid", "ln2.hook_normalized")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, tiny_gpt2: LanguageModel, tiny_llama: LanguageModel) -> LanguageModel:
    return {"gpt2": tiny_gpt2, "llama": tiny_llama}[request.param]


def logits(path: LinearPath) -> Tensor:
    """Compute the logits of a path from its embeddings."""
    stream = path.embedding if path.positional is None else path.embedding + path.positional
    for block in path.blocks:
        stream = stream + block.attention(stream) + block.mlp_output
    return path.final_norm.forward(stream) @ path.W_U + (0 if path.b_U is None else path.b_U)


@pytest.mark.parametrize("hook", HOOKS)
def test_the_path_gives_the_models_logits(model: LanguageModel, hook: InputHook) -> None:
    tokens = model.tokenize(TEXT)
    path = read_linear_path(model, tokens, hook)
    torch.testing.assert_close(logits(path), model.logits(tokens[None])[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(path.inputs, model.capture(tokens[None], hook).inputs[0].transpose(0, 1))


def test_attention_is_its_bias_plus_a_linear_map(model: LanguageModel) -> None:
    block = read_linear_path(model, model.tokenize(TEXT), "hook_resid_mid").blocks[1]
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, *block.mlp_output.shape, generator=generator)
    bias = block.attention_bias()
    linear = block.attention(a) + block.attention(b) - bias
    torch.testing.assert_close(block.attention(a + b), linear, atol=1e-4, rtol=1e-4)


def attention_adjoint(block: LinearBlock, cotangents: Tensor) -> Tensor:
    added = cotangents.clone()
    block.add_attention_adjoint(added)
    return added - cotangents


def test_adjoints_satisfy_their_definition(model: LanguageModel) -> None:
    """``<g, A x> = <A* g, x>`` holds for attention and for norms, and also for functions of the first positions."""
    path = read_linear_path(model, model.tokenize(TEXT), "ln2.hook_normalized")
    generator = torch.Generator().manual_seed(0)
    stream, cotangent = torch.randn(2, path.n_positions, path.d_model, generator=generator)
    for block, reader in zip(path.blocks, path.readers, strict=True):
        attention = block.attention(stream) - block.attention_bias()
        adjoint = attention_adjoint(block, cotangent[None])[0]
        torch.testing.assert_close((attention * cotangent).sum(), (adjoint * stream).sum(), atol=1e-3, rtol=1e-4)
        cropped = attention_adjoint(block, torch.cat([cotangent[:3], torch.zeros_like(cotangent[3:])])[None])[0]
        torch.testing.assert_close(attention_adjoint(block, cotangent[None, :3])[0], cropped[:3], atol=1e-5, rtol=1e-4)
        normed = reader.forward(stream)
        adjoint = reader.adjoint(cotangent)
        torch.testing.assert_close((normed * cotangent).sum(), (adjoint * stream).sum(), atol=1e-3, rtol=1e-4)
        positions = torch.tensor([2, 0])
        adjoint_at = reader.adjoint_at(cotangent[positions], positions)
        torch.testing.assert_close(adjoint_at, adjoint[positions])


def test_a_block_that_is_not_linear_when_frozen_is_refused(tiny_gpt2: LanguageModel) -> None:
    tokens = tiny_gpt2.tokenize(TEXT)
    with (
        tiny_gpt2.hooks([("blocks.1.hook_attn_out", lambda x: x + 0.1 * x.tanh())]),
        refuses(LanguageModelError, "block 1"),
    ):
        read_linear_path(tiny_gpt2, tokens, "hook_resid_mid")
