"""GGUF files: settings of a model that llama.cpp takes from such a file, and that transformers does not read.

Without them, the published Gemma-3 models of four billion parameters and more would compute other numbers from a
``.gguf`` file than from their Hugging Face directory, and nothing would say so. Source: ``gemma3`` in llama.cpp.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

logger = logging.getLogger(__name__)

_GEMMA3_27B_LAYERS = 62
"""Number of layers by which llama.cpp knows the one Gemma-3 model whose attention is scaled by its width."""


def complete_config(config: Any, file: Path) -> None:
    """Set what a file states about rotary positions and attention in the config that transformers made from the file.

    Where the config cannot express the file's positions, a warning is logged.
    """
    settings = _settings(file)
    scaled = settings.get("rope.scaling.type", "none") != "none" or "rope_freqs.weight" in settings
    if config.model_type == "gemma3_text":
        _complete_gemma3(config, settings)
    elif scaled and getattr(config, "rope_parameters", {}).get("rope_type", "default") == "default":
        logger.warning(
            "%s scales its rotary positions, which transformers does not read from a .gguf file; its numbers differ "
            "from those of the same model's Hugging Face directory.",
            file,
        )


def _complete_gemma3(config: Any, settings: Mapping[str, Any]) -> None:
    is_27b = config.num_hidden_layers == _GEMMA3_27B_LAYERS
    config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if is_27b else config.head_dim
    if settings.get("rope.scaling.type") == "linear":  # only layers that attend to all tokens have longer positions
        scaling = {"rope_type": "linear", "factor": float(settings["rope.scaling.factor"])}
        config.rope_parameters["full_attention"].update(scaling)
    if "rope.freq_base_swa" in settings:
        config.rope_parameters["sliding_attention"]["rope_theta"] = float(settings["rope.freq_base_swa"])


def _settings(file: Path) -> dict[str, Any]:
    """The single numbers and texts of a file's metadata, without the family's name; names of rotary tensors too."""
    from gguf import GGUFReader, GGUFValueType

    reader = cast(Any, GGUFReader)(file)
    settings: dict[str, Any] = {tensor.name: None for tensor in reader.tensors if tensor.name.startswith("rope_")}
    for name, field in reader.fields.items():
        if len(field.types) == 1:  # neither an array nor a field of the file's header
            value = field.parts[field.data[0]]
            text = field.types[0] == GGUFValueType.STRING
            settings[name.partition(".")[2]] = str(bytes(value), "utf-8") if text else value[0].item()
    return settings
