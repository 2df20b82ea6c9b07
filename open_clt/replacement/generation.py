"""Text generation: one sampling loop with a KV cache, which runs a language model with any hooks that are open.

Each step reads only the tokens that are not in the cache yet, so hooks see each position once. Without hooks, or with
hooks that treat each position separately (as a transcoder does), the tokens equal those of a loop without a cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.config import SamplingConfig
from open_clt.errors import TextError
from open_clt.finite import check_finite
from open_clt.html_repr import html_repr
from open_clt.language.language_model import Advanced, KeyValues, LanguageModel
from open_clt.language.prompts import Prompt, prompt_tokens
from open_clt.short_repr import short_repr

Advance: TypeAlias = Callable[[Tensor, KeyValues | None], Advanced]
"""A step like ``LanguageModel.advance``: it takes new tokens of shape (1, position) and the cache of earlier tokens."""

_ADVICE = "load the language model in float32, and check the weights of the transcoder"


class Generation(NamedTuple):
    """A prompt and the continuation that a model wrote."""

    prompt: str
    """Text of the prompt, without the BOS token."""
    continuation: str
    """Text that the model wrote, without the token that may end it (EOS, or the end of a turn)."""
    tokens: Int[Tensor, "position"]
    """Tokens of the prompt and of the continuation, with BOS and the token that ends the text."""
    prompt_length: int
    """Number of tokens in the prompt."""

    @property
    def text(self) -> str:
        """Prompt and continuation in one text."""
        return self.prompt + self.continuation

    __repr__ = short_repr
    _repr_html_ = html_repr


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompt: Prompt,
    sampling: SamplingConfig | None = None,
    *,
    chat: bool = False,
    advance: Advance | None = None,
) -> Generation:
    """Continue a prompt, with the hooks that are open.

    ``chat`` applies the chat template (``prompt_tokens``), and ``advance`` replaces ``model.advance`` as the step.
    Raises TextError if the prompt has no tokens, or leaves no room for more.
    """
    advance = advance or model.advance
    sampling = sampling or SamplingConfig()
    tokens = prompt_tokens(model, prompt, chat=chat)
    room = room_after(model, tokens, sampling)
    if room < 1:
        raise TextError(
            f"The prompt has {len(tokens)} tokens and leaves no room for more; shorten the prompt or raise max_length."
        )
    generator = torch.Generator().manual_seed(sampling.seed)
    drawn: list[int] = []
    pending, key_values = tokens[None], None
    for _ in range(room):
        logits, key_values = advance(pending, key_values)
        drawn.append(draw(logits[0], sampling, generator))
        if sampling.stop_at_eos and drawn[-1] in model.end_token_ids:
            break
        pending = tokens.new_tensor([drawn[-1:]])
    return _generation(model, tokens, drawn)


def room_after(model: LanguageModel, tokens: Int[Tensor, "position"], sampling: SamplingConfig) -> int:
    """Return how many tokens may follow, by the settings and by the length of the model's context."""
    length = min(model.context_length, sampling.max_length or model.context_length)
    return min(sampling.max_new_tokens, length - len(tokens))


def draw(logits: Float[Tensor, "vocab"], sampling: SamplingConfig, generator: torch.Generator) -> int:
    """Draw one token: apply the temperature, then keep the top-k tokens, then the top-p of these.

    Raises NotFiniteError if the largest logit is not finite.
    """
    check_finite(logits.max(), "The largest logit", advice=_ADVICE)
    if sampling.temperature == 0:
        return int(logits.argmax())
    ranked, order = (logits.float().cpu() / sampling.temperature).sort(descending=True, stable=True)
    probabilities = ranked[: sampling.top_k].softmax(0)
    more_likely = probabilities.cumsum(0) - probabilities  # total probability of the tokens that rank higher
    candidates = torch.where(more_likely < sampling.top_p, probabilities, 0.0)
    return int(order[torch.multinomial(candidates, 1, generator=generator)])


def _generation(model: LanguageModel, tokens: Int[Tensor, "position"], drawn: list[int]) -> Generation:
    start = int(tokens[0] == model.bos_token_id)
    end = len(drawn) - (drawn[-1] in model.end_token_ids)
    return Generation(
        prompt=model.decode(tokens[start:]),
        continuation=model.decode(drawn[:end]),
        tokens=torch.cat([tokens, tokens.new_tensor(drawn)]),
        prompt_length=len(tokens),
    )
