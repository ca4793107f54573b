"""How far each weight matrix moved from base, and in which directions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import nn
from tqdm import tqdm

from layerprobe.encoder import Encoder
from layerprobe.errors import EncoderError, MeasureError
from layerprobe.internals._places import POOLER, places

if TYPE_CHECKING:
    import pandas as pd

_ROLES = (
    (r"attention\.(self\.)?query|attention\.q_lin", "query"),
    (r"attention\.(self\.)?key|attention\.k_lin", "key"),
    (r"attention\.(self\.)?value|attention\.v_lin", "value"),
    (r"attn\.Wqkv", "query_key_value"),
    (r"attention\.(output\.)?dense|attention\.out_lin|attn\.Wo", "attention_output"),
    (r"intermediate\.dense|ffn\.lin1|ffn", "feed_forward_in"),
    (r"mlp\.Wi", "feed_forward_in_gate"),
    (r"output\.dense|ffn\.lin2|ffn_output|mlp\.Wo", "feed_forward_out"),
)
RANK = 1e-6
"""Singular values below this share of the largest are rounding, of float32 weights, and have no direction of their own."""


def compare_weights(
    base: nn.Module,
    adapted: nn.Module,
    encoder: Encoder,
    *,
    k: int = 10,
    threshold: float = 0.5,
    progress: bool = True,
) -> pd.DataFrame:
    """Compare every weight matrix of the body with base's; the head has no base and is left out.

    A matrix W is taken as the map from what goes in to what comes out, so that its left singular vectors are
    directions of the output. (Linear maps are stored so; an embedding table, stored tokens x width, is turned.) Sums are
    in float64. An intruder dimension (Shuttleworth et al. 2024) is one of the adapted matrix' top k left singular vectors
    whose largest absolute cosine to any of base's is below the threshold. Vectors whose singular value is below
    1e-6 of the largest are not counted on either side. Where base's singular values lie close together, a small change
    already mixes their vectors: read the count beside `relative_change`.

    Args:
        base: the pretrained body under any head.
        adapted: the adapted classifier.
        encoder: whose numbering and pooler decide what is body.
        k: how many of the adapted matrix' top singular vectors are looked at.
        threshold: cosine in (0, 1] below which one is new.
        progress: whether to draw a bar on stderr.

    Returns:
        One row a matrix: `parameter` (its name), `layer` (0 embeddings, i block i; of a shared block the first; L for a
        pretrained pooler), `shared_by` (how many blocks use it: 1, or ALBERT's many), `role` (`embeddings`, `query`, `key`,
        `value`, `attention_output`, `feed_forward_in`, `feed_forward_out`, `pooler`, `other`; ModernBERT's fused
        `query_key_value` and `feed_forward_in_gate`), `rows` and `columns` as stored, `relative_change` |dW|_F / |W|_F (NaN where W is zero),
        `stable_rank_base`, `stable_rank_adapted`, `stable_rank_change` (|.|_F^2 / |.|_2^2; NaN of a zero matrix),
        `intruder_dimensions`, `k` (how many were looked at: fewer in a matrix of lower rank).
        `attrs["left_out"]` lists (parameter, why) of the matrices that can't be compared.

    Raises:
        MeasureError: if k or threshold is out of range.
        EncoderError: if the two are not of one architecture, or a weight is not finite.
    """
    import pandas as pd

    if k < 1:
        raise MeasureError(f"k is {k}; look at 1 singular vector or more, usually 10.")
    if not 0 < threshold <= 1:
        raise MeasureError(
            f"The threshold for intruder dimensions is {threshold}; it is a cosine in (0, 1], usually 0.5."
        )
    before, after = dict(base.named_parameters()), dict(adapted.named_parameters())
    where = {name: layers for name, layers in places(adapted, encoder).items() if after[name].dim() == 2}
    missing = [name for name in where if name not in before]
    if missing:
        raise EncoderError(f"Base has no weight {missing[0]}; give the model that the adapted one was fine-tuned from.")
    rows, left_out = [], []
    for name, layers in tqdm(where.items(), desc="comparing weights", leave=False, disable=not progress, delay=1):
        if before[name].shape != after[name].shape:
            shapes = [" x ".join(map(str, side[name].shape)) for side in (before, after)]
            left_out.append((name, f"it is {shapes[0]} in base but {shapes[1]} in the adapted model"))
            continue
        one, other = _matrix(before[name], name), _matrix(after[name], name)
        table_of_rows = isinstance(adapted.get_submodule(name.rpartition(".")[0]), nn.Embedding)
        change = _change(*((one.T, other.T) if table_of_rows else (one, other)), k, threshold)
        rows.append(
            {
                "parameter": name,
                "layer": encoder.n_layers if layers == (POOLER,) else layers[0],
                "shared_by": len(layers),
                "role": _role(name, layers),
                "rows": one.shape[0],
                "columns": one.shape[1],
                **vars(change),
            }
        )
    table = pd.DataFrame(rows)
    table.attrs["left_out"] = left_out
    return table


@dataclass(frozen=True)
class _Change:
    """One matrix beside base's; the fields are the table's columns."""

    relative_change: float
    stable_rank_base: float
    stable_rank_adapted: float
    stable_rank_change: float
    intruder_dimensions: int
    k: int


def _change(
    base: Float[np.ndarray, "out in"], adapted: Float[np.ndarray, "out in"], k: int, threshold: float
) -> _Change:
    if np.array_equal(base, adapted):
        values = _squared_singular_values(base)
        rank = _stable_rank(base, values)
        return _Change(0.0, rank, rank, float("nan"), 0, min(k, _rank(values)))
    values, directions = _left_singular(base)
    tuned, top = _left_singular(adapted, most=k)
    nearest = np.abs(directions.T @ top).max(axis=0, initial=0.0)
    norm = float(np.linalg.norm(base))
    moved = adapted - base
    return _Change(
        relative_change=float(np.linalg.norm(moved)) / norm if norm else float("nan"),
        stable_rank_base=_stable_rank(base, values),
        stable_rank_adapted=_stable_rank(adapted, tuned),
        stable_rank_change=_stable_rank(moved, _squared_singular_values(moved)),
        intruder_dimensions=int((nearest < threshold).sum()),
        k=top.shape[1],
    )


def _left_singular(
    matrix: Float[np.ndarray, "out in"], most: int | None = None
) -> tuple[Float[np.ndarray, " values"], Float[np.ndarray, "out kept"]]:
    """Squared singular values, largest first, and the left singular vectors of those that are not rounding.

    By the Gram matrix of the shorter side: several times quicker than an SVD, and in float64 as exact as float32 weights
    are. In float32 it would not be.
    """
    from scipy.linalg import eigh

    tall = matrix.shape[0] > matrix.shape[1]
    size = min(matrix.shape)
    first = 0 if most is None else max(0, size - most)
    values, vectors = eigh(matrix.T @ matrix if tall else matrix @ matrix.T, subset_by_index=[first, size - 1])
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    kept = _rank(values)
    if not tall:
        return values, vectors[:, :kept]
    return values, matrix @ vectors[:, :kept] / np.sqrt(values[:kept])


def _squared_singular_values(matrix: Float[np.ndarray, "out in"]) -> Float[np.ndarray, " values"]:
    gram = matrix.T @ matrix if matrix.shape[0] > matrix.shape[1] else matrix @ matrix.T
    return np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)


def _rank(values: Float[np.ndarray, " values"]) -> int:
    """How many of these squared singular values, largest first, are not rounding."""
    return int((values > RANK**2 * values[0]).sum())


def _stable_rank(matrix: Float[np.ndarray, "out in"], values: Float[np.ndarray, " values"]) -> float:
    return float(np.square(matrix).sum() / values[0]) if values[0] > 0 else float("nan")


def _matrix(parameter: nn.Parameter, name: str) -> Float[np.ndarray, "rows columns"]:
    value = parameter.detach().cpu().double().numpy()
    if not np.isfinite(value).all():
        raise EncoderError(f"The weight {name} holds values that are not finite; its training has diverged.")
    return value


def _role(name: str, layers: tuple[int, ...]) -> str:
    if layers == (0,):
        return "embeddings"
    if layers == (POOLER,):
        return "pooler"
    return next((role for pattern, role in _ROLES if re.search(rf"\.({pattern})\.weight$", name)), "other")
