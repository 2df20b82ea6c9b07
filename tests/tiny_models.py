"""Tiny random language models in Hugging Face's directory layout, made in a second and without a network.

Each fixture is made once per test session (tests/conftest.py loads them):

    tiny_gpt2          LanguageModel: LayerNorm, learned positions, biases; 3 layers, d_model 32, 4 heads
    tiny_llama         LanguageModel: RMSNorm, rotary positions, gated MLP, 4 query and 2 key-value heads; 3 layers
    tiny_gpt2_folder   the directory behind tiny_gpt2, to load by its path
    tiny_llama_folder  the directory behind tiny_llama

Both have 300 tokens (256 bytes, some merges, and ``<|endoftext|>``, which is BOS and EOS) and a context of 64 tokens.
Their weights are large enough for attention, norms and MLPs to matter: norm weights are not one, and biases are not
zero. All tests of a session share them, so a test must not leave hooks or change weights. ``write_gpt2``,
``write_llama`` and ``write_gemma3`` make further models with other settings or seeds
(``load_language_model(str(write_gpt2(tmp_path, activation_function="relu")))``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from open_clt.language.language_model import LanguageModel, load_language_model

VOCABULARY = 300
CONTEXT_LENGTH = 64
END_OF_TEXT = "<|endoftext|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<{{ message.role }}> {{ message.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""A chat template that writes BOS, and refuses messages of tools."""
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


def write_gemma3(folder: Path, *, seed: int = 2, **settings: Any) -> Path:
    """Write a random Gemma-3 and its tokenizer into a folder; ``settings`` override those of Gemma3TextConfig.

    Five of its six layers attend to few tokens, as in the published models, and one to all of them.
    """
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes: dict[str, Any] = {
        "num_hidden_layers": 6,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 4,
        "max_position_embeddings": CONTEXT_LENGTH,
    }
    config = Gemma3TextConfig(**{**sizes, **_tokens(), **settings})
    return _write(folder, Gemma3ForCausalLM(config), seed)


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
