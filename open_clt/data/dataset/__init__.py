"""Datasets of activations on disk: harvested once, read many times.

    DIRECTORY/
      shard-00000.safetensors   inputs and targets (token, layer, d_model), tokens and positions (token)
      shard-00001.safetensors   ...
      norm_stats.json           mean and variance of every layer and dimension
      manifest.json             what was harvested, and the SHA-256 of each file; written last
      unfinished.json           instead of the manifest, until the dataset is complete

``manifest`` has the records of both JSON files, ``encoding`` the types of the numbers in a shard, ``statistics`` the
running mean and variance. ``writer`` writes a dataset and goes on after it was stopped, ``reader`` opens it, and
``batches`` reads it in batches. The page docs/layouts.md describes the format for other programs.
"""

from open_clt.data.dataset.batches import read
from open_clt.data.dataset.scrambling.scramble import scramble

__all__ = ["read", "scramble"]
