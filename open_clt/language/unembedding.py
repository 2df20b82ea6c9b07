"""The unembedding: the last part of a language model, which turns states into logits.

The states are what the unembedding reads: the residual stream after the final norm. They hold ``d_model`` numbers per
token, and logits hold as many numbers as there are tokens in the vocabulary, 262,144 for Gemma. So work on many tokens
keeps the states, and computes the logits of a few rows at a time (``slices``).

Logits are computed by the model's own forward pass, in which the body (all that comes before the unembedding) only
returns the states that were given. So what an architecture does after the product with ``W_U`` is kept: the bound of
Gemma-2, the factors of Granite and Cohere.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Any, cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from open_clt.errors import LanguageModelError

LOGITS_AT_ONCE = 2**22
"""Number of logits that work on many tokens holds at a time: 16 MiB in float32."""

_TOLERANCE = 1e-2
"""Largest deviation of logits from the model's own, relative to their norm; a factor or a bound deviates by more."""


@final
class Unembedding:
    """The part of a language model that reads the final states, and how to run it alone."""

    def __init__(self, bridge: Any, lock: RLock) -> None:
        self._bridge = bridge
        self._lock = lock
        self._body = _find_body(bridge)
        self._check()

    def slices(self, n_rows: int) -> list[slice]:
        """Divide rows of states into slices of at most ``LOGITS_AT_ONCE`` logits, or of one row each."""
        size = max(1, LOGITS_AT_ONCE // self._bridge.cfg.d_vocab)
        return [slice(start, start + size) for start in range(0, n_rows, size)]

    def logits(self, states: Float[Tensor, "row state"]) -> Float[Tensor, "row vocab"]:
        """Return the logits of states."""
        model = self._bridge.original_model
        tokens = torch.zeros((1, len(states)), dtype=torch.long, device=states.device)  # no module reads them
        with self._lock, _returning(self._body, states[None]):
            output = model(tokens, use_cache=False)
        return cast(Tensor, getattr(output, "logits", output))[0]

    @contextmanager
    def reading(self) -> Generator[list[Tensor], None, None]:
        """While this is open, each forward pass adds its states, of shape (batch, position, state), to a list."""
        states: list[Tensor] = []
        handle = self._body.register_forward_hook(lambda _module, _inputs, output: states.append(output[0]))
        try:
            yield states
        finally:
            handle.remove()

    @torch.no_grad()
    def effects(self, directions: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        """Return what directions of the residual stream add to each logit, relative to the mean over all tokens.

        These are direct effects, through the weight of the final norm and the unembedding, without the denominator of
        the norm.
        """
        norm, W_U = self._bridge.ln_final, self._bridge.W_U
        weight = norm.weight.float() + (1 if norm.uses_weight_offset else 0)
        directions = directions.to(W_U.device)
        if not norm.uses_rms_norm:
            directions = directions - directions.mean(1, keepdim=True)
        effects = (directions * weight) @ W_U.float()
        return (effects - effects.mean(1, keepdim=True)).cpu()

    @torch.no_grad()
    def similar_tokens(self, token: int, count: int) -> list[int]:
        """Return the tokens that the unembedding treats most like one token, most similar first.

        The similarity is the cosine of the tokens' columns of ``W_U``, less the mean of all columns.
        """
        columns = self._bridge.W_U.float()
        columns = functional.normalize(columns - columns.mean(1, keepdim=True), dim=0)
        similarity = columns[:, token] @ columns
        similarity[token] = -torch.inf
        return similarity.topk(min(count, len(similarity) - 1)).indices.tolist()

    @torch.no_grad()
    def _check(self) -> None:
        """Raise LanguageModelError if the states that the body returns do not give the model's own logits."""
        with self.reading() as states:
            expected = self._bridge.forward(_one_token(self._bridge))[0].float()
        deviation = torch.inf
        if states[0].shape[:2] == (1, 1):
            deviation = float((self.logits(states[0][0]).float() - expected).norm() / expected.norm().clamp(min=1e-30))
        if not deviation <= _TOLERANCE:
            raise LanguageModelError(
                f"The unembedding of {self._bridge.cfg.model_name} cannot run alone: its logits depend on more than "
                "the output of one module; use another language model."
            )


class _GivenStates(tuple[Tensor]):
    """The output of a body that holds states alone: every other part of it is None."""

    @property
    def last_hidden_state(self) -> Tensor:
        """The states."""
        return self[0]

    def __getattr__(self, name: str) -> None:
        return None


@contextmanager
def _returning(body: nn.Module, states: Tensor) -> Generator[None, None, None]:
    """While this is open, the body of a model computes nothing, and returns the states."""
    body.forward = lambda *_inputs, **_settings: _GivenStates((states,))
    try:
        yield
    finally:
        del body.forward  # the method of the class is visible again


@torch.no_grad()
def _find_body(bridge: Any) -> nn.Module:
    """Find the body of a model: the last module that finishes before the unembedding begins."""
    model = bridge.original_model
    finished: list[nn.Module] = []
    bodies: list[nn.Module] = []
    with ExitStack() as handles:
        for module in model.modules():
            handle = module.register_forward_hook(lambda module, _inputs, _output: finished.append(module))
            handles.callback(handle.remove)
        handle = model.get_output_embeddings().register_forward_pre_hook(lambda *_: bodies.append(finished[-1]))
        handles.callback(handle.remove)
        bridge.forward(_one_token(bridge))
    return bodies[0]


def _one_token(bridge: Any) -> Tensor:
    return torch.zeros((1, 1), dtype=torch.long, device=bridge.W_U.device)
