"""Numbers and records about transcoders, their features and their graphs; never pictures."""
