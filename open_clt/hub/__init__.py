"""The Hugging Face hub: whether it answers, the files of a repository, parts of large files, and uploads."""
