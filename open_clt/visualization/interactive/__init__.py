"""Interactive figures: the figures of this package as ``plotly`` figures, for notebooks, pages and the explorer.

Each shows what the static figure of the same name shows (``interactive_report`` and ``visualize_report``), takes the
same arguments apart from axes, and returns a ``plotly.graph_objects.Figure``, which a notebook shows. With
``save_path``, or by ``save_interactive``, it is written as a page (.html) that opens without a network.

    features.py   heatmaps, maps, correlations, importance, density
    decoders.py   decoder norms between layers, which have no static twin
    reports.py    training curves, evaluation, comparison
    graph.py      attribution graph
    text.py       the ONE way by which a text enters a figure
    saving.py     the ONE way by which a figure becomes a file
"""
