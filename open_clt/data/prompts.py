"""Prompts of attribution graphs in a report: lines of a file, or beginnings of the report's contexts."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from open_clt import files
from open_clt.config import ReportConfig
from open_clt.errors import CheckpointError, TextError
from open_clt.language.language_model import LanguageModel

_PROMPT_LENGTH = 12
"""Number of tokens, BOS not counted, of a prompt that is cut from a context."""


def read_prompts(path: str | Path) -> list[str]:
    """Return the lines of a text file that are not blank; raises TextError if it cannot be read or has no such line."""
    try:
        lines = files.read_text(Path(path), "UTF-8 text").removeprefix("\ufeff").splitlines()
    except CheckpointError as error:
        raise TextError(f"{error} Give a file with one prompt per line.") from error
    if prompts := [line for line in lines if line.strip()]:
        return prompts
    raise TextError(f"{path} holds no prompts; write one prompt per line.")


def report_prompts(config: ReportConfig, model: LanguageModel, contexts: Int[Tensor, "context position"]) -> list[str]:
    """Return the prompts that a report makes graphs of; raises TextError if the model cannot read one of them."""
    if config.prompts is None:
        return [model.decode(context) for context in contexts[: config.graphs, 1 : 1 + _PROMPT_LENGTH]]
    prompts = read_prompts(config.prompts)[: config.graphs]
    for prompt in prompts:
        model.tokenize(prompt)
    return prompts
