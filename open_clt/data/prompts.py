"""Prompts: lines of a file, or the beginnings of the contexts that a transcoder is measured on."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from open_clt.config import ReportConfig
from open_clt.errors import TextError
from open_clt.language.language_model import LanguageModel

_BEGINNING = 12
"""Tokens of a context, after BOS, that make a prompt."""


def read_prompts(path: str | Path) -> list[str]:
    """The lines of a text file that hold anything; raises TextError if there are none, or no such file."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"{path} cannot be read as text ({error}); give a file with one prompt a line.") from error
    if found := [line for line in lines if line.strip()]:
        return found
    raise TextError(f"{path} holds no prompt; write one a line.")


def report_prompts(config: ReportConfig, model: LanguageModel, contexts: Int[Tensor, "context position"]) -> list[str]:
    """The prompts that a report makes graphs of; raises TextError on those that the model cannot read."""
    if config.prompts is None:
        return [model.decode(row) for row in contexts[: config.graphs, 1 : 1 + _BEGINNING]]
    prompts = read_prompts(config.prompts)[: config.graphs]
    for prompt in prompts:
        model.tokenize(prompt)
    return prompts
