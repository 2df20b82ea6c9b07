"""The language model that ships with the package, the text it learned from, and its transcoder.

A GPT-2 of five layers that fits in a few megabytes and knows a closed little world: capitals, languages and
currencies, cities and their states, opposites, what follows what, and how names behave in a sentence.
Everything it was taught stands in ``facts``, so what a graph claims about it can be held against a known
truth. The script ``examples/train_embedded_model.py`` makes the model from nothing but this package.
"""

from pathlib import Path

__all__ = ["MODEL_DIRECTORY", "TRANSCODER_DIRECTORY"]

MODEL_DIRECTORY: Path = Path(__file__).parent / "model"
"""The language model, as Hugging Face files; load it with ``activations.language_model``."""

TRANSCODER_DIRECTORY: Path = Path(__file__).parent / "transcoder"
"""The cross-layer transcoder trained on that model."""
