"""Tiny random language models in Hugging Face's directory layout, made in a second and without a network.

Each fixture is made once per test session (tests/conftest.py loads them):

    tiny_gpt2          LanguageModel: LayerNorm, learned positions, biases; 3 layers, d_model 32, 4 heads
    tiny_llama         LanguageModel: RMSNorm, rotary positions, gated MLP, 4 query and 2 key-value heads; 3 layers
    tiny_gpt2_folder   the directory behind tiny_gpt2, to load by its path
    tiny_llama_folder  the directory behind tiny_llama

Both have 300 tokens (256 bytes, some merges, and ``<|endoftext|>``, which is BOS and EOS) and a context of 64 tokens.
Their weights are large enough for attention, norms and MLPs to matter: norm weights are not one, and biases are not
zero. All tests of a session share them, so a test must not leave hooks or change weights. ``write_gpt2`` and
``write_llama`` make further models with other settings or seeds
(``load_language_model(str(write_gpt2(tmp_path, activation_function="relu")))``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from open_clt.language.language_model import LanguageModel, load_language_model

VOCABULARY = 300
CONTEXT_LENGTH = 64
END_OF_TEXT = "<|endoftext|>"
TEXTS = [
    "The cat sat on the mat, and the dog sat on the cat.",
    "When Mary and John went to the shop, John gave a drink to Mary.",
    "One two three four five six seven eight nine ten.",
]


def write_gpt2(folder: Path, *, seed: int = 0, **settings: Any) -> Path:
    """Write a random GPT-2 and its tokenizer into a folder; ``settings`` override those of GPT2Config."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: dict[str, Any] = {"n_layer": 3, "n_embd": 32, "n_head": 4, "n_positions": CONTEXT_LENGTH}
    config = GPT2Config(**{**sizes, **_tokens(), **settings})
    return _write(folder, GPT2LMHeadModel(config), seed)


def write_llama(folder: Path, *, seed: int = 1, **settings: Any) -> Path:
    """Write a random Llama and its tokenizer into a folder; ``settings`` override those of LlamaConfig."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_LENGTH,
    }
    config = LlamaConfig(**{**sizes, **_tokens(), **settings})
    return _write(folder, LlamaForCausalLM(config), seed)


def write_tokenizer(folder: Path) -> Path:
    """Write a byte-level tokenizer, trained on ``TEXTS``, into a folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)
    fast.save_pretrained(folder)
    return folder


def write_gguf(file: Path, folder: Path) -> Path:
    """Write the model of ``write_llama(folder)`` as one .gguf file."""
    from gguf import GGUFWriter

    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary["vocab"], key=vocabulary["vocab"].get))
    writer.add_token_merges([" ".join(merge) for merge in vocabulary["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, weight in load_file(folder / "model.safetensors").items():
        # GGUF stores the two rows of a rotary pair next to each other, Hugging Face half a head apart.
        pairs = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-2])
        if pairs:
            weight = weight.view(pairs, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        for ours, theirs in _GGUF_NAMES.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.layers": "blk",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
}


def _tokens() -> dict[str, int]:
    return {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}


def _write(folder: Path, model: Any, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.data = (0.3 * noise) + ("bias" not in name)  # the weight of a norm is near one
        else:
            parameter.data = noise * (0.5 if "wte" in name or "embed" in name else 0.2)
    model.tie_weights()
    model.save_pretrained(folder)
    return write_tokenizer(folder)


@pytest.fixture(scope="session")
def tiny_gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2(tmp_path_factory.mktemp("tiny-gpt2"))


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def tiny_gpt2(tiny_gpt2_folder: Path) -> LanguageModel:
    return load_language_model(str(tiny_gpt2_folder))


@pytest.fixture(scope="session")
def tiny_llama(tiny_llama_folder: Path) -> LanguageModel:
    return load_language_model(str(tiny_llama_folder))
