"""The ONE table of views: which function makes the HTML of which class.

Classes are listed by name, so that showing one record does not import the rooms of all others. The view of a class is
also that of its subclasses, unless these have their own.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

VIEWS = {
    "open_clt.open_cross_layer_transcoder.OpenCrossLayerTranscoder": "models.facade_view",
    "open_clt.language.language_model.LanguageModel": "models.language_model_view",
    "open_clt.transcoders.transcoder.Transcoder": "models.transcoder_view",
    "open_clt.replacement.model.ReplacementModel": "models.replacement_view",
    "open_clt.features.records.FeatureRecord": "features.record_view",
    "open_clt.features.firing.FeatureActivations": "features.activations_view",
    "open_clt.features.firing.TopFeatures": "features.top_features_view",
    "open_clt.graphs.graph.AttributionGraph": "graphs.graph_view",
    "open_clt.graphs.supernodes.GroupedGraph": "graphs.grouped_view",
    "open_clt.graphs.operations.GraphComparison": "graphs.graph_comparison_view",
    "open_clt.evaluation.faithfulness_report.Faithfulness": "graphs.faithfulness_view",
    "open_clt.replacement.interventions.intervene.InterventionRecord": "graphs.intervention_view",
    "open_clt.replacement.comparison.Comparison": "numbers.comparison_view",
    "open_clt.replacement.comparison.LogitComparison": "numbers.logits_view",
    "open_clt.replacement.generation.Generation": "numbers.generation_view",
    "open_clt.evaluation.evaluate.Evaluation": "numbers.evaluation_view",
    "open_clt.evaluation.report.Report": "numbers.report_view",
    "open_clt.transcoders.metrics.TranscoderMetrics": "numbers.metrics_view",
    "open_clt.training.result.TrainingResult": "numbers.training_view",
    "open_clt.training.step.module.Curves": "numbers.curves_view",
}
"""Function of this folder that makes the view, as ``module.function``, by the full name of the class."""


def view_of(record: Any) -> str | None:
    """Return the HTML of a record, or None if its class has no view."""
    for base in type(record).__mro__:
        if name := VIEWS.get(f"{base.__module__}.{base.__qualname__}"):
            module, function = name.split(".")
            return getattr(import_module(f"open_clt.visualization.notebook.{module}"), function)(record)
    return None
