"""Embeddings: vectors as points in a plane, by PCA or t-SNE."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from open_clt.errors import ConfigError
from open_clt.short_repr import short_repr

EmbeddingMethod: TypeAlias = Literal["pca", "tsne"]
EmbeddingSpace: TypeAlias = Literal["decoder", "coactivation"]
"""What makes two features similar: writing in similar directions, or being active on the same tokens."""


class Embedding(NamedTuple):
    """Vectors as points in a plane."""

    points: Float[Tensor, "vector 2"]
    """Coordinates of each vector's point."""
    explained: tuple[float, float] | None
    """Share of the variance along each axis; None for t-SNE, whose axes have no meaning."""

    __repr__ = short_repr


def embed(
    vectors: Float[Tensor, "vector dimension"],
    method: EmbeddingMethod = "pca",
    *,
    perplexity: float = 30.0,
    seed: int = 0,
) -> Embedding:
    """Place vectors in a plane so that vectors with similar directions are close; their lengths do not matter.

    t-SNE (van der Maaten and Hinton, 2008) starts from PCA and gives the same points for the same seed. For N
    vectors, its perplexity is lowered to (N - 1) / 3 if it is larger. Fewer than four vectors are always placed by PCA.
    Raises ConfigError if ``method`` is not known.
    """
    if method not in ("pca", "tsne"):
        raise ConfigError(f"method is {method!r}; it must be 'pca' or 'tsne'.")
    unit = functional.normalize(vectors.detach().float().cpu(), dim=1)
    if method == "pca" or len(unit) < 4:
        return _principal_components(unit)
    from sklearn.manifold import TSNE

    start = _principal_components(unit).points
    start = 1e-4 * start / start[:, 0].std().clamp(min=1e-12)
    perplexity = min(perplexity, (len(unit) - 1) / 3)
    tsne = cast(Any, TSNE)(perplexity=perplexity, init=start.numpy(), metric="cosine", random_state=seed)
    return Embedding(torch.from_numpy(tsne.fit_transform(unit.numpy())).float(), None)


def _principal_components(vectors: Float[Tensor, "vector dimension"]) -> Embedding:
    """Coordinates along the first two principal components; zeros for vectors that are all equal."""
    from sklearn.decomposition import PCA

    points, shares = torch.zeros(len(vectors), 2), [0.0, 0.0]
    if bool((vectors != vectors[:1]).any()):
        pca = cast(Any, PCA)(n_components=min(2, *vectors.shape), svd_solver="full")
        projected = torch.from_numpy(pca.fit_transform(vectors.double().numpy()))
        # The sign of an axis is arbitrary. The largest entry is made positive, so that figures are reproducible.
        signs = projected.gather(0, projected.abs().argmax(0, keepdim=True)).sign()
        points[:, : projected.shape[1]] = (projected * signs).float()
        shares[: projected.shape[1]] = pca.explained_variance_ratio_.tolist()
    return Embedding(points, (shares[0], shares[1]))
