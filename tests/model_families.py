"""Families of language models: the settings of a tiny random model of each, and how to write one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from open_clt.language.language_model import LanguageModel, load_language_model
from tests.tiny_models import CONTEXT_LENGTH, VOCABULARY, write_tokenizer

_TOKENS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_GPT2: dict[str, Any] = {"n_layer": 3, "n_embd": 32, "n_head": 4, "n_positions": CONTEXT_LENGTH}
_PLAIN: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT_LENGTH,
}
_GROUPED: dict[str, Any] = {**_PLAIN, "num_key_value_heads": 2}
_HEADS: dict[str, Any] = {**_GROUPED, "head_dim": 8}

FAMILIES: dict[str, dict[str, Any]] = {
    "Apertus": _GROUPED,
    "Bloom": {"n_layer": 3, "hidden_size": 32, "n_head": 4},
    "CodeGen": {**_GPT2, "rotary_dim": 4},
    "Cohere": _GROUPED,
    "Cohere2": _GROUPED,
    "Ernie4_5": _HEADS,
    "Exaone4": _GROUPED,
    "Falcon": {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4},
    "Falcon (ALiBi)": {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "alibi": True,
        "multi_query": False,
        "parallel_attn": False,
    },
    "GPT2": _GPT2,
    "GPTBigCode": _GPT2,
    "GPTJ": {**_GPT2, "rotary_dim": 4},
    "GPTNeo": {
        "hidden_size": 32,
        "num_layers": 4,
        "num_heads": 4,
        "max_position_embeddings": CONTEXT_LENGTH,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 4,
    },
    "GPTNeoX": {**_PLAIN, "rotary_pct": 0.5},
    "Gemma": _HEADS,
    "Gemma2": {**_HEADS, "query_pre_attn_scalar": 8},
    "Gemma3Text": {**_HEADS, "query_pre_attn_scalar": 8},
    "Glm": _HEADS,
    "Glm4": _HEADS,
    "Granite": {**_GROUPED, "residual_multiplier": 0.5, "embedding_multiplier": 2.0, "logits_scaling": 2.0},
    "Helium": _HEADS,
    "HunYuanDenseV1": _HEADS,
    "Llama": _GROUPED,
    "Mamba": {"hidden_size": 32, "num_hidden_layers": 3},
    "Mistral": {**_GROUPED, "sliding_window": 4},
    "Mixtral": {**_GROUPED, "num_local_experts": 2, "num_experts_per_tok": 1},
    "Mpt": {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": CONTEXT_LENGTH},
    "Nemotron": _GROUPED,
    "OPT": {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT_LENGTH,
        "word_embed_proj_dim": 32,
    },
    "OPT (norms after)": {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT_LENGTH,
        "word_embed_proj_dim": 16,
        "do_layer_norm_before": False,
    },
    "Olmo": _PLAIN,
    "Olmo2": _GROUPED,
    "OpenAIGPT": _GPT2,
    "Phi": {**_PLAIN, "partial_rotary_factor": 0.5},
    "Phi3": _GROUPED,
    "Qwen2": _GROUPED,
    "Qwen2Moe": {
        **_GROUPED,
        "num_experts": 4,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "Qwen3": _HEADS,
    "SmolLM3": _GROUPED,
    "StableLm": _GROUPED,
    "Starcoder2": _GROUPED,
    "XGLM": {"d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 48},
}
"""Settings of a family's config, by the name of its config in transformers without ``Config``, and a variant."""


def load_family(family: str, folder: Path, seed: int = 0) -> LanguageModel:
    """Write a tiny random model of a family into a folder, and load it."""
    import transformers

    config = getattr(transformers, f"{family.split()[0]}Config")(**_TOKENS, **FAMILIES[family])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return load_language_model(str(write_tokenizer(folder)))


def own_outputs(folder: Path, tokens: torch.Tensor, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The outputs of modules of every block of the model in a folder, (position, layer, d_model), by their names."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for path, module in model.named_modules():
        if (name := path.rpartition(".")[2]) in outputs:
            module.register_forward_hook(lambda _, __, output, name=name: outputs[name].append(output[0]))
    with torch.no_grad():
        model(tokens)
    return {name: torch.stack(of_blocks, dim=1) for name, of_blocks in outputs.items()}


def own_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """The logits of the model in a folder, computed by transformers alone."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(tokens).logits
