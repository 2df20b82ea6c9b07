"""Prompts of attribution graphs: lines of a file, filled templates, or beginnings of a report's contexts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast, final

from jaxtyping import Int
from torch import Tensor

from open_clt import files
from open_clt.config import ReportConfig
from open_clt.errors import CheckpointError, TextError
from open_clt.language.language_model import LanguageModel
from open_clt.short_repr import short_repr

SLOT = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""A slot of a template: its name in braces."""
_PROMPT_LENGTH = 12
"""Number of tokens, BOS not counted, of a prompt that is cut from a context."""


@final
@dataclass(frozen=True)
class PromptSet:
    """Prompts, and the templates that they were made from."""

    prompts: tuple[str, ...]
    """The prompts."""
    templates: tuple[str, ...] = ()
    """Templates with slots in braces; empty if the prompts are lines of a text file."""

    __repr__ = short_repr


def read_prompts(path: str | Path) -> list[str]:
    """Return the prompts of a file; raises TextError as ``read_prompt_set`` does."""
    return list(read_prompt_set(path).prompts)


def read_prompt_set(path: str | Path) -> PromptSet:
    """Read a text file with one prompt per line, or a JSON file with templates and the values of their slots.

    The JSON file holds ``{"templates": ["The capital of {state} is"], "values": [{"state": "Texas"}, ...]}``. Each
    template is filled with each set of values. Raises TextError if the file cannot be read, or holds anything else.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".json":
            return _filled(path, files.read_json(path))
        lines = files.read_text(path, "UTF-8 text").removeprefix("\ufeff").splitlines()
    except CheckpointError as error:
        raise TextError(f"{error} Give a file with one prompt per line, or a .json file with templates.") from error
    if prompts := [line for line in lines if line.strip()]:
        return PromptSet(tuple(prompts))
    raise TextError(f"{path} holds no prompts; write one prompt per line.")


def _filled(path: Path, content: object) -> PromptSet:
    """The prompts of a file with templates: for each template, one for each set of values."""
    match content:
        case {"templates": [_, *_] as templates, "values": [_, *_] as values, **others} if not others:
            pass
        case _:
            raise TextError(f'{path} must hold {{"templates": [...], "values": [{{...}}, ...]}} and nothing else.')
    prompts: list[str] = []
    for template in cast(list[object], templates):
        if not isinstance(template, str) or not (slots := set(SLOT.findall(template))):
            raise TextError(f"{path}: the template {template!r} has no slot; write one in braces, such as {{city}}.")
        for value in cast(list[object], values):
            match value:
                case dict() if value.keys() == slots and all(isinstance(v, str) and v for v in value.values()):
                    prompts.append(SLOT.sub(lambda slot, texts=value: texts[slot[1]], template))
                case _:
                    raise TextError(f"{path}: {value!r} does not give a text for each of the slots {sorted(slots)}.")
    return PromptSet(tuple(dict.fromkeys(prompts)), tuple(map(str, templates)))


def report_prompts(config: ReportConfig, model: LanguageModel, contexts: Int[Tensor, "context position"]) -> list[str]:
    """Return the prompts that a report makes graphs of; raises TextError if the model cannot read one of them."""
    if config.prompts is None:
        return [model.decode(context) for context in contexts[: config.graphs, 1 : 1 + _PROMPT_LENGTH]]
    prompts = read_prompts(config.prompts)[: config.graphs]
    for prompt in prompts:
        model.tokenize(prompt)
    return prompts
