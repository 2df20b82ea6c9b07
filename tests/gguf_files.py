"""GGUF files: a tiny model's directory, written as one .gguf file by llama.cpp's conventions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.layers": "blk",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}
_NORMS = {
    "llama": {"post_attention_layernorm": "ffn_norm"},
    "gemma3": {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
}


def write_gguf(file: Path, folder: Path) -> Path:
    """Write the model of ``write_llama(folder)`` or ``write_gemma3(folder)`` as one .gguf file."""
    from gguf import GGUFWriter, RopeScalingType

    config = json.loads((folder / "config.json").read_text())
    family = {"llama": "llama", "gemma3_text": "gemma3"}[config["model_type"]]
    writer = GGUFWriter(file, family)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config["rope_parameters"]
    if family == "gemma3":
        rope = rope["full_attention"]  # the base of layers with a sliding window is not written
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
        writer.add_sliding_window(config["sliding_window"])
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    _add_tokenizer(writer, folder)
    for name, weight in load_file(folder / "model.safetensors").items():
        writer.add_tensor(_gguf_name(name, family), _gguf_weight(name, weight, config).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer: Any, folder: Path) -> None:
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]
    writer.add_vocab_size(len(vocabulary["vocab"]))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary["vocab"], key=vocabulary["vocab"].get))
    writer.add_token_merges([" ".join(merge) for merge in vocabulary["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def _gguf_name(name: str, family: str) -> str:
    for ours, theirs in {**_NORMS[family], **_NAMES}.items():
        name = name.replace(ours, theirs)
    return name


def _gguf_weight(name: str, weight: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    if config["model_type"] == "gemma3_text":
        return weight + 1 if "norm" in name else weight  # Gemma adds one to the weight of a norm, GGUF stores the sum
    # GGUF stores the two rows of a rotary pair next to each other, Hugging Face half a head apart.
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}.get(name.split(".")[-2])
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape) if heads else weight
