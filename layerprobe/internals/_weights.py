"""How far each weight matrix moved from base, and in which directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from layerprobe.encoder import Encoder, head_parameter_names
from layerprobe.errors import EncoderError, MeasureError
from layerprobe.families import FAMILIES
from layerprobe.layers import blocks
from layerprobe.progress import track

if TYPE_CHECKING:
    import pandas as pd

POOLER = -1
"""Stands for a pretrained pooler, which is part of the body above layer L."""
RANK = 1e-6
"""Singular values below this share of the largest are rounding errors of float32 weights, without a direction."""


def compare_weights(
    base: nn.Module,
    adapted: nn.Module,
    encoder: Encoder,
    *,
    k: int = 10,
    threshold: float = 0.5,
    device: str = "cpu",
) -> pd.DataFrame:
    """Compare every weight matrix of the body with that of base; the head has no counterpart in base and is left out.

    A matrix maps inputs to outputs, so that its left singular vectors are directions of the output; embedding tables,
    stored as tokens x width, are transposed. An intruder dimension (Shuttleworth et al. 2024) is one of the top k left
    singular vectors of the adapted matrix whose largest absolute cosine with those of base is below the threshold.
    Vectors with a singular value below 1e-6 of the largest are ignored on both sides. Where singular values of base are
    nearly equal, a small change already mixes their vectors: interpret the count together with `relative_change`.

    Args:
        base: the pretrained body with any head.
        adapted: the adapted classifier.
        encoder: the encoder that base was loaded from.
        k: number of top singular vectors of the adapted matrix that are examined.
        threshold: cosine in (0, 1] below which a vector is an intruder.
        device: where to compute, in float64 (on the CPU for `mps`, which has no float64).

    Returns:
        One row per matrix: `parameter` (its name), `layer` (0 embeddings, i block i, the first of a shared block; L for a
        pretrained pooler), `shared_by` (number of layers that use it: 1, or all of ALBERT's), `role` (`embeddings`,
        `pooler`, `other`, or a role in `layerprobe.families.FAMILIES`), `rows` and `columns` as stored, `relative_change`
        |dW|_F / |W|_F (NaN if W is zero), `stable_rank_base`, `stable_rank_adapted`, `stable_rank_change`
        (|.|_F^2 / |.|_2^2; NaN for a zero matrix), `intruder_dimensions`, `k` (number of vectors examined: fewer in a
        matrix of lower rank). `attrs["left_out"]` lists (parameter, reason) of the matrices that cannot be compared.

    Raises:
        MeasureError: if k or threshold is out of range.
        EncoderError: if the two are not of one architecture, or a weight is not finite.
    """
    import pandas as pd

    if k < 1:
        raise MeasureError(f"{{k}} is {k}; examine at least 1 singular vector, usually 10.", "k")
    if not 0 < threshold <= 1:
        raise MeasureError(f"{{threshold}} is {threshold}; it is a cosine in (0, 1], usually 0.5.", "threshold")
    before, after = dict(base.named_parameters()), dict(adapted.named_parameters())
    matrices = {name: layers for name, layers in parameter_layers(adapted, encoder).items() if after[name].dim() == 2}
    missing = [name for name in matrices if name not in before]
    if missing:
        raise EncoderError(f"Base has no weight {missing[0]}; give the model that the adapted one was fine-tuned from.")
    device = "cpu" if device == "mps" else device
    rows, left_out = [], []
    for name, layers in track(matrices.items(), "comparing weights"):
        shapes = [" x ".join(map(str, side[name].shape)) for side in (before, after)]
        if shapes[0] != shapes[1]:
            left_out.append((name, f"its shape is {shapes[0]} in base but {shapes[1]} in the adapted model"))
            continue
        pair = [_matrix(side[name], name, device) for side in (before, after)]
        if isinstance(adapted.get_submodule(name.rpartition(".")[0]), nn.Embedding):
            pair = [matrix.T for matrix in pair]
        rows.append(
            {
                "parameter": name,
                "layer": encoder.n_layers if layers == (POOLER,) else layers[0],
                "shared_by": len(layers),
                "role": _role(name, layers, encoder),
                "rows": after[name].shape[0],
                "columns": after[name].shape[1],
                **_change(pair[0], pair[1], k, threshold),
            }
        )
    table = pd.DataFrame(rows)
    table.attrs["left_out"] = left_out
    return table


def parameter_layers(model: nn.Module, encoder: Encoder) -> dict[str, tuple[int, ...]]:
    """The layers that each parameter of the body contributes to, by its name; those of the head are left out.

    `(0,)` for the embeddings, with the projection to the width of the blocks that ELECTRA and ALBERT have; `(i,)` for
    block i; `(1, ..., L)` for a block that all layers share; `(POOLER,)` for a pretrained pooler.
    """
    head, body = head_parameter_names(model, encoder), f"{model.base_model_prefix}."
    layers: dict[int, tuple[int, ...]] = {}
    for layer, block in enumerate(blocks(model), 1):
        for parameter in block.parameters():
            layers[id(parameter)] = (*layers.get(id(parameter), ()), layer)
    return {
        name: (POOLER,) if name.startswith(f"{body}pooler.") else layers.get(id(parameter), (0,))
        for name, parameter in model.named_parameters()
        if name not in head
    }


def _change(
    base: Float[Tensor, "out in"], adapted: Float[Tensor, "out in"], k: int, threshold: float
) -> dict[str, float]:
    """Comparison of one matrix with that of base, as columns of the table."""
    change, norm = adapted - base, float(torch.linalg.norm(base))
    if torch.equal(base, adapted):  # vectors take longest, and are not needed
        values = adapted_values = _squared_singular_values(base)
        n_top, intruders = min(k, _rank(values)), 0
    else:
        values, directions = _left_singular(base)
        adapted_values, top = _left_singular(adapted, most=k)
        # All of them if base is zero.
        n_top, intruders = top.shape[1], int(((directions.T @ top).abs() < threshold).all(dim=0).sum())
    return {
        "relative_change": float(torch.linalg.norm(change)) / norm if norm else float("nan"),
        "stable_rank_base": _stable_rank(base, values),
        "stable_rank_adapted": _stable_rank(adapted, adapted_values),
        "stable_rank_change": _stable_rank(change, _squared_singular_values(change)),
        "intruder_dimensions": intruders,
        "k": n_top,
    }


def _gram(matrix: Float[Tensor, "out in"]) -> Float[Tensor, "side side"]:
    """Gram matrix of the shorter side: several times faster than an SVD, and in float64 as exact as float32 weights are."""
    return matrix.T @ matrix if matrix.shape[0] > matrix.shape[1] else matrix @ matrix.T


def _squared_singular_values(matrix: Float[Tensor, "out in"]) -> Float[Tensor, " values"]:
    """In descending order."""
    return torch.linalg.eigvalsh(_gram(matrix)).flip(0).clamp_min(0.0)


def _left_singular(
    matrix: Float[Tensor, "out in"], most: int | None = None
) -> tuple[Float[Tensor, " values"], Float[Tensor, "out kept"]]:
    """Squared singular values in descending order, and the top left singular vectors that are not rounding errors."""
    values, vectors = torch.linalg.eigh(_gram(matrix))
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    vectors = vectors[:, : _rank(values)][:, :most]
    if matrix.shape[0] > matrix.shape[1]:
        vectors = matrix @ vectors / values[: vectors.shape[1]].sqrt()
    return values, vectors


def _rank(values: Float[Tensor, " values"]) -> int:
    """How many of these squared singular values are not rounding errors."""
    return int((values > RANK**2 * values[0]).sum())


def _stable_rank(matrix: Float[Tensor, "out in"], values: Float[Tensor, " values"]) -> float:
    return float(matrix.square().sum() / values[0]) if values[0] > 0 else float("nan")


def _matrix(parameter: nn.Parameter, name: str, device: str) -> Float[Tensor, "rows columns"]:
    value = parameter.detach().to(device, torch.float64)
    if not torch.isfinite(value).all():
        raise EncoderError(f"The weight {name} has values that are not finite; its training has diverged.")
    return value


def _role(name: str, layers: tuple[int, ...], encoder: Encoder) -> str:
    if layers in ((0,), (POOLER,)):
        return "embeddings" if layers == (0,) else "pooler"
    roles: Any = FAMILIES[encoder.family].matrices
    return next((role for path, role in roles.items() if name.endswith(f".{path}.weight")), "other")
