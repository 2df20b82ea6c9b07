"""Prompts: a text, the token ids of one, or messages of a chat, in any of the forms in which people have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from open_clt.errors import LanguageModelError, TextError, short_value
from open_clt.files import parse_json
from open_clt.language.language_model import LanguageModel

Message: TypeAlias = Mapping[str, str]
"""A message of a chat: its ``role`` and its ``content``."""
Prompt: TypeAlias = str | Sequence[int] | Sequence[Message] | NDArray[Any] | Tensor
"""A text, its token ids, or messages of a chat. Token ids are a list, a NumPy array or a tensor, of shape
``(position,)`` or ``(1, position)``."""

_ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles of messages. A template may use fewer of them."""


def prompt_tokens(model: LanguageModel, prompt: object, *, chat: bool = False) -> Int[Tensor, "position"]:
    """Return a prompt's tokens. A text begins with exactly one BOS; token ids are used as they are.

    With ``chat``, the prompt is a message of the user, or a list of messages such as ``{"role": "user", "content":
    "Hi"}``, which may be written as JSON. The tokens are those of the tokenizer's chat template, which also says
    whether there is a BOS. They end where the assistant begins to write; if the last message is the assistant's, they
    end with it, so that it is continued.

    Raises TextError if the prompt is empty, is longer than the model's context, is neither a text nor whole numbers nor
    messages, or holds ids that the model does not have, and LanguageModelError if the model has no chat template.
    """
    if chat:
        return model.tokenize(_chat_text(model, _messages(prompt)), prepend_bos=False)
    if isinstance(prompt, str):
        return model.tokenize(prompt)
    ids = _ids(prompt)
    if not ids.numel():
        raise TextError("The prompt is empty; give at least one token.")
    if len(ids) > model.context_length:
        raise TextError(f"The prompt has {len(ids)} tokens; {model.name} reads at most {model.context_length}.")
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= model.vocab_size:
        raise TextError(
            f"The prompt has token ids from {lowest} to {highest}; {model.name} has ids 0 to {model.vocab_size - 1}."
        )
    return ids.to(model.device)


def _ids(prompt: object) -> Int[Tensor, "position"]:
    """The ids of a prompt that is not a text."""
    try:
        ids = prompt if isinstance(prompt, Tensor) else torch.from_numpy(np.array(prompt))
    except (TypeError, ValueError) as error:
        raise _illegal(prompt) from error
    if ids.ndim == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if not ids.numel() and ids.ndim == 1:
        return ids.long()
    if ids.ndim != 1 or ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool:
        raise _illegal(prompt)
    return ids.long()


def _messages(prompt: object) -> list[Message]:
    """The messages of a chat: one of the user, a list of them, or such a list as JSON, which begins with ``[{``."""
    if isinstance(prompt, str):
        if not "".join(prompt.split()).startswith("[{"):
            prompt = [{"role": "user", "content": prompt}]
        else:
            try:
                prompt = parse_json(prompt)
            except ValueError as error:
                raise TextError(f"The messages {short_value(prompt)} are not JSON: {error}.") from error
    if not isinstance(prompt, Sequence) or not prompt:
        raise TextError("The prompt holds no messages; with chat=True, give a text, or a list of messages.")
    for number, message in enumerate(cast(Sequence[object], prompt), start=1):
        _check_message(message, number)
    return [dict(message) for message in cast(Sequence[Message], prompt)]


def _check_message(message: object, number: int) -> None:
    """Raise TextError unless a message has a legal role, a text, and nothing else."""
    if not isinstance(message, Mapping) or set(cast(Mapping[object, object], message)) != {"role", "content"}:
        raise TextError(
            f"Message {number} of the chat is {repr(message)[:80]}; it must have a role and a content only."
        )
    role, content = (cast(Mapping[str, object], message)[name] for name in ("role", "content"))
    if role not in _ROLES:
        raise TextError(
            f"The role of message {number} of the chat is {short_value(role)}; it must be one of {', '.join(_ROLES)}."
        )
    if not isinstance(content, str) or not content:
        raise TextError(f"The content of message {number} of the chat is {short_value(content)}; give a text.")


def _chat_text(model: LanguageModel, messages: list[Message]) -> str:
    """The text of messages, as the chat template of the model's tokenizer writes it.

    The template is a program of a stranger, which transformers runs in Jinja's sandbox; its exceptions have no common
    base.
    """
    if not getattr(model.tokenizer, "chat_template", None):
        raise LanguageModelError(
            f"{model.name} has no chat template; give a plain prompt, or use a model that was trained to chat."
        )
    continues = messages[-1]["role"] == "assistant"
    try:
        text = model.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not continues, continue_final_message=continues
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:160].rstrip(".")
        raise TextError(f"The chat template of {model.name} refuses the messages: {reason}.") from error
    return cast(str, text)


def _illegal(prompt: object) -> TextError:
    shape = getattr(prompt, "shape", None)
    shown = repr(prompt)[:60] if shape is None else f"an array of shape {tuple(shape)} and type {prompt.dtype}"  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    return TextError(f"The prompt is {shown}; give one text, the token ids of one text, or messages with chat=True.")
