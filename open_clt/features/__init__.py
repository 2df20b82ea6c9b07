"""Features: where they fire on texts, what they write, and records of both."""
