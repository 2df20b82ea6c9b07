"""All figure functions in one module: ``from open_clt.visualization_utils import visualize_feature_heatmap``."""

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
from open_clt.visualization.report_figures import visualize_comparison, visualize_report
from open_clt.visualization.suite import VisualizationSuite, run_visualization_suite

__all__ = [
    "VisualizationSuite",
    "run_visualization_suite",
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
