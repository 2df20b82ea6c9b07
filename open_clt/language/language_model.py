"""The language model: a decoder-only transformer with its tokenizer, its activations and its hooks.

``load_language_model`` loads a model from a Hugging Face name, a directory, a ``.gguf`` file or ``"embedded"``. A
``LanguageModel`` turns texts into tokens, captures activations, and runs with hooks, which last as long as their
``with``. The weights are the published ones: they are not folded, centred or compiled. No tensor needs a gradient,
unless a hook brings in a tensor that does.

A transcoder reads and writes at these hooks, which have TransformerLens's names (``{l}`` is a layer):

    blocks.{l}.hook_resid_mid        the residual stream before the norm of the MLP
    blocks.{l}.ln2.hook_normalized   the normalised MLP input, before the weight and bias of the norm
    blocks.{l}.mlp.hook_in           the input of the MLP, which is the output of the norm before it
    blocks.{l}.hook_mlp_out          the output of the MLP

It may also use any other hook of the blocks that carries ``d_model`` numbers per token, such as ``hook_resid_post``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple, TypeAlias, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from open_clt.config import MLP_INPUT_HOOKS, MLP_OUTPUT_HOOK, PARALLEL_INPUT_HOOK, InputHook
from open_clt.config.arguments import checked_arguments
from open_clt.device import check_device
from open_clt.errors import LanguageModelError, TextError
from open_clt.html_repr import html_repr
from open_clt.language.loading import check_dtype, load_model
from open_clt.language.model_source import find_model
from open_clt.language.unembedding import Unembedding
from open_clt.progress import without_widget_advice
from open_clt.short_repr import short_repr

HookFunction: TypeAlias = Callable[[Tensor], Tensor | None]
"""A function of an activation; unless it returns None, its result replaces the activation."""


class Positioned(NamedTuple):
    """A hook function whose second argument is the position in the text at which the activation begins.

    A forward pass over a whole text begins at position 0. A pass of ``LanguageModel.advance`` begins after the tokens
    in its cache.
    """

    function: Callable[[Tensor, int], Tensor | None]


Hook: TypeAlias = tuple[str, HookFunction | Positioned]
"""The full name of a hook, and the function that is called there."""

KeyValues: TypeAlias = Any
"""A cache of the library transformers: the keys and values of the tokens that a model has already read."""


class Captured(NamedTuple):
    """Inputs and targets of a transcoder for a batch of contexts, with the final states of the language model."""

    inputs: Float[Tensor, "batch position layer d_model"]
    targets: Float[Tensor, "batch position layer d_model"]
    states: Float[Tensor, "batch position state"]
    """What the unembedding reads after every token: ``unembedding.logits`` turns rows of it into logits."""

    __repr__ = short_repr


class Cached(NamedTuple):
    """Logits, and the activations at the hooks that were asked for, by the name of the hook."""

    logits: Float[Tensor, "batch position vocab"]
    activations: dict[str, Tensor]

    __repr__ = short_repr


class Advanced(NamedTuple):
    """One step of generation: logits after the last token, and the cache that the next step continues from."""

    logits: Float[Tensor, "batch vocab"]
    key_values: KeyValues

    __repr__ = short_repr


def is_text(text: str) -> bool:
    """Whether a Python string can be written as UTF-8: it holds no half of a character (no lone surrogate)."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


@final
class LanguageModel:
    """A decoder-only transformer with MLP blocks, its tokenizer, and access to its activations."""

    def __init__(self, name: str, bridge: Any, tokenizer: Any, end_tokens: Collection[int] = ()) -> None:
        config = bridge.cfg
        self.name = name
        self.bridge = bridge
        """TransformerLens's TransformerBridge, which holds the raw weights and the hook points."""
        self.n_layers: int = config.n_layers
        self.d_model: int = config.d_model
        self.n_heads: int = config.n_heads
        self.vocab_size: int = config.d_vocab
        self.context_length: int = config.n_ctx
        bos: int | None = tokenizer.bos_token_id
        eos: int | None = tokenizer.eos_token_id
        self.bos_token_id: int = cast(int, eos if bos is None else bos)
        """Token before a text (BOS); for a model without a BOS token, its end-of-text token, as for GPT-2."""
        self.eos_token_id: int = cast(int, bos if eos is None else eos)
        self.end_token_ids: frozenset[int] = frozenset((self.eos_token_id, *end_tokens))
        """Tokens that end a continuation: EOS, and those of ``generation_config.json``, such as the end of a turn."""
        weight = next(bridge.original_model.parameters())
        self.device: torch.device = weight.device
        self.dtype: torch.dtype = weight.dtype
        self.tokenizer: Any = tokenizer
        """The tokenizer, an object of transformers."""
        # Hooks see every forward pass, from any thread, so a second thread waits until the hooks are removed.
        self._lock = RLock()
        self.unembedding = Unembedding(bridge, self._lock)
        """The part of the model after its final norm, which can run alone."""
        # Position at which the running pass begins, and the shape of its tokens, for its hooks; read and set only
        # while the lock is held.
        self._start = 0
        self._shape = torch.Size((0, 0))

    _repr_html_ = html_repr

    def __repr__(self) -> str:
        shape = f"n_layers={self.n_layers}, d_model={self.d_model}"
        return f"{type(self).__name__}({self.name!r}, {shape}, device={str(self.device)!r})"

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, without a BOS at its beginning; the texts may be longer than the context.

        Raises TextError for what is not a text, and LanguageModelError if the tokenizer belongs to another model.
        """
        return [ids[1:] if ids[:1] == [self.bos_token_id] else ids for ids in self._ids(texts)]

    def _ids(self, texts: Sequence[object]) -> list[list[int]]:
        """The tokens of each text as it is written, with BOS only where the text has it."""
        if not texts:
            return []
        for text in texts:
            if not isinstance(text, str) or not is_text(text):
                raise TextError(f"{text!r} is not a text, or holds half a character; give texts.")
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)
        ids = cast(list[list[int]], encoded["input_ids"])
        for token in (max(of_text, default=0) for of_text in (*ids, [self.bos_token_id])):
            if token >= self.vocab_size:
                raise LanguageModelError(
                    f"The tokenizer of {self.name} gives token {token}, but the model has {self.vocab_size} tokens; "
                    "use the tokenizer that belongs to the model."
                )
        return ids

    def tokenize(self, text: str, prepend_bos: bool = True) -> Int[Tensor, "position"]:
        """Return the tokens of one text; raises TextError if it is empty, or longer than the context.

        With ``prepend_bos``, the tokens begin with exactly one BOS, also if the text is written with one.
        """
        if not text:
            raise TextError("The text is empty; give at least one word.")
        ids = [self.bos_token_id, *self.token_ids([text])[0]] if prepend_bos else self._ids([text])[0]
        if len(ids) > self.context_length:
            raise TextError(
                f"The text has {len(ids)} tokens, but {self.name} reads at most {self.context_length}; shorten it."
            )
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def decode(self, tokens: Int[Tensor, "position"] | Sequence[int]) -> str:
        """Return the text of tokens."""
        return cast(str, self.tokenizer.decode(_as_list(tokens), clean_up_tokenization_spaces=False))

    def token_strings(self, tokens: Int[Tensor, "position"] | Sequence[int]) -> list[str]:
        """Return the text of each token, with its leading space; part of a character becomes U+FFFD."""
        ids = _as_list(tokens)
        pieces = self.tokenizer.convert_ids_to_tokens(ids)
        return [self._token_string(token, piece) for token, piece in zip(ids, pieces, strict=True)]

    def _token_string(self, token: int, piece: str | None) -> str:
        text = self.decode([token])
        # A SentencePiece tokenizer drops the leading space of a token that it decodes alone.
        return f" {text}" if piece and piece.startswith("\u2581") and not text.startswith(" ") else text

    def logits(self, tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position vocab"]:
        """Return the logits after every token."""
        return self._forward(tokens)

    def states(self, tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position state"]:
        """Return what the unembedding reads after every token, with ``d_model`` numbers per token in most models.

        A pass that computes states needs less memory than one that computes logits.
        """
        with self._lock, self.unembedding.reading() as states:
            self._forward(tokens, logits_to_keep=1)
        return states[-1]  # a hook may run another pass, which ends first

    @torch.no_grad()
    def next_tokens(self, prompts: Sequence[str], *, batch_size: int = 64) -> list[int]:
        """Return the most probable next token of each prompt, which is read after BOS."""
        tokens = [self.tokenize(prompt) for prompt in prompts]
        predicted: list[int] = []
        for start in range(0, len(tokens), batch_size):
            batch = tokens[start : start + batch_size]
            # Padding is on the right, where the tokens before it do not attend to it.
            rows = pad_sequence(batch, batch_first=True)
            last = torch.tensor([len(row) - 1 for row in batch], device=self.device)
            states = self.states(rows)[torch.arange(len(batch)), last]
            predicted += self.unembedding.logits(states).argmax(-1).tolist()
        return predicted

    def advance(self, tokens: Int[Tensor, "batch position"], key_values: KeyValues | None = None) -> Advanced:
        """Read the tokens that follow those in ``key_values``; hooks see the new tokens only.

        ``key_values`` is changed in place and returned.
        """
        start = 0 if key_values is None else int(key_values.get_seq_length())
        cache = {"return_type": "logits_and_cache", "past_key_values": key_values, "use_cache": True}
        logits, key_values = self._forward(tokens, start, logits_to_keep=1, **cache)
        return Advanced(logits[:, -1], key_values)

    def _forward(self, tokens: Int[Tensor, "batch position"], start: int = 0, **settings: Any) -> Any:
        """Run one forward pass on tokens that begin at position ``start``, which ``Positioned`` hooks receive."""
        self._check_length(tokens, start)
        with self._lock:
            outer = self._start, self._shape  # the function of a hook may run another pass
            self._start, self._shape = start, tokens.shape
            try:
                return self.bridge.forward(tokens.to(self.device), **settings)
            finally:
                self._start, self._shape = outer

    def capture(
        self,
        tokens: Int[Tensor, "batch position"],
        input_hook: InputHook = "hook_resid_mid",
        target_hook: str = MLP_OUTPUT_HOOK,
        *,
        layers: Sequence[int] | None = None,
    ) -> Captured:
        """Return the activations of every layer at two hooks, which may be the same hook, and the final states.

        ``layers`` chooses some layers, in rising order; the activations of the other layers are not kept.
        Raises LanguageModelError if the model lacks a hook, or if a hook does not carry ``d_model`` numbers per token.
        """
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        hooks: list[Hook] = []
        chosen = range(self.n_layers) if layers is None else layers
        for layer in chosen:
            hooks.append((self.hook_name(layer, input_hook), inputs.append))
            hooks.append((self.hook_name(layer, target_hook), targets.append))
        with self.hooks(hooks):
            states = self.states(tokens)
        count = len(chosen)
        return Captured(self._stacked(input_hook, inputs, count), self._stacked(target_hook, targets, count), states)

    def _stacked(
        self, hook: str, activations: list[Tensor], n_layers: int
    ) -> Float[Tensor, "batch position layer d_model"]:
        """Stack the activations of layers; raises LanguageModelError if a transcoder cannot be trained on them."""
        if len(activations) != n_layers:
            raise LanguageModelError(
                f"{hook!r} of {self.name} carries nothing in {n_layers - len(activations)} of "
                f"{n_layers} layers; {self._suggestion()}."
            )
        for activation in activations:
            if activation.shape[2:] != (self.d_model,):
                raise LanguageModelError(
                    f"{hook!r} of {self.name} carries {tuple(activation.shape[2:])} numbers per token, but a "
                    f"transcoder needs {self.d_model}; {self._suggestion()}."
                )
        return torch.stack(activations, dim=2)

    def run_with_cache(self, tokens: Int[Tensor, "batch position"], hook_names: Sequence[str]) -> Cached:
        """Return the logits, and the activations at hooks with these full names (``blocks.0.attn.hook_pattern``)."""
        activations: dict[str, Tensor] = {}

        def store(name: str) -> HookFunction:
            return lambda activation: activations.__setitem__(name, activation)

        with self.hooks([(name, store(name)) for name in hook_names]):
            logits = self.logits(tokens)
        return Cached(logits, activations)

    @property
    def input_hooks(self) -> tuple[str, ...]:
        """Hooks of this model at the inputs of its MLPs, which encoders can read where a transcoder replaces MLPs.

        There are none if norms come after the MLP and none comes before the unembedding (GPT-1).
        """
        if self.bridge.get_hook_point("ln_final.hook_in") is None:
            return ()
        parallel = bool(getattr(self.bridge.cfg, "parallel_attn_mlp", False))
        hooks = (PARALLEL_INPUT_HOOK, *MLP_INPUT_HOOKS[1:]) if parallel else MLP_INPUT_HOOKS
        return tuple(hook for hook in hooks if self.bridge.get_hook_point(self.hook_name(0, hook)) is not None)

    def hook_name(self, layer: int, hook: str) -> str:
        """Return the full name of a hook: ``hook_name(3, "hook_mlp_out")`` is ``"blocks.3.hook_mlp_out"``."""
        return f"blocks.{layer}.{hook}"

    @contextmanager
    def hooks(self, hooks: Sequence[Hook]) -> Generator[None, None, None]:
        """Call ``function(activation)`` at each named hook, in every forward pass inside the ``with``.

        A ``Positioned`` function also receives the position at which the activation begins. Raises LanguageModelError
        if the model lacks a hook. After the ``with`` the model is exactly as before.
        """

        for name, function in hooks:
            self._check_hook(name, function)
        adapted = [(name, partial(self._call, function)) for name, function in hooks]
        edits_norms = any(name.endswith((".hook_scale", ".hook_normalized")) for name, _ in hooks)
        with self._lock, _quiet() if edits_norms else nullcontext(), self.bridge.hooks(fwd_hooks=adapted):
            yield

    def _call(self, function: HookFunction | Positioned, activation: Tensor, hook: Any) -> Tensor | None:
        """Call the function of a hook; where a model has joined batch and positions (OPT), it sees them apart."""
        rows = activation.ndim == 2 and activation.shape[0] == self._shape.numel()
        seen = activation.view(*self._shape, -1) if rows else activation
        result = function.function(seen, self._start) if isinstance(function, Positioned) else function(seen)
        return result.reshape(activation.shape[0], -1) if rows and result is not None else result

    def _check_hook(self, name: str, function: HookFunction | Positioned) -> None:
        point = self.bridge.get_hook_point(name)
        if point is None and not name.startswith("blocks."):
            raise LanguageModelError(
                f"{self.name} has no hook {name!r}, which attribution and interventions read; use another language "
                "model."
            )
        if point is None:
            parallel = name.endswith("hook_resid_mid")
            reason = " (its attention and MLP run in parallel, with no residual stream between)" if parallel else ""
            raise LanguageModelError(f"{self.name} has no hook {name!r}{reason}; {self._suggestion()}.")
        try:
            self.bridge.check_hooks_to_add(point, name, function)
        except ValueError as error:
            raise LanguageModelError(
                f"{self.name} never calls the hook {name!r}, which TransformerLens leaves off; {self._suggestion()}."
            ) from error

    def _suggestion(self) -> str:
        """The end of an error message: hooks of this model at which a transcoder can read and write."""
        if not self.input_hooks:
            return "use another language model"
        return f"encoders can read {' or '.join(self.input_hooks)}, and a transcoder can replace {MLP_OUTPUT_HOOK}"

    def _check_length(self, tokens: Tensor, start: int) -> None:
        length = start + tokens.shape[1]
        if length > self.context_length:
            raise TextError(
                f"The text has {length} tokens, but {self.name} reads at most {self.context_length}; shorten it."
            )


@checked_arguments
def load_language_model(
    name: str | Path = "gpt2", device: str | torch.device = "cpu", dtype: str | torch.dtype = "float32"
) -> LanguageModel:
    """Load a language model from a Hugging Face name, a directory, a ``.gguf`` file, or ``"embedded"``.

    ``dtype`` is float32 or bfloat16. Raises HubUnreachableError if the model is only on a hub that cannot be reached,
    ConfigError if the device or the dtype is not available, and LanguageModelError if the model cannot be found or
    used.
    """
    device, dtype = check_device(device), check_dtype(dtype)
    without_widget_advice()
    source = find_model(str(name))
    loaded = load_model(source, device, dtype)
    return LanguageModel(source.name, *loaded)


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Hide warnings of TransformerLens that hooks change norms, which is what the hooks are for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"transformer_lens\.model_bridge\.")
        yield


def _as_list(tokens: Tensor | Sequence[int]) -> list[int]:
    return cast(list[int], tokens.tolist()) if isinstance(tokens, Tensor) else list(tokens)
