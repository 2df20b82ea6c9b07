"""Training on several processes."""

from open_clt.training.parallel.shards import merge_checkpoint
from open_clt.training.parallel.strategy import FeatureParallelStrategy

__all__ = ["FeatureParallelStrategy", "merge_checkpoint"]
