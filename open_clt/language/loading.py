"""Loading: the bridge and the tokenizer of a language model, and the only file that imports TransformerLens.

transformers reads the tokenizer and the weights, and TransformerLens wraps the weights in a bridge. Both raise errors
of many kinds; here each becomes one sentence that says what is wrong with the model, and what to do.
"""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251  (the error alone, to explain it)
from typing import Any, NamedTuple, cast

import torch

from open_clt import files
from open_clt.errors import CheckpointError, ConfigError, LanguageModelError, OpenCLTError, ResourceError
from open_clt.finite import check_finite
from open_clt.language.gguf import complete_config
from open_clt.language.model_source import ModelSource
from open_clt.memory import available_on, check_address_space, check_memory, is_failed_allocation

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest allowed deviation from the model's own activations, relative to their norm, by the dtype of the model."""

_MEMORY_WAYS = "use a smaller model, dtype 'bfloat16', or a machine with more memory"
"""What a user can do if a language model does not fit into memory."""
_UNEXPECTED = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, NotImplementedError, TypeError)
"""Errors of libraries that are not meant for users: the library does not expect a part or a setting of the model."""
_MOST_LAYERS = 10_000
"""Largest number of layers of a model; a damaged config may state more, and building them would not end."""
_GENERATION = "generation_config.json"
_ADDRESS_SPACE = 512 * 2**20
"""Bytes of address space without which TransformerLens and the libraries that it uses cannot be imported (512 MiB)."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class LoadedModel(NamedTuple):
    """The parts of a language model that was loaded."""

    bridge: Any
    """TransformerLens's TransformerBridge, whose parameters need no gradient."""
    tokenizer: Any
    """Tokenizer of transformers."""
    end_tokens: frozenset[int]
    """Tokens that end a text according to ``generation_config.json``, such as that of the end of a turn in a chat."""


def load_model(source: ModelSource, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """Load a model from its source; raises LanguageModelError if it cannot be read, or cannot have a transcoder."""
    check_address_space("Importing TransformerLens", _ADDRESS_SPACE)
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not source.local:
        logger.info("%s is not on this machine; it is downloaded from the hub.", source.name)
    # With trust_remote_code=None, transformers would ask on the terminal whether to run a model's own code.
    options: dict[str, Any] = {"local_files_only": source.local, "trust_remote_code": False}
    if source.gguf_file:
        options["gguf_file"] = source.gguf_file
    settings = "metadata" if source.gguf_file else "config.json"
    with _explained(f"The {settings} of {source.name!r} cannot be read"):
        config = _read_config(source, options)
    with _explained(f"The tokenizer of {source.name!r} cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(source.location, **options)
        _check_tokenizer(tokenizer, source.name)
    with _explained(f"The {_GENERATION} of {source.name!r} cannot be read"):
        end_tokens = _end_tokens(source)
    with _explained(f"The language model {source.name!r} cannot be read"), _no_loading_bar():
        _check_memory(source.name, config, device, dtype)
        model, loading_info = cast(Any, AutoModelForCausalLM).from_pretrained(
            source.location,
            config=config,
            dtype=dtype,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, with their names
            weights_only=True,  # a .bin file is a pickle, which could run code
            **options,
        )
        _check_complete(loading_info, source.name)
        model.config.architectures = [type(model).__name__]  # a .gguf file may name none
        model.eval().to(device)
        logits = _check_numbers(model, source.name)
    with _explained(f"TransformerLens cannot express the language model {source.name!r}"):
        bridge = cast(Any, TransformerBridge).boot_transformers(
            source.location, hf_model=model, tokenizer=tokenizer, device=device, dtype=dtype, trust_remote_code=False
        )
        _complete_norms(bridge)
        # The bridge adds parameters (the split queries, keys and values of GPT-2), so all are frozen after it is made.
        bridge.requires_grad_(False)
        _check_bridge(bridge, source.name)
        _check_logits(_few_logits(bridge, model.config), logits, source.name, dtype)
    return LoadedModel(bridge, tokenizer, end_tokens)


def _check_complete(loading_info: dict[str, Any], name: str) -> None:
    """Raise LanguageModelError if weights are missing or have other shapes; transformers gives them random values."""
    if wrong := sorted(loading_info["mismatched_keys"]):
        weight, stored, expected = wrong[0]
        raise LanguageModelError(
            f"The weight {weight} of {name!r} has the shape {tuple(stored)}, but config.json needs {tuple(expected)}; "
            "download both again, or use 'embedded'."
        )
    if missing := sorted(loading_info["missing_keys"]):
        raise LanguageModelError(
            f"{name!r} lacks {len(missing)} weights, the first of which is {missing[0]}; add them, or use 'embedded'."
        )


def _check_numbers(model: Any, name: str) -> torch.Tensor:
    """Return a few logits of a model; raises LanguageModelError if they, or its weights, are not finite."""
    for weight, values in model.named_parameters():
        check_finite(values, f"The weight {weight} of {name!r}", error=LanguageModelError)
    logits = _few_logits(model, model.config)
    check_finite(logits, f"The logits of {name!r}", error=LanguageModelError, advice="its weights may be too large")
    return logits


def _read_config(source: ModelSource, options: dict[str, Any]) -> Any:
    """Read the config of a model; raises LanguageModelError for an adapter, and for a model with quantised weights."""
    from transformers import AutoConfig
    from transformers.utils.peft_utils import find_adapter_config_file

    # The config of an adapter would make transformers load another model.
    if find_adapter_config_file(source.location, local_files_only=source.local):
        raise LanguageModelError(
            f"{source.name!r} holds an adapter of peft, which changes another model; merge both with peft, save the "
            "result, and give its directory."
        )
    config = AutoConfig.from_pretrained(source.location, **options)
    if source.gguf_file:
        complete_config(config, Path(source.location) / source.gguf_file)
    settings = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if settings is not None:
        method = cast(dict[str, Any], settings).get("quant_method") if isinstance(settings, dict) else None
        raise LanguageModelError(
            f"The weights of {source.name!r} are quantised ({method or 'by an unknown method'}), so products with them "
            "are not exact; give the model that was quantised, or save a copy after model.dequantize()."
        )
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers > _MOST_LAYERS:
        raise LanguageModelError(f"The config.json of {source.name!r} states {layers} layers; download it again.")
    return config


def _end_tokens(source: ModelSource) -> frozenset[int]:
    """The tokens that end a text according to ``generation_config.json``; none if the model has no such file.

    Raises LanguageModelError if the file is damaged, which transformers passes over.
    """
    if source.gguf_file:  # such a file in the same directory may belong to another model
        return frozenset()
    try:
        path = Path(source.location) / _GENERATION if source.local else _downloaded(source.location, _GENERATION)
        if path is None or not path.exists():
            return frozenset()
        settings = files.read_json(path)
    except CheckpointError as error:
        raise LanguageModelError(str(error)) from error
    stated = cast(dict[str, Any], settings).get("eos_token_id") if isinstance(settings, dict) else ""
    tokens: list[Any] = [] if stated is None else cast(list[Any], stated) if isinstance(stated, list) else [stated]
    if any(type(token) is not int or token < 0 for token in tokens):
        raise LanguageModelError(
            f"{path} has eos_token_id {str(stated)[:60]!r}; it must be the number of a token, or a list of them."
        )
    return frozenset(tokens)


def _downloaded(name: str, file: str) -> Path | None:
    """The path of a small file of a model on the hub; None if the model lacks it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except EntryNotFoundError:
        return None


def _check_memory(name: str, config: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ResourceError if the weights of a model do not fit into memory, before they are downloaded or read."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):  # a model without memory of its own
        model = cast(Any, AutoModelForCausalLM).from_config(config, dtype=dtype, trust_remote_code=False)
    needed = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    for holder in dict.fromkeys([torch.device("cpu"), device]):  # the memory of the CPU holds the weights first
        job = f"The language model {name!r} on device {str(holder)!r}"
        check_memory(job, needed, _MEMORY_WAYS, available=available_on(holder))


@torch.no_grad()
def _few_logits(model: Any, config: Any) -> torch.Tensor:
    """The logits of a few tokens, which a model must have with and without its bridge."""
    length = min(8, getattr(config, "max_position_embeddings", None) or 8)
    tokens = torch.arange(length, device=next(model.parameters()).device) % config.get_text_config().vocab_size
    output = model(tokens[None])
    return getattr(output, "logits", output).float()


def _check_logits(bridged: torch.Tensor, own: torch.Tensor, name: str, dtype: torch.dtype) -> None:
    deviation = float((bridged - own).norm() / own.norm().clamp(min=1e-30))
    if deviation > TOLERANCE[dtype]:
        raise LanguageModelError(
            f"TransformerLens cannot express the language model {name!r}: its logits deviate from the model's own by "
            f"{deviation:.1e}; use another language model."
        )


def check_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return the dtype with this name; raises ConfigError if it is neither float32 nor bfloat16."""
    checked = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if checked not in _DTYPES.values():
        raise ConfigError(f"dtype is {str(dtype)!r}; it must be {' or '.join(map(repr, _DTYPES))}.")
    return cast(torch.dtype, checked)


def _check_tokenizer(tokenizer: Any, name: str) -> None:
    # If there are no tokenizer files, transformers makes a tokenizer without a vocabulary.
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise LanguageModelError(f"{name!r} has no tokenizer; add its tokenizer.json.")
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise LanguageModelError(f"The tokenizer of {name!r} has neither a BOS nor an EOS token; add one of them.")


def _complete_norms(bridge: Any) -> None:
    """Give norms without weights (OLMo's) the weight one, which readers of norms and TransformerLens's hooks need."""
    for norm in bridge.modules():
        original = getattr(norm, "original_component", None)
        if hasattr(norm, "hook_scale") and original is not None and getattr(original, "weight", None) is None:
            shape = getattr(original, "normalized_shape", (bridge.cfg.d_model,))
            device = next(bridge.original_model.parameters()).device
            original.weight = torch.nn.Parameter(torch.ones(shape, device=device, dtype=torch.float32))


def _check_bridge(bridge: Any, name: str) -> None:
    causal = getattr(bridge.cfg, "attention_dir", "causal") == "causal"
    if not causal or any(
        bridge.get_hook_point(f"blocks.{layer}.hook_mlp_out") is None for layer in range(bridge.cfg.n_layers)
    ):
        raise LanguageModelError(f"{name!r} is not a decoder-only model with MLP blocks; use a model that is.")


def _without_bar(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    return items


@contextmanager
def _no_loading_bar() -> Generator[None, None, None]:
    """Hide the progress bars that transformers shows while it reads weights; bars of downloads are shown as before."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers import modeling_gguf_pytorch_utils as gguf_reader
    from transformers.utils import logging as transformers_logging

    was_enabled = transformers_logging.is_progress_bar_enabled()
    downloads_are_shown = not are_progress_bars_disabled()
    with warnings.catch_warnings():  # the hub warns if HF_HUB_DISABLE_PROGRESS_BARS=0 keeps its bars
        warnings.simplefilter("ignore")
        transformers_logging.disable_progress_bar()
    if downloads_are_shown:  # transformers has disabled these bars too
        enable_progress_bars()
    gguf_bar = cast(Any, gguf_reader).tqdm
    cast(Any, gguf_reader).tqdm = _without_bar  # this bar has no switch
    try:
        yield
    finally:
        cast(Any, gguf_reader).tqdm = gguf_bar
        if was_enabled:
            transformers_logging.enable_progress_bar()


@contextmanager
def _explained(problem: str) -> Generator[None, None, None]:
    """Turn any exception of a library into one LanguageModelError, whose cause is that exception."""
    try:
        yield
    except OpenCLTError:
        raise
    # Loading runs code of several libraries, whose exceptions have no common base.
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise LanguageModelError(
                f"{problem}: it needs code of its own, which OpenCLT does not run; give a model whose architecture is "
                "part of transformers, or use 'embedded'."
            ) from error
        if is_failed_allocation(error):
            raise ResourceError(f"{problem}: memory is too small; {_MEMORY_WAYS}.") from error
        if isinstance(error, UnpicklingError):
            raise LanguageModelError(
                f"{problem}: its .bin file is damaged, or holds Python objects besides tensors, which OpenCLT does not "
                "read because they can run code; give a copy in safetensors, or use 'embedded'."
            ) from error
        raise LanguageModelError(
            f"{problem}: {_reason(error)}. Check that it is a decoder-only model whose files are complete, or use "
            "'embedded'."
        ) from error


def _reason(error: Exception) -> str:
    """The first sentence of a library's error; of an error that is not meant for users, where and how it arose."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    text = text.split(". ")[0][:200].rstrip(".")
    if text and not isinstance(error, _UNEXPECTED):
        return text
    frame = list(traceback.walk_tb(error.__traceback__))[-1][0]
    library = str(frame.f_globals.get("__name__", "Python")).partition(".")[0]
    ending = f": {text}" if text else ""
    return f"the library {library} stops in its function {frame.f_code.co_name} with {type(error).__name__}{ending}"
