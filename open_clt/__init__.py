"""OpenCLT: cross-layer transcoders, from training to attribution graphs.

The names in ``__all__`` are the public interface. Each name is imported when it is first used, so ``import open_clt``
is fast: it imports neither torch nor a library of language models.

>>> import open_clt
>>> clt = open_clt.OpenCrossLayerTranscoder.from_pretrained("embedded")  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # the module typing takes longer to import than all others that a program needs at its start
if TYPE_CHECKING:
    from typing import Any

    from open_clt.attribution.attribute import attribute, attribute_all
    from open_clt.attribution.qk import explain_attention
    from open_clt.config import CrossLayerConfig, MoltConfig, TrainingConfig, TranscoderConfig
    from open_clt.errors import OpenCLTError
    from open_clt.evaluation.faithfulness import faithfulness
    from open_clt.explorer.session.session_file import load_session, save_session
    from open_clt.graphs.consensus import consensus
    from open_clt.graphs.formats.circuit_tracer import write_circuit_tracer
    from open_clt.graphs.graph import AttributionGraph
    from open_clt.graphs.supernodes import suggest_supernodes
    from open_clt.language.language_model import load_language_model
    from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
    from open_clt.publishing.push import push_transcoder
    from open_clt.replacement.interventions.intervene import intervene
    from open_clt.replacement.interventions.intervention import Intervention
    from open_clt.replacement.model import ReplacementModel
    from open_clt.training.run import train_transcoder
    from open_clt.transcoders.cross_layer import CrossLayerTranscoder
    from open_clt.transcoders.encoder.dictionaries import SparseCLTEncoder
    from open_clt.transcoders.encoder.sparse_encoder import SparseEncoder
    from open_clt.transcoders.formats.load import load_transcoder
    from open_clt.transcoders.formats.native import save_transcoder
    from open_clt.transcoders.make import make_transcoder
    from open_clt.visualization.graph.figure import visualize_attribution_graph
    from open_clt.visualization.interactive.graph import interactive_attribution_graph
    from open_clt.visualization.interactive.saving import save_interactive
    from open_clt.visualization.prompt_report.report import write_report
    from open_clt.visualization.suite import run_visualization_suite

    __version__: str

__all__ = [
    "AttributionGraph",
    "CrossLayerConfig",
    "CrossLayerTranscoder",
    "Intervention",
    "MoltConfig",
    "OpenCLTError",
    "OpenCrossLayerTranscoder",
    "ReplacementModel",
    "SparseCLTEncoder",
    "SparseEncoder",
    "TrainingConfig",
    "TranscoderConfig",
    "__version__",
    "attribute",
    "attribute_all",
    "consensus",
    "explain_attention",
    "faithfulness",
    "interactive_attribution_graph",
    "intervene",
    "load_language_model",
    "load_session",
    "load_transcoder",
    "make_transcoder",
    "push_transcoder",
    "run_visualization_suite",
    "save_interactive",
    "save_session",
    "save_transcoder",
    "suggest_supernodes",
    "train_transcoder",
    "visualize_attribution_graph",
    "write_circuit_tracer",
    "write_report",
]

_MODULE_OF = {
    "AttributionGraph": "open_clt.graphs.graph",
    "CrossLayerConfig": "open_clt.config",
    "CrossLayerTranscoder": "open_clt.transcoders.cross_layer",
    "Intervention": "open_clt.replacement.interventions.intervention",
    "MoltConfig": "open_clt.config",
    "OpenCLTError": "open_clt.errors",
    "OpenCrossLayerTranscoder": "open_clt.open_cross_layer_transcoder",
    "ReplacementModel": "open_clt.replacement.model",
    "SparseCLTEncoder": "open_clt.transcoders.encoder.dictionaries",
    "SparseEncoder": "open_clt.transcoders.encoder.sparse_encoder",
    "TrainingConfig": "open_clt.config",
    "TranscoderConfig": "open_clt.config",
    "attribute": "open_clt.attribution.attribute",
    "attribute_all": "open_clt.attribution.attribute",
    "consensus": "open_clt.graphs.consensus",
    "explain_attention": "open_clt.attribution.qk",
    "faithfulness": "open_clt.evaluation.faithfulness",
    "interactive_attribution_graph": "open_clt.visualization.interactive.graph",
    "intervene": "open_clt.replacement.interventions.intervene",
    "load_language_model": "open_clt.language.language_model",
    "load_session": "open_clt.explorer.session.session_file",
    "load_transcoder": "open_clt.transcoders.formats.load",
    "make_transcoder": "open_clt.transcoders.make",
    "push_transcoder": "open_clt.publishing.push",
    "run_visualization_suite": "open_clt.visualization.suite",
    "save_interactive": "open_clt.visualization.interactive.saving",
    "save_session": "open_clt.explorer.session.session_file",
    "save_transcoder": "open_clt.transcoders.formats.native",
    "suggest_supernodes": "open_clt.graphs.supernodes",
    "train_transcoder": "open_clt.training.run",
    "visualize_attribution_graph": "open_clt.visualization.graph.figure",
    "write_circuit_tracer": "open_clt.graphs.formats.circuit_tracer",
    "write_report": "open_clt.visualization.prompt_report.report",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
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
