"""The report of one prompt: a single HTML file with predictions, attribution graph, features and faithfulness."""
