"""The embedded language model, which ships with the package, with its training text and its transcoder.

The model is a GPT-2 of five layers and a few megabytes. It knows a small closed world: capitals, languages and
currencies, cities and their states, opposites, successors of days, months and numbers, and the use of names in a
sentence. All facts that it was taught are in ``facts``, so the claims of an attribution graph can be compared with a
known truth. The script ``examples/train_embedded_model.py`` trains the model from this package alone.
"""

from pathlib import Path

__all__ = ["MODEL_DIRECTORY", "TRANSCODER_DIRECTORY"]

MODEL_DIRECTORY: Path = Path(__file__).parent / "model"
"""Directory of the language model, in Hugging Face's format; ``load_language_model("embedded")`` loads it."""

TRANSCODER_DIRECTORY: Path = Path(__file__).parent / "transcoder"
"""Directory of the cross-layer transcoder that was trained on the embedded model."""
