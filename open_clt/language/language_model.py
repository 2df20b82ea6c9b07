"""The language model, and the only file that knows TransformerLens and transformers.

``load_language_model`` takes a Hugging Face name, a directory, a ``.gguf`` file or ``"embedded"``; a ``LanguageModel``
tokenises, captures activations, and runs with hooks that live inside a ``with``. Weights are as they were published:
nothing is folded, centred or compiled, and nothing needs a gradient unless a hook brings in a tensor that does.

Where a transcoder reads and writes, in TransformerLens's names (``{l}`` is a layer):

    blocks.{l}.hook_resid_mid        the residual stream before the MLP's norm
    blocks.{l}.ln2.hook_normalized   the normalised MLP input, before the norm's weight and bias
    blocks.{l}.hook_mlp_out          the MLP's output

or any other hook of the blocks that carries ``d_model`` numbers a token, such as ``hook_resid_post``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple, TypeAlias, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from open_clt.config import MLP_OUTPUT_HOOK, InputHook
from open_clt.errors import ConfigError, LanguageModelError, OpenCLTError, TextError
from open_clt.language.model_source import ModelSource, find_model

logger = logging.getLogger(__name__)

HookFunction: TypeAlias = Callable[[Tensor], Tensor | None]
"""A function that sees an activation; what it returns, unless that is None, takes the activation's place."""


class Positioned(NamedTuple):
    """A hook function that also asks at which position of the text the activation begins.

    A pass that reads a whole text begins at 0. A pass of ``LanguageModel.advance`` begins after the tokens that its
    cache holds.
    """

    function: Callable[[Tensor, int], Tensor | None]


Hook: TypeAlias = tuple[str, HookFunction | Positioned]
"""The full name of a hook, and the function that is called there."""

KeyValues: TypeAlias = Any
"""Keys and values of the tokens a model has already seen, as transformers keeps them."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_HOOKS = (
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "ln2.hook_normalized",
)  # fmt: skip
"""Those that most transcoders read and write at."""


class Captured(NamedTuple):
    """What a transcoder learns from, for a batch of contexts."""

    inputs: Float[Tensor, "batch position layer d_model"]
    targets: Float[Tensor, "batch position layer d_model"]
    logits: Float[Tensor, "batch position vocab"] | None
    """None if they were not asked for."""


class Cached(NamedTuple):
    """Logits, and the activations at the hooks that were asked for, by name."""

    logits: Float[Tensor, "batch position vocab"]
    activations: dict[str, Tensor]


class Advanced(NamedTuple):
    """One step of generation: logits after the last token, and the cache that the next step continues from."""

    logits: Float[Tensor, "batch vocab"]
    key_values: KeyValues


@final
class LanguageModel:
    """A decoder-only transformer with MLP blocks, its tokenizer, and access to what happens inside."""

    def __init__(self, name: str, bridge: Any, tokenizer: Any) -> None:
        config = bridge.cfg
        self.name = name
        self.bridge = bridge
        """TransformerLens's TransformerBridge: raw weights and hook points, for those who need more than this class."""
        self.n_layers: int = config.n_layers
        self.d_model: int = config.d_model
        self.n_heads: int = config.n_heads
        self.vocab_size: int = config.d_vocab
        self.context_length: int = config.n_ctx
        bos: int | None = tokenizer.bos_token_id
        eos: int | None = tokenizer.eos_token_id
        self.bos_token_id: int = cast(int, eos if bos is None else bos)
        """What stands before a text; models without such a token get their end-of-text token, as GPT-2 does."""
        self.eos_token_id: int = cast(int, bos if eos is None else eos)
        weight = next(bridge.original_model.parameters())
        self.device: torch.device = weight.device
        self.dtype: torch.dtype = weight.dtype
        self._tokenizer = tokenizer
        # Hooks see every pass of the model, from any thread: a second thread waits until they are gone.
        self._alone = RLock()
        self._start = 0  # of the pass that runs, for its hooks; only ever read and set while ``_alone`` is held

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of many texts, of any length, without BOS: what long documents are cut from."""
        if not texts:
            return []
        encoded = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)
        return cast(list[list[int]], encoded["input_ids"])

    def tokenize(self, text: str, prepend_bos: bool = True) -> Int[Tensor, "position"]:
        """Tokens of one text that fits the context; raises TextError if it is empty or too long."""
        if not text:
            raise TextError("The text is empty; give at least one word.")
        ids = self.token_ids([text])[0]
        if prepend_bos:
            ids = [self.bos_token_id, *ids]
        if len(ids) > self.context_length:
            raise TextError(
                f"The text has {len(ids)} tokens, {self.name} reads {self.context_length} at most; shorten it."
            )
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def decode(self, tokens: Int[Tensor, "position"] | Sequence[int]) -> str:
        """The text of some tokens."""
        return cast(str, self._tokenizer.decode(_as_list(tokens), clean_up_tokenization_spaces=False))

    def token_strings(self, tokens: Int[Tensor, "position"] | Sequence[int]) -> list[str]:
        """The text of each token, leading spaces kept; half a character is shown as the replacement character."""
        ids = _as_list(tokens)
        pieces = self._tokenizer.convert_ids_to_tokens(ids)
        return [self._token_string(token, piece) for token, piece in zip(ids, pieces, strict=True)]

    def _token_string(self, token: int, piece: str | None) -> str:
        text = self.decode([token])
        # SentencePiece tokenizers drop the space of a token that stands alone.
        return f" {text}" if piece and piece.startswith("\u2581") and not text.startswith(" ") else text

    def logits(self, tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position vocab"]:
        """Logits after every token."""
        return self._forward(tokens)

    @torch.no_grad()
    def next_tokens(self, prompts: Sequence[str], *, batch_size: int = 64) -> list[int]:
        """The likeliest next token of each prompt, BOS put before it."""
        tokens = [self.tokenize(prompt) for prompt in prompts]
        found: list[int] = []
        for start in range(0, len(tokens), batch_size):
            batch = tokens[start : start + batch_size]
            # Padding stands to the right: no token before it can look there.
            rows = pad_sequence(batch, batch_first=True)
            last = torch.tensor([len(row) - 1 for row in batch], device=self.device)
            found += self.logits(rows)[torch.arange(len(batch)), last].argmax(-1).tolist()
        return found

    def advance(self, tokens: Int[Tensor, "batch position"], key_values: KeyValues | None = None) -> Advanced:
        """Read some more tokens: all those after what ``key_values`` holds. Hooks see the new tokens only.

        ``key_values`` is changed in place and handed back.
        """
        start = 0 if key_values is None else int(key_values.get_seq_length())
        cache = {"return_type": "logits_and_cache", "past_key_values": key_values, "use_cache": True}
        logits, key_values = self._forward(tokens, start, **cache)
        return Advanced(logits[:, -1], key_values)

    def _forward(self, tokens: Int[Tensor, "batch position"], start: int = 0, **settings: Any) -> Any:
        """One forward pass of tokens that begin at position ``start``, which hooks that ask for it are given."""
        self._check_length(tokens, start)
        with self._alone:
            around, self._start = self._start, start  # a hook's function may run a pass of its own
            try:
                return self.bridge.forward(tokens.to(self.device), **settings)
            finally:
                self._start = around

    def capture(
        self,
        tokens: Int[Tensor, "batch position"],
        input_hook: InputHook = "hook_resid_mid",
        target_hook: str = MLP_OUTPUT_HOOK,
        *,
        with_logits: bool = True,
    ) -> Captured:
        """What every layer reads and writes at two hooks, which may be one; leaving the logits out saves their time.

        Raises LanguageModelError on hooks that are not there, or do not carry ``d_model`` numbers a token.
        """
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        hooks: list[Hook] = []
        for layer in range(self.n_layers):
            hooks.append((self.hook_name(layer, input_hook), inputs.append))
            hooks.append((self.hook_name(layer, target_hook), targets.append))
        settings = {} if with_logits else {"logits_to_keep": 1}
        with self.hooks(hooks):
            logits = self._forward(tokens, **settings)
        read, written = self._stacked(input_hook, inputs), self._stacked(target_hook, targets)
        return Captured(read, written, logits if with_logits else None)

    def _stacked(self, hook: str, found: list[Tensor]) -> Float[Tensor, "batch position layer d_model"]:
        """What a hook carries in every layer; raises LanguageModelError if that is nothing for a transcoder."""
        if len(found) != self.n_layers:
            raise LanguageModelError(
                f"{hook!r} of {self.name} carries nothing in {self.n_layers - len(found)} of its {self.n_layers} "
                f"layers; {self._hooks_to_use()}."
            )
        for activation in found:
            if activation.shape[2:] != (self.d_model,):
                raise LanguageModelError(
                    f"{hook!r} of {self.name} carries {tuple(activation.shape[2:])} numbers a token, a transcoder "
                    f"needs {self.d_model}; {self._hooks_to_use()}."
                )
        return torch.stack(found, dim=2)

    def run_with_cache(self, tokens: Int[Tensor, "batch position"], hook_names: Sequence[str]) -> Cached:
        """Logits, and the activations at some hooks (full names, such as ``blocks.0.attn.hook_pattern``)."""
        found: dict[str, Tensor] = {}

        def keep(name: str) -> HookFunction:
            return lambda activation: found.__setitem__(name, activation)

        with self.hooks([(name, keep(name)) for name in hook_names]):
            logits = self.logits(tokens)
        return Cached(logits, found)

    def hook_name(self, layer: int, hook: str) -> str:
        """Full name of a layer's hook: ``hook_name(3, "hook_mlp_out")`` is ``"blocks.3.hook_mlp_out"``."""
        return f"blocks.{layer}.{hook}"

    @contextmanager
    def hooks(self, hooks: Sequence[Hook]) -> Generator[None, None, None]:
        """While this is open, every forward pass calls ``function(activation)`` at each named hook.

        A function that is wrapped in ``Positioned`` is called with the activation's first position too. Raises
        LanguageModelError if the model has no such hook. Afterwards the model is exactly what it was.
        """

        def adapt(function: HookFunction | Positioned) -> Callable[..., Tensor | None]:
            if isinstance(function, Positioned):
                return lambda activation, hook: function.function(activation, self._start)
            return lambda activation, hook: function(activation)

        for name, function in hooks:
            self._check_hook(name, function)
        with self._alone, self.bridge.hooks(fwd_hooks=[(name, adapt(function)) for name, function in hooks]):
            yield

    def _check_hook(self, name: str, function: HookFunction | Positioned) -> None:
        point = self.bridge.get_hook_point(name)
        if point is None:
            beside = name.endswith("hook_resid_mid")
            why = " (its attention and MLP run side by side, with no stream between them)" if beside else ""
            raise LanguageModelError(f"{self.name} has no hook {name!r}{why}; {self._hooks_to_use()}.")
        try:
            self.bridge.check_hooks_to_add(point, name, function)
        except ValueError as error:
            raise LanguageModelError(
                f"{self.name} never passes {name!r}, which TransformerLens leaves switched off; {self._hooks_to_use()}."
            ) from error

    def _hooks_to_use(self) -> str:
        """What may be named instead of a hook that a transcoder cannot be for, as half a sentence."""
        there = [hook for hook in _HOOKS if self.bridge.get_hook_point(self.hook_name(0, hook)) is not None]
        return f"use any that carries {self.d_model} numbers a token, such as {', '.join(there)}"

    def _check_length(self, tokens: Tensor, seen: int) -> None:
        total = seen + tokens.shape[1]
        if total > self.context_length:
            raise TextError(
                f"{total} tokens are more than the {self.context_length} that {self.name} reads; shorten the text."
            )


def load_language_model(
    name: str | Path = "gpt2", device: str | torch.device = "cpu", dtype: str | torch.dtype = "float32"
) -> LanguageModel:
    """Load a language model from a Hugging Face name, a directory, a ``.gguf`` file, or ``"embedded"``.

    ``dtype`` is float32 or bfloat16. Raises HubUnreachableError if the name needs a hub that does not answer,
    ConfigError on a device or dtype that cannot be had, LanguageModelError if the model cannot be found or used.
    """
    device, dtype = _check_device(device), _check_dtype(dtype)
    source = find_model(str(name))
    return _load(source, device, dtype)


def _load(source: ModelSource, device: torch.device, dtype: torch.dtype) -> LanguageModel:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not source.local:
        logger.info("%s is not on this machine; the hub sends it.", source.name)
    where: dict[str, Any] = {"local_files_only": source.local}
    if source.gguf_file:
        where["gguf_file"] = source.gguf_file
    with _explained(f"The tokenizer of {source.name!r} cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(source.location, **where)
        _check_tokenizer(tokenizer, source.name)
    with _explained(f"The language model {source.name!r} cannot be read"), _no_loading_bar():
        model, report = cast(Any, AutoModelForCausalLM).from_pretrained(
            source.location, dtype=dtype, attn_implementation="eager", output_loading_info=True, **where
        )
        if missing := sorted(report["missing_keys"]):
            raise LanguageModelError(
                f"{source.name!r} lacks {len(missing)} weights, {missing[0]} first; complete it, or use 'embedded'."
            )
        model.eval().to(device)
    with _explained(f"TransformerLens cannot express the language model {source.name!r}"):
        bridge = cast(Any, TransformerBridge).boot_transformers(
            source.location, hf_model=model, tokenizer=tokenizer, device=device, dtype=dtype
        )
    # The bridge makes parameters of its own (GPT-2's split queries, keys and values): freeze after it has.
    bridge.requires_grad_(False)
    _check_bridge(bridge, source.name)
    return LanguageModel(source.name, bridge, tokenizer)


def _check_tokenizer(tokenizer: Any, name: str) -> None:
    # Where there are no tokenizer files, transformers makes up a tokenizer without a vocabulary.
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise LanguageModelError(f"{name!r} comes without a tokenizer; add its tokenizer.json.")
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise LanguageModelError(f"The tokenizer of {name!r} names neither a BOS nor an EOS token; add one of them.")


def _check_bridge(bridge: Any, name: str) -> None:
    causal = getattr(bridge.cfg, "attention_dir", "causal") == "causal"
    if not causal or any(
        bridge.get_hook_point(f"blocks.{layer}.hook_mlp_out") is None for layer in range(bridge.cfg.n_layers)
    ):
        raise LanguageModelError(
            f"{name!r} is no decoder-only model with MLP blocks, which OpenCLT needs; use another."
        )


@contextmanager
def _no_loading_bar() -> Generator[None, None, None]:
    """Hold back the bar that transformers shows while it reads weights: noise in every program that loads a model."""
    from transformers.utils import logging as messages

    shown = messages.is_progress_bar_enabled()
    messages.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            messages.enable_progress_bar()


@contextmanager
def _explained(what: str) -> Generator[None, None, None]:
    """Turn whatever a library raises into one LanguageModelError; the original stays its cause."""
    try:
        yield
    except OpenCLTError:
        raise
    # Loading runs code of several libraries, which raise anything from KeyError to their own; none of it is swallowed.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
        raise LanguageModelError(
            f"{what}: {reason}. Check that it is a decoder-only model and its files are whole, or use 'embedded'."
        ) from error


def _check_device(device: str | torch.device) -> torch.device:
    try:
        checked = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device is {device!r}, which PyTorch does not know; use 'cpu' or 'cuda'.") from error
    if checked.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {str(device)!r}, but PyTorch finds no CUDA device here; use 'cpu'.")
    return checked


def _check_dtype(dtype: str | torch.dtype) -> torch.dtype:
    checked = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if checked not in _DTYPES.values():
        raise ConfigError(f"dtype is {str(dtype)!r}; it must be {' or '.join(map(repr, _DTYPES))}.")
    return cast(torch.dtype, checked)


def _as_list(tokens: Tensor | Sequence[int]) -> list[int]:
    return cast(list[int], tokens.tolist()) if isinstance(tokens, Tensor) else list(tokens)
