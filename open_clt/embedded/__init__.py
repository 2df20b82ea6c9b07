"""The embedded language model, which ships with the package, with its training text and its transcoder.

The model is a GPT-2 of five layers and a few megabytes. It knows a small closed world: capitals, languages and
currencies, cities and their states, opposites, successors of days, months and numbers, and the use of names in a
sentence. All facts that it was taught are in ``facts``, so the claims of an attribution graph can be compared with a
known truth. The script ``examples/train_embedded_model.py`` trains the model from this package alone.
"""

from __future__ import annotations

from pathlib import Path

TYPE_CHECKING = False  # the module typing takes longer to import than this one
if TYPE_CHECKING:
    from open_clt.graphs.graph import AttributionGraph

__all__ = ["MODEL_DIRECTORY", "START_GRAPH_DIRECTORY", "START_PROMPT", "TRANSCODER_DIRECTORY", "start_graph"]

MODEL_DIRECTORY: Path = Path(__file__).parent / "model"
"""Directory of the language model, in Hugging Face's format; ``load_language_model("embedded")`` loads it."""

TRANSCODER_DIRECTORY: Path = Path(__file__).parent / "transcoder"
"""Directory of the cross-layer transcoder that was trained on the embedded model, with its feature records."""

START_PROMPT = "The capital of the state containing Dallas is"
"""Prompt of the start graph: the answer, " Austin", takes two steps, from the city to its state and to the capital."""

START_GRAPH_DIRECTORY: Path = Path(__file__).parent / "start_graph"
"""Directory of the start graph, in the files of ``AttributionGraph.save``."""


def start_graph() -> AttributionGraph:
    """Return the whole attribution graph of ``START_PROMPT``, with labels, which is there before anything is computed.

    ``make embedded-features`` computes it anew, with the records of the transcoder's features.
    """
    from open_clt.graphs.graph import AttributionGraph

    return AttributionGraph.load(START_GRAPH_DIRECTORY)
