"""Dictionaries: what the truth suite scores, and where their graphs come from.

A dictionary is a transcoder in any layout that OpenCLT reads. Its graphs are computed by OpenCLT, or read from a
directory of circuit-tracer's JSON files of the same prompts, so that another program's graphs can be scored.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, final

from open_clt.attribution.attribute import attribute
from open_clt.attribution.budget import default_budget
from open_clt.errors import AttributionError
from open_clt.graphs.formats.circuit_tracer_reader import read_circuit_tracer
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.targets import LogitDifference, TokenLogits
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.transcoder import Transcoder


class Dictionary(NamedTuple):
    """A transcoder with its name in the table."""

    name: str
    model: LanguageModel
    transcoder: Transcoder

    def models(self) -> dict[str, ReplacementModel]:
        """The model itself, whose MLPs compute as before, and the model whose MLPs are the transcoder."""
        return {
            name: ReplacementModel(self.model, self.transcoder, error_correction=corrected)
            for name, corrected in (("itself", True), ("replaced", False))
        }


@final
class Graphs:
    """The graph of a dictionary for each prompt: computed, or read from files."""

    def __init__(self, dictionary: Dictionary, directory: Path | None = None) -> None:
        self.dictionary = dictionary
        self._stored: dict[str, AttributionGraph] = {}
        for path in [] if directory is None else sorted(directory.glob("*.json")):
            graph = read_circuit_tracer(path).graph
            self._stored[graph.info.prompt] = graph
        self._read = directory

    def of(self, prompt: str, answer: str, competitor: str | None = None) -> AttributionGraph:
        """The graph of one prompt, with one output: the answer's logit, or the difference from the competitor's.

        Raises AttributionError if the dictionary has no graphs, or the directory has none of this prompt.
        """
        if self._read is not None:
            if prompt not in self._stored:
                raise AttributionError(f"{self._read} has no graph of the prompt {prompt!r}.")
            return self._stored[prompt]
        target = TokenLogits(tokens=(answer,))
        if competitor is not None:
            target = LogitDifference(positive=answer, negative=competitor)
        model, transcoder = self.dictionary.model, self.dictionary.transcoder
        return attribute(model, transcoder, prompt, targets=target, max_feature_nodes=default_budget(transcoder))
