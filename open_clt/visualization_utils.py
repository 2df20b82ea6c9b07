"""All figure functions in one module: ``from open_clt.visualization_utils import visualize_feature_heatmap``.

``visualize_...`` draws with matplotlib, and ``interactive_...`` makes the same figure with plotly.
"""

from open_clt.visualization.figures import (
    visualize_cross_layer_correlations,
    visualize_feature_density,
    visualize_feature_embedding,
    visualize_feature_heatmap,
    visualize_feature_importance,
    visualize_layer_activity,
    visualize_training_curves,
)
from open_clt.visualization.graph.figure import visualize_attribution_graph
from open_clt.visualization.interactive.features import (
    interactive_cross_layer_correlations,
    interactive_feature_density,
    interactive_feature_embedding,
    interactive_feature_heatmap,
    interactive_feature_importance,
    interactive_layer_activity,
)
from open_clt.visualization.interactive.graph import interactive_attribution_graph
from open_clt.visualization.interactive.reports import (
    interactive_comparison,
    interactive_report,
    interactive_training_curves,
)
from open_clt.visualization.interactive.saving import save_interactive
from open_clt.visualization.report_figures import visualize_comparison, visualize_report
from open_clt.visualization.suite import VisualizationSuite, run_visualization_suite

__all__ = [
    "VisualizationSuite",
    "interactive_attribution_graph",
    "interactive_comparison",
    "interactive_cross_layer_correlations",
    "interactive_feature_density",
    "interactive_feature_embedding",
    "interactive_feature_heatmap",
    "interactive_feature_importance",
    "interactive_layer_activity",
    "interactive_report",
    "interactive_training_curves",
    "run_visualization_suite",
    "save_interactive",
    "visualize_attribution_graph",
    "visualize_comparison",
    "visualize_cross_layer_correlations",
    "visualize_feature_density",
    "visualize_feature_embedding",
    "visualize_feature_heatmap",
    "visualize_feature_importance",
    "visualize_layer_activity",
    "visualize_report",
    "visualize_training_curves",
]
