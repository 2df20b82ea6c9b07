"""Labels of features in words: made from records, scored on held-out contexts, or given by the user."""
