"""What a person does in the explorer, as immutable values: the session, its actions, its circuit and its file."""
