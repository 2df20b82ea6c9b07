"""Attribution: computing the graph of features and edges that explains a model's output on a prompt."""
