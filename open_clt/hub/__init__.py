"""The Hugging Face hub: whether it answers, the files of a repository, and parts of large files."""
