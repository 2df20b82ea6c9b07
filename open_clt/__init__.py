"""OpenCLT: cross-layer transcoders, from training to attribution graphs.

The names below are the public interface. Each is imported when it is first used, so that ``import open_clt`` costs
nothing: no torch, no language-model library.

>>> import open_clt
>>> clt = open_clt.OpenCrossLayerTranscoder.from_pretrained("embedded")  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from open_clt.activations.language_model import load_language_model
    from open_clt.attribution.attribute import attribute
    from open_clt.attribution.graph import AttributionGraph
    from open_clt.config import TranscoderConfig
    from open_clt.errors import OpenCLTError
    from open_clt.models.checkpoint import load_transcoder, save_transcoder
    from open_clt.models.cross_layer import CrossLayerTranscoder
    from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
    from open_clt.replacement.model import ReplacementModel
    from open_clt.training.train import train_transcoder
    from open_clt.visualization.suite import run_visualization_suite

    __version__: str

__all__ = [
    "AttributionGraph",
    "CrossLayerTranscoder",
    "OpenCLTError",
    "OpenCrossLayerTranscoder",
    "ReplacementModel",
    "TranscoderConfig",
    "__version__",
    "attribute",
    "load_language_model",
    "load_transcoder",
    "run_visualization_suite",
    "save_transcoder",
    "train_transcoder",
]

_MODULE_OF = {
    "AttributionGraph": "open_clt.attribution.graph",
    "CrossLayerTranscoder": "open_clt.models.cross_layer",
    "OpenCLTError": "open_clt.errors",
    "OpenCrossLayerTranscoder": "open_clt.open_cross_layer_transcoder",
    "ReplacementModel": "open_clt.replacement.model",
    "TranscoderConfig": "open_clt.config",
    "attribute": "open_clt.attribution.attribute",
    "load_language_model": "open_clt.activations.language_model",
    "load_transcoder": "open_clt.models.checkpoint",
    "run_visualization_suite": "open_clt.visualization.suite",
    "save_transcoder": "open_clt.models.checkpoint",
    "train_transcoder": "open_clt.training.train",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        value = version("open-clt")
    elif name in _MODULE_OF:
        value = getattr(import_module(_MODULE_OF[name]), name)
    else:
        raise AttributeError(f"module 'open_clt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
