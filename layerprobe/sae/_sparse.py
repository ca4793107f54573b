"""Training steps that compute with the active latents only.

With 32 of 1,536 latents active, 98% of the products in sae-lens' decoder and in the gradients of both matrices are with
zeros. On a CPU, the encoder and one product of the gradient stay dense here, and the rest are sums over active latents;
on other devices all products are dense. Losses and gradients equal sae-lens' up to rounding (`benchmarks/sae.py`
compares their speed), and dictionaries are saved in its format.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE
from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopKTrainingSAE
from torch import Tensor
from torch.nn.functional import embedding_bag

SAMPLED = 16_384
MARGIN = 1.2


def largest_of_rows(values: Float[Tensor, "n m"], k: int) -> Int[Tensor, " chosen"]:
    """Flat positions, in order, of the k largest values of each row that are above zero.

    The same set as `torch.topk` by row and a ReLU. On a CPU, of equal values the leftmost are taken.
    """
    n, m = values.shape
    if values.device.type != "cpu":
        top = values.topk(min(k, m), dim=1, sorted=False)
        positions = top.indices + torch.arange(n, device=values.device)[:, None] * m
        return positions[top.values > 0].sort().values
    array = values.numpy()
    if k >= m:
        return torch.from_numpy(np.flatnonzero(array > 0))
    border = np.partition(array, m - k, axis=1)[:, m - k, None]
    chosen = (array >= border) & (array > 0)
    if (chosen.sum(1) > k).any():
        tied = chosen & (array == border)
        room = k - (chosen & ~tied).sum(1, keepdims=True)
        chosen &= ~tied | (np.cumsum(tied, axis=1) <= room)
    return torch.from_numpy(np.flatnonzero(chosen))


def largest_of_batch(values: Float[Tensor, "n m"], count: int) -> Int[Tensor, " chosen"]:
    """Flat positions, in order, of the `count` largest values of all that are above zero.

    The same set as `torch.topk` over the flattened batch and a ReLU. On a CPU, of equal values the first are taken.
    """
    if values.device.type != "cpu":
        top = values.reshape(-1).topk(min(count, values.numel()), sorted=False)
        return top.indices[top.values > 0].sort().values
    flat = values.numpy().reshape(-1)
    if count <= 0:
        return torch.zeros(0, dtype=torch.long)
    positions = np.flatnonzero(flat >= max(_lower_bound(flat, count), np.finfo(flat.dtype).smallest_subnormal))
    if len(positions) <= count:
        # Fewer are above zero, or the bound was too high: without it.
        positions = np.flatnonzero(flat > 0)
    if len(positions) > count:
        candidates = flat[positions]
        border = np.partition(candidates, len(candidates) - count)[len(candidates) - count]
        kept = candidates >= border
        if kept.sum() > count:
            tied = candidates == border
            kept &= ~tied | (np.cumsum(tied) <= count - int((candidates > border).sum()))
        positions = positions[kept]
    return torch.from_numpy(positions)


def nth_largest(values: Float[Tensor, "n m"], n: int) -> Float[Tensor, ""]:
    """The n-th largest of non-negative values; 0 if fewer are above zero."""
    chosen = values.reshape(-1)[largest_of_batch(values, n)]
    return chosen.min() if len(chosen) == n else values.new_zeros(())


def _lower_bound(flat: np.ndarray, n: int) -> float:
    """A value that the n-th largest is almost surely not below, from a sample.

    Only what is above it has to be partitioned: for a small share of a large batch, several times less work.
    """
    step = flat.size // SAMPLED
    sample = flat[:: max(1, step)]
    rank = int(MARGIN * n / flat.size * sample.size) + 8
    if step < 2 or rank >= sample.size:
        return -np.inf
    return float(np.partition(sample, sample.size - rank)[sample.size - rank])


class Weights(NamedTuple):
    """Weights of a dictionary under training."""

    w_enc: Float[Tensor, "d d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    w_dec: Float[Tensor, "d_sae d"]
    b_dec: Float[Tensor, " d"]


def reconstruct(
    x: Float[Tensor, "n d"],
    weights: Weights,
    hidden: Float[Tensor, "n d_sae"],
    chosen: Int[Tensor, " active"],
    *,
    centred: bool,
) -> tuple[Float[Tensor, "n d"], Float[Tensor, " active"]]:
    """Rows rebuilt from active latents, and their pre-activations, both with gradients of the weights.

    Args:
        x: rows.
        weights: of the dictionary.
        hidden: pre-activations of all latents, computed without gradients.
        chosen: flat positions of the active latents in (row, latent), in order.
        centred: whether the decoder's bias is subtracted from the rows before the encoder.
    """
    if x.device.type == "cpu":
        with torch.no_grad():
            z = x - weights.b_dec if centred else x
        return _Reconstruct.apply(z, *weights, hidden, chosen.numpy(), centred)
    z = x - weights.b_dec if centred else x
    values = torch.addmm(weights.b_enc, z, weights.w_enc).reshape(-1)[chosen]
    codes = values.new_zeros(hidden.numel()).index_put((chosen,), values).view_as(hidden)
    return codes @ weights.w_dec + weights.b_dec, values


class _Reconstruct(torch.autograd.Function):
    """`reconstruct` on a CPU."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        w_enc, _, w_dec, b_dec, hidden, chosen, ctx.centred = arguments
        rows, latents = np.divmod(chosen, hidden.shape[1])
        # numpy gathers and scatters few of many several times faster than torch does on a CPU.
        values = torch.from_numpy(hidden.numpy().reshape(-1)[chosen])
        ctx.save_for_backward(z, w_enc, w_dec, values)
        ctx.set_materialize_grads(False)
        ctx.chosen, ctx.rows, ctx.latents = chosen, rows, latents
        return _bags(torch.from_numpy(latents), _starts(rows, len(z)), w_dec, values) + b_dec, values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        grad, to_values = grads
        z, w_enc, w_dec, values = ctx.saved_tensors
        assert grad is not None
        # Gathering decoder rows one by one is slower than this one dense product.
        to_codes = torch.from_numpy((grad @ w_dec.T).numpy().reshape(-1)[ctx.chosen])
        if to_values is not None:
            to_codes += to_values
        by_latent = np.argsort(ctx.latents.astype(np.int32), kind="stable")
        rows, order = torch.from_numpy(ctx.rows[by_latent]), torch.from_numpy(by_latent)
        starts = _starts(ctx.latents[by_latent], len(w_dec))
        to_w_enc = _bags(rows, starts, z, to_codes[order]).T
        to_w_dec = _bags(rows, starts, grad.contiguous(), values[order]) if ctx.needs_input_grad[3] else None
        to_b_enc = torch.from_numpy(np.bincount(ctx.latents, to_codes.numpy(), minlength=len(w_dec))).to(grad.dtype)
        to_b_dec = grad.sum(0)
        if ctx.centred:
            # The sum over rows of the gradient of z, without the gradient of z.
            to_b_dec -= w_enc @ to_b_enc
        return None, to_w_enc, to_b_enc, to_w_dec, to_b_dec, None, None, None


def _starts(sorted_numbers: np.ndarray, n: int) -> Tensor:
    """Where the run of each number begins in a sorted array."""
    return torch.from_numpy(np.searchsorted(sorted_numbers, np.arange(n)))


def _bags(index: Tensor, starts: Tensor, table: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows of a table, one sum per run."""
    return embedding_bag(index, table, starts, mode="sum", per_sample_weights=weights)


class _Sparse:
    """The training step that TopK and BatchTopK share."""

    cfg: Any
    W_enc: Any
    W_dec: Any
    b_enc: Any
    b_dec: Any

    def choose(self, ranked: Float[Tensor, "n d_sae"]) -> Int[Tensor, " active"]:
        """Flat positions of the active latents, in order."""
        raise NotImplementedError

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        x = step_input.sae_in
        with torch.no_grad():
            hidden = torch.addmm(self.b_enc, x - self.b_dec, self.W_enc)
            ranked = hidden * self.W_dec.norm(dim=-1)
            chosen = self.choose(ranked)
            firing = torch.bincount(chosen % ranked.shape[1], minlength=ranked.shape[1])
            kept = ranked.new_zeros(ranked.numel()).index_fill(0, chosen, 1).view_as(ranked)
        # The norms of the decoder rank latents, but cancel in the reconstruction: activations are multiplied by them,
        # the decoder is divided.
        weights = Weights(self.W_enc, self.b_enc, self.W_dec, self.b_dec)
        rebuilt, _ = reconstruct(x, weights, hidden, chosen, centred=True)
        losses = {"mse_loss": (rebuilt - x).pow(2).sum(-1).mean()}
        dead = step_input.dead_neuron_mask
        if dead is not None and bool(dead.any()):
            losses["auxiliary_reconstruction_loss"] = self._dead_loss(x, rebuilt.detach(), dead)
        return TrainStepOutput(
            sae_in=x,
            sae_out=rebuilt,
            feature_acts=ranked * kept,
            hidden_pre=ranked,
            loss=sum(losses.values(), x.new_zeros(())),
            losses=losses,
            metrics={"firing": firing},
        )

    def _dead_loss(self, x: Tensor, rebuilt: Tensor, dead: Tensor) -> Tensor:
        """sae-lens' auxiliary loss (Gao et al. 2024, appendix A.2), over the dead columns alone.

        Dead latents reconstruct the error of the live ones.
        """
        columns = dead.nonzero()[:, 0]
        most = max(1, x.shape[1] // 2)
        decoder = self.W_dec[columns]
        hidden = (x - self.b_dec) @ self.W_enc[:, columns] + self.b_enc[columns]
        if len(columns) > most:
            ranked = (hidden * decoder.norm(dim=-1)).detach()
            kept = torch.zeros_like(hidden).scatter_(-1, ranked.topk(most, sorted=False).indices, 1.0)
            hidden = hidden * kept
        missed = (hidden @ decoder - (x - rebuilt)).pow(2).sum(-1).mean()
        return self.cfg.aux_loss_coefficient * min(len(columns) / most, 1.0) * missed


class TopK(_Sparse, TopKTrainingSAE):
    """sae-lens' TopK: each row keeps its k largest activations."""

    def choose(self, ranked: Float[Tensor, "n d_sae"]) -> Int[Tensor, " active"]:
        return largest_of_rows(ranked, self.cfg.k)


class BatchTopK(_Sparse, BatchTopKTrainingSAE):
    """sae-lens' BatchTopK: the batch keeps its k x rows largest activations.

    The running estimate of the threshold is left out: the threshold is set on the rows after training.
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        _in_float32(self)

    def choose(self, ranked: Float[Tensor, "n d_sae"]) -> Int[Tensor, " active"]:
        return largest_of_batch(ranked, int(self.cfg.k * len(ranked)))


class LargestOfBatch(torch.nn.Module):
    """sae-lens' BatchTopK activation: all but the `k` x rows largest values of the batch are set to zero."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        positions = largest_of_batch(x.detach(), int(self.k * len(x)))
        return x * x.new_zeros(x.numel()).index_fill(0, positions, 1).view_as(x)


class Matryoshka(MatryoshkaBatchTopKTrainingSAE):
    """sae-lens' Matryoshka BatchTopK with the faster selection, and without the running estimate of the threshold."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        _in_float32(self)

    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        return LargestOfBatch(self.cfg.k)

    def update_topk_threshold(self, acts_topk: Any) -> None:
        """Nothing: the threshold is set on the rows after training."""


def _in_float32(sae: Any) -> None:
    """Keep the threshold in float32, as it is saved: sae-lens' float64 does not exist on mps."""
    sae.topk_threshold = sae.topk_threshold.float()
