"""Labels that a language model writes and scores, through an endpoint that the user names."""
