"""A language model computes what transformers computes, and hooks end with their ``with``."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from open_clt.errors import ConfigError, LanguageModelError, TextError
from open_clt.language.language_model import LanguageModel, Positioned, load_language_model
from tests.refusals import refuses

TEXT = "The cat sat on the mat, and the dog sat on the cat."


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return request.getfixturevalue(request.param)


@pytest.fixture
def original(model: LanguageModel, request: pytest.FixtureRequest) -> Any:
    """The same weights, loaded by transformers alone."""
    from transformers import AutoModelForCausalLM

    fixture = "tiny_gpt2_folder" if "gpt2" in model.name else "tiny_llama_folder"
    folder: Path = request.getfixturevalue(fixture)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def norms_and_mlps(original: Any) -> list[tuple[Any, Any]]:
    """Return the norm before the MLP, and the MLP, of each block."""
    if hasattr(original, "transformer"):
        return [(block.ln_2, block.mlp) for block in original.transformer.h]
    return [(block.post_attention_layernorm, block.mlp) for block in original.model.layers]


@torch.no_grad()
def run_original(original: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the residual stream before the MLP, its normalised input, its output, all by layer, and the logits."""
    streams: list[torch.Tensor] = []
    mlp_inputs: list[torch.Tensor] = []
    mlp_outputs: list[torch.Tensor] = []
    handles = []
    for norm, mlp in norms_and_mlps(original):
        handles.append(norm.register_forward_hook(lambda _, inputs, __: streams.append(inputs[0])))
        handles.append(mlp.register_forward_hook(lambda _, inputs, __: mlp_inputs.append(inputs[0])))
        handles.append(mlp.register_forward_hook(lambda _, __, output: mlp_outputs.append(output)))
    logits = original(tokens).logits
    for handle in handles:
        handle.remove()
    stream, mlp_input, mlp_output = (torch.stack(tensors, dim=2) for tensors in (streams, mlp_inputs, mlp_outputs))
    return stream, mlp_input, mlp_output, logits


def test_captured_activations_are_those_of_transformers(model: LanguageModel, original: Any) -> None:
    tokens = torch.stack([model.tokenize(TEXT), model.tokenize(TEXT.upper())[: len(model.tokenize(TEXT))]])
    stream, mlp_input, mlp_output, logits = run_original(original, tokens)
    captured = model.capture(tokens, "hook_resid_mid")
    torch.testing.assert_close(captured.inputs, stream, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(captured.targets, mlp_output, atol=1e-5, rtol=1e-5)
    own = model.unembedding.logits(captured.states.flatten(0, 1)).unflatten(0, tokens.shape)
    torch.testing.assert_close(own, logits, atol=1e-5, rtol=1e-5)

    normalised = model.capture(tokens, "ln2.hook_normalized").inputs
    for layer, (norm, _) in enumerate(norms_and_mlps(original)):
        expected = normalised[:, :, layer] * norm.weight + getattr(norm, "bias", 0)
        torch.testing.assert_close(mlp_input[:, :, layer], expected, atol=1e-5, rtol=1e-5)


def test_reading_in_pieces_gives_the_logits_of_reading_at_once(model: LanguageModel) -> None:
    tokens = model.tokenize(TEXT)[None]
    whole, key_values = model.logits(tokens), None
    with model.hooks([("blocks.0.hook_mlp_out", torch.clone)]):
        for start, end in [(0, 4), (4, 5), (5, 9)]:
            logits, key_values = model.advance(tokens[:, start:end], key_values)
            torch.testing.assert_close(logits, whole[:, end - 1], atol=1e-5, rtol=1e-5)


def test_a_positioned_hook_receives_the_position_where_the_pass_begins(tiny_gpt2: LanguageModel) -> None:
    """Each hook receives its own start: with several hooks, a pass inside a pass, and a pass that fails."""
    tokens = tiny_gpt2.tokenize(TEXT)[None]
    received: list[tuple[int, int, int]] = []
    """The layer, the start and the number of tokens of each call."""
    inside = False

    def note(layer: int, activation: torch.Tensor, start: int) -> None:
        nonlocal inside
        received.append((layer, start, activation.shape[1]))
        if layer == 0 and start and not inside:
            inside = True
            tiny_gpt2.capture(tokens)
            inside = False

    names = [tiny_gpt2.hook_name(layer, "hook_mlp_out") for layer in (0, 2)]
    hooks = [(name, Positioned(partial(note, layer))) for layer, name in zip((0, 2), names, strict=True)]
    with tiny_gpt2.hooks([*hooks, (names[0], torch.clone)]):
        _, key_values = tiny_gpt2.advance(tokens[:, :4])
        tiny_gpt2.advance(tokens[:, 4:6], key_values)
        length = tokens.shape[1]
        assert received == [(0, 0, 4), (2, 0, 4), (0, 4, 2), (0, 0, length), (2, 0, length), (2, 4, 2)]
        with tiny_gpt2.hooks([(names[1], lambda _: 1 / 0)]), pytest.raises(ZeroDivisionError):
            tiny_gpt2.advance(tokens[:, 6:], key_values)
        received.clear()
        tiny_gpt2.logits(tokens)
    assert [start for _, start, _ in received] == [0, 0]


def test_a_second_thread_neither_runs_the_hooks_nor_changes_their_positions(tiny_gpt2: LanguageModel) -> None:
    tokens = tiny_gpt2.tokenize(TEXT)[None]
    _, key_values = tiny_gpt2.advance(tokens[:, :4])
    expected = tiny_gpt2.advance(tokens).logits
    starts: list[int] = []
    results: list[torch.Tensor] = []
    second = Thread(target=lambda: results.append(tiny_gpt2.advance(tokens).logits))

    def start_second(_: torch.Tensor) -> None:
        second.start()
        second.join(0.2)

    name = tiny_gpt2.hook_name(2, "hook_mlp_out")
    with tiny_gpt2.hooks(
        [
            (tiny_gpt2.hook_name(0, "hook_mlp_out"), start_second),
            (name, Positioned(lambda _, start: starts.append(start))),
            (name, torch.zeros_like),
        ]
    ):
        tiny_gpt2.advance(tokens[:, 4:], key_values)
        assert second.is_alive()
    second.join()
    assert starts == [4]
    assert torch.equal(results[0], expected)


def test_next_tokens_are_the_most_probable_ones_of_each_text_alone(model: LanguageModel) -> None:
    texts = [TEXT[:end] for end in (5, 31, 12, 8)]
    alone = [int(model.logits(model.tokenize(text)[None])[0, -1].argmax()) for text in texts]
    assert model.next_tokens(texts, batch_size=3) == alone
    assert model.next_tokens([]) == []


def test_hooks_replace_activations_until_their_with_ends(model: LanguageModel) -> None:
    tokens = model.tokenize(TEXT)[None]
    before = model.logits(tokens)
    name = model.hook_name(1, "hook_mlp_out")
    with model.hooks([(name, torch.zeros_like)]):
        inside = model.run_with_cache(tokens, ["blocks.2.hook_resid_mid"])
        assert not torch.equal(inside.logits, before)
    assert torch.equal(model.logits(tokens), before)
    with pytest.raises(ZeroDivisionError), model.hooks([(name, lambda _: 1 / 0)]):
        model.logits(tokens)
    assert torch.equal(model.logits(tokens), before)
    with pytest.raises(LanguageModelError), model.hooks([(name, torch.zeros_like), ("blocks.1.hook_nothing", abs)]):
        pass
    assert torch.equal(model.logits(tokens), before)


@pytest.mark.parametrize(
    ("hook", "named"),
    [
        ("hook_of_no_model", "blocks.0.hook_of_no_model"),
        ("hook_mlp_in", "blocks.0.hook_mlp_in"),
        ("hook_attn_in", "blocks.0.hook_attn_in"),
        ("hook_q_input", "blocks.0.hook_q_input"),
        ("attn.qkv.hook_in", "attn.qkv.hook_in"),
        ("attn.hook_q", "(4, 8)"),
    ],
)
def test_an_unusable_hook_is_refused_with_the_names_of_usable_ones(
    tiny_gpt2: LanguageModel, hook: str, named: str
) -> None:
    tokens = tiny_gpt2.tokenize(TEXT)[None]
    before = tiny_gpt2.logits(tokens)
    with refuses(LanguageModelError, named, "hook_resid_mid", "ln2.hook_normalized", "hook_mlp_out"):
        tiny_gpt2.capture(tokens, hook, "hook_mlp_out")
    assert torch.equal(tiny_gpt2.logits(tokens), before)
    for usable in ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "ln2.hook_normalized"):
        assert tiny_gpt2.capture(tokens, usable, "hook_mlp_out").inputs.shape[2:] == (3, 32)


def test_run_with_cache_returns_the_activations_that_were_asked_for(model: LanguageModel) -> None:
    tokens = model.tokenize(TEXT)[None]
    logits, activations = model.run_with_cache(tokens, ["blocks.0.attn.hook_pattern", "blocks.2.hook_mlp_out"])
    assert torch.equal(logits, model.logits(tokens))
    assert activations["blocks.0.attn.hook_pattern"].shape == (1, model.n_heads, tokens.numel(), tokens.numel())
    assert torch.equal(activations["blocks.2.hook_mlp_out"], model.capture(tokens).targets[:, :, 2])


def test_no_tensor_needs_a_gradient_unless_a_hook_brings_it(model: LanguageModel) -> None:
    tokens = model.tokenize(TEXT)[None]
    assert not model.logits(tokens).requires_grad
    output = torch.zeros(1, tokens.numel(), model.d_model, requires_grad=True)
    with model.hooks([("blocks.0.hook_mlp_out", lambda _: output)]):
        model.logits(tokens).sum().backward()
    assert output.grad is not None
    assert output.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "text", [TEXT, " leading space", "naïve façade: 10 €, 日本語 🙂", "\n\n\ttabs  and   spaces  "]
)
def test_decoding_the_tokens_of_a_text_gives_the_text(model: LanguageModel, text: str) -> None:
    tokens = model.tokenize(text)
    assert tokens[0] == model.bos_token_id
    assert model.decode(tokens[1:]) == text
    assert model.tokenize(text, prepend_bos=False).tolist() == tokens[1:].tolist()
    assert model.token_ids([text, "x"])[0] == tokens[1:].tolist()
    assert len(model.token_strings(tokens)) == len(tokens)
    if text.isascii():
        assert "".join(model.token_strings(tokens[1:])) == text


def test_empty_and_long_texts_are_refused(model: LanguageModel) -> None:
    with refuses(TextError):
        model.tokenize("")
    with refuses(TextError, 101, model.context_length):
        model.tokenize("!" * 100)
    assert len(model.token_ids(["!" * 100])[0]) == 100
    long = torch.zeros(1, model.context_length + 1, dtype=torch.long)
    for run in (model.logits, model.capture, model.advance):
        with refuses(TextError, 65, 64):
            run(long)
    key_values = model.advance(long[:, :-1]).key_values
    with refuses(TextError, 65, 64):
        model.advance(long[:, :1], key_values)


def test_the_shape_and_the_special_tokens_of_a_model_are_its_attributes(
    tiny_gpt2: LanguageModel, tiny_llama: LanguageModel
) -> None:
    for model in (tiny_gpt2, tiny_llama):
        assert (model.n_layers, model.d_model, model.n_heads) == (3, 32, 4)
        assert (model.vocab_size, model.context_length) == (300, 64)
        assert (model.bos_token_id, model.eos_token_id) == (0, 0)
        assert (model.device.type, model.dtype) == ("cpu", torch.float32)


def test_a_model_in_bfloat16_differs_by_rounding_only(tiny_gpt2: LanguageModel, tiny_gpt2_folder: Path) -> None:
    model = load_language_model(str(tiny_gpt2_folder), dtype="bfloat16")
    tokens = model.tokenize(TEXT)[None]
    captured = model.capture(tokens)
    assert captured.inputs.dtype == captured.targets.dtype == torch.bfloat16
    difference = (model.logits(tokens).float() - tiny_gpt2.logits(tokens)).norm()
    assert 0 < difference < 0.03 * tiny_gpt2.logits(tokens).norm()


@pytest.mark.gpu
def test_cuda_gives_the_logits_of_the_cpu(tiny_llama: LanguageModel, tiny_llama_folder: Path) -> None:
    model = load_language_model(str(tiny_llama_folder), device="cuda")
    tokens = tiny_llama.tokenize(TEXT)[None]
    assert model.device.type == model.capture(tokens).inputs.device.type == "cuda"
    torch.testing.assert_close(model.logits(tokens).cpu(), tiny_llama.logits(tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"dtype": "float16"}, "dtype float16 float32 bfloat16"),
        ({"dtype": torch.int8}, "dtype torch.int8"),
        ({"device": "gpu"}, "device gpu cpu cuda"),
    ],
)
def test_a_device_or_dtype_that_is_not_available_is_refused(settings: dict[str, Any], named: str) -> None:
    with refuses(ConfigError, *named.split()):
        load_language_model("gpt2", **settings)


@pytest.mark.real_model
def test_a_pretrained_model_knows_paris(real_model_folder: Path) -> None:
    model = load_language_model(real_model_folder)
    tokens = model.tokenize("The Eiffel Tower is in the city of")
    assert "".join(model.token_strings(tokens[1:])) == "The Eiffel Tower is in the city of"
    captured = model.capture(tokens[None], "ln2.hook_normalized")
    assert captured.inputs.shape == captured.targets.shape == (1, len(tokens), model.n_layers, model.d_model)
    assert model.decode(model.unembedding.logits(captured.states[0, -1:]).argmax(-1)) == " Paris"


def test_weights_that_are_not_finite_are_named_when_a_model_is_loaded(tiny_gpt2_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_gpt2_folder, folder)
    weights = load_file(folder / "model.safetensors")
    name = "transformer.h.1.mlp.c_fc.weight"
    for value in (torch.nan, torch.inf):
        weights[name][2, 3] = value
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        with refuses(LanguageModelError, name, str(folder), value, [2, 3]):
            load_language_model(str(folder))
    weights[name].fill_(1e38)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with refuses(LanguageModelError, "logits", str(folder)):
        load_language_model(str(folder))
