"""Embeddings: vectors as points of a plane, by PCA or t-SNE."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from open_clt.errors import ConfigError

EmbeddingMethod: TypeAlias = Literal["pca", "tsne"]


class Embedding(NamedTuple):
    """Vectors as points of a plane."""

    points: Float[Tensor, "some 2"]
    explained: tuple[float, float] | None
    """Share of the variance along each axis; None where axes mean nothing."""


def embed(
    vectors: Float[Tensor, "some dimension"],
    method: EmbeddingMethod = "pca",
    *,
    perplexity: float = 30.0,
    seed: int = 0,
) -> Embedding:
    """Place vectors in a plane so that those that point the same way are close; lengths do not matter.

    t-SNE (van der Maaten and Hinton, 2008) starts from PCA, and is the same for the same seed; its perplexity is
    lowered to a third of the vectors where there are too few. Fewer than four vectors are always placed by PCA.
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
    placed = cast(Any, TSNE)(perplexity=perplexity, init=start.numpy(), metric="cosine", random_state=seed)
    return Embedding(torch.from_numpy(placed.fit_transform(unit.numpy())).float(), None)


def _principal_components(vectors: Float[Tensor, "some dimension"]) -> Embedding:
    from sklearn.decomposition import PCA

    points, shares = torch.zeros(len(vectors), 2), [0.0, 0.0]
    if bool((vectors != vectors[:1]).any()):
        pca = cast(Any, PCA)(n_components=min(2, *vectors.shape), svd_solver="full")
        placed = torch.from_numpy(pca.fit_transform(vectors.double().numpy()))
        # An axis may point either way: its largest entry is made positive, so that a picture is always the same.
        signs = placed.gather(0, placed.abs().argmax(0, keepdim=True)).sign()
        points[:, : placed.shape[1]] = (placed * signs).float()
        shares[: placed.shape[1]] = pca.explained_variance_ratio_.tolist()
    return Embedding(points, (shares[0], shares[1]))
