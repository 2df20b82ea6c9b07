"""Features: where they are active on texts, what they write, and records of both."""
