"""One sampling loop with a KV cache, for a language model as it is or with whatever hooks are open around it.

Each step reads only the tokens that are not in the cache yet, so hooks see each position once. Without hooks, or with
hooks that treat each position by itself (as a transcoder does), the tokens equal those of a loop without a cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.config import SamplingConfig
from open_clt.errors import TextError
from open_clt.language.language_model import Advanced, KeyValues, LanguageModel

Prompt: TypeAlias = str | Tensor
"""A text, or its tokens: (position,) or (1, position), BOS included."""

Advance: TypeAlias = Callable[[Tensor, KeyValues | None], Advanced]
"""One step, as ``LanguageModel.advance`` does it: (1, position) new tokens, and the cache of those before."""


class Generation(NamedTuple):
    """A prompt and what a model wrote after it."""

    prompt: str
    continuation: str
    """Without the end-of-text token that may end it."""
    tokens: Int[Tensor, "position"]
    """Prompt, BOS included, and continuation, end-of-text token included."""
    prompt_length: int
    """How many of the tokens are the prompt's."""

    @property
    def text(self) -> str:
        """Prompt and continuation."""
        return self.prompt + self.continuation


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompt: Prompt,
    sampling: SamplingConfig | None = None,
    *,
    advance: Advance | None = None,
) -> Generation:
    """Continue a prompt, through whatever hooks are open; raises TextError if there is nothing to read or no room.

    ``advance`` takes the place of the model's own step.
    """
    advance = advance or model.advance
    sampling = sampling or SamplingConfig()
    tokens = prompt_tokens(model, prompt)
    room = room_after(model, tokens, sampling)
    if room < 1:
        raise TextError(f"The prompt's {len(tokens)} tokens leave no room for more; shorten it or raise max_length.")
    generator = torch.Generator().manual_seed(sampling.seed)
    drawn: list[int] = []
    pending, key_values = tokens[None], None
    for _ in range(room):
        logits, key_values = advance(pending, key_values)
        drawn.append(draw(logits[0], sampling, generator))
        if sampling.stop_at_eos and drawn[-1] == model.eos_token_id:
            break
        pending = tokens.new_tensor([drawn[-1:]])
    return _generation(model, tokens, drawn)


def prompt_tokens(model: LanguageModel, prompt: Prompt) -> Int[Tensor, "position"]:
    """Tokens of a prompt, BOS included if it is a text."""
    if isinstance(prompt, str):
        return model.tokenize(prompt)
    tokens = prompt[0] if prompt.ndim == 2 and prompt.shape[0] == 1 else prompt
    if tokens.ndim != 1 or not len(tokens):
        raise TextError(f"The prompt has shape {tuple(prompt.shape)}; give a text, or tokens of one text.")
    return tokens.to(model.device)


def room_after(model: LanguageModel, tokens: Int[Tensor, "position"], sampling: SamplingConfig) -> int:
    """How many tokens may follow: the least that the settings and the model's context allow."""
    length = min(model.context_length, sampling.max_length or model.context_length)
    return min(sampling.max_new_tokens, length - len(tokens))


def draw(logits: Float[Tensor, "vocab"], sampling: SamplingConfig, generator: torch.Generator) -> int:
    """Draw one token: temperature first, then top-k, then top-p of what is left."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    ranked, order = (logits.float().cpu() / sampling.temperature).sort(descending=True, stable=True)
    probabilities = ranked[: sampling.top_k].softmax(0)
    before = probabilities.cumsum(0) - probabilities
    kept = torch.where(before < sampling.top_p, probabilities, 0.0)
    return int(order[torch.multinomial(kept, 1, generator=generator)])


def _generation(model: LanguageModel, tokens: Int[Tensor, "position"], drawn: list[int]) -> Generation:
    start = int(tokens[0] == model.bos_token_id)
    end = len(drawn) - (drawn[-1:] == [model.eos_token_id])
    return Generation(
        prompt=model.decode(tokens[start:]),
        continuation=model.decode(drawn[:end]),
        tokens=torch.cat([tokens, tokens.new_tensor(drawn)]),
        prompt_length=len(tokens),
    )
