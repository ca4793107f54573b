"""Training steps that compute with the active latents only.

With 32 of 1,536 latents active, 98% of the products in sae-lens' decoder and in the gradients of both matrices are with
zeros. On a CPU, the encoder alone stays dense here, and the rest are sums and products over active latents; on other
devices all products are dense. Losses and gradients equal sae-lens' up to rounding (`benchmarks/sae.py` compares their
speed, and that of the products alone), and dictionaries are saved in its format.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE
from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopKTrainingSAE
from torch import Tensor
from torch.nn.functional import embedding_bag, mse_loss

from layerprobe.sae._selection import largest_of_batch, largest_of_rows

LEAST_NORM = 1e-12
"""Of a decoder row, where it divides."""


class Weights(NamedTuple):
    """Weights of a dictionary under training."""

    w_enc: Float[Tensor, "d d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    w_dec: Float[Tensor, "d_sae d"]
    b_dec: Float[Tensor, " d"]


@dataclass(frozen=True)
class Chosen:
    """The latents that a step computes with, selected without gradients."""

    scores: Float[Tensor, "n d_sae"]
    """Pre-activations times norms."""
    norms: Float[Tensor, " d_sae"]
    """What multiplies each latent's pre-activation to rank it; above zero."""
    active: Int[Tensor, " active"]
    """Flat positions in (row, latent), in order."""
    dead: Int[Tensor, " dead"] | None = None
    """Latents that are to be revived; None if there are none."""
    kept: Float[Tensor, "n dead"] | None = None
    """1 where a dead latent takes part in reconstructing what the active ones leave, 0 elsewhere."""

    @property
    def latents(self) -> Int[Tensor, " active"]:
        """Latent of each active position."""
        return self.active % self.scores.shape[1]

    @property
    def dead_hidden(self) -> Float[Tensor, "n dead"]:
        """Pre-activations of the dead latents."""
        assert self.dead is not None
        return self.scores.index_select(1, self.dead) / self.norms[self.dead]


class Rebuilt(NamedTuple):
    """What `reconstruct` computes, with gradients of the weights."""

    levels: Float[Tensor, "n levels d"]
    """Rows rebuilt from the active latents below each width."""
    values: Float[Tensor, " active"]
    """Pre-activations of the active latents."""
    revived: Float[Tensor, "n d"] | None
    """Rows rebuilt from the dead latents that take part, without the bias; None if there are none."""


def scores(z: Float[Tensor, "n d"], weights: Weights, norms: Float[Tensor, " d_sae"]) -> Float[Tensor, "n d_sae"]:
    """Pre-activations of all latents times norms, which are multiplied into the weights: those are fewer numbers."""
    return torch.addmm(weights.b_enc * norms, z, weights.w_enc * norms)


def by_latent(w_enc: Float[Tensor, "d d_sae"]) -> Float[Tensor, "d d_sae"]:
    """The same matrix, stored latent by latent, as its gradient is computed: otherwise each step would copy that."""
    return w_enc.T.contiguous().T


def reconstruct(
    x: Float[Tensor, "n d"], weights: Weights, chosen: Chosen, *, centred: bool, widths: Sequence[int] = ()
) -> Rebuilt:
    """Rows rebuilt from active latents, and from dead ones where some are to be revived.

    Args:
        x: rows.
        weights: of the dictionary.
        chosen: which latents, and their pre-activations.
        centred: whether the decoder's bias is subtracted from the rows before the encoder.
        widths: numbers of latents, in ascending order, whose first ones rebuild the rows by themselves. Default: all.
    """
    widths = tuple(widths) or (len(weights.b_enc),)
    if x.device.type == "cpu":
        with torch.no_grad():
            z = x - weights.b_dec if centred else x
        return Rebuilt(*_Reconstruct.apply(z, *weights, chosen, widths, centred))
    z = x - weights.b_dec if centred else x
    hidden = torch.addmm(weights.b_enc, z, weights.w_enc)
    values = hidden.reshape(-1)[chosen.active]
    codes = values.new_zeros(hidden.numel()).index_put((chosen.active,), values).view_as(hidden)
    parts = [codes[:, low:high] @ weights.w_dec[low:high] for low, high in pairwise((0, *widths))]
    levels = torch.stack(parts, dim=1).cumsum(1) + weights.b_dec
    revived = None
    if chosen.dead is not None and chosen.kept is not None:
        revived = (hidden[:, chosen.dead] * chosen.kept) @ weights.w_dec[chosen.dead]
    return Rebuilt(levels, values, revived)


class _Reconstruct(torch.autograd.Function):
    """`reconstruct` on a CPU. numpy gathers and sorts few of many several times faster than torch does there."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        w_enc, _, w_dec, b_dec, chosen, widths, ctx.centred = arguments
        active, depth = chosen.active.numpy(), len(widths)
        rows, latents = np.divmod(active, chosen.scores.shape[1])
        # One sum per row and level: it is over the latents from the width before.
        sums = rows if depth == 1 else rows * depth + np.searchsorted(widths, latents, side="right")
        starts = np.searchsorted(sums, np.arange(len(z) * depth + 1))
        values = chosen.scores.numpy().reshape(-1)[active] / chosen.norms.numpy()[latents]
        values = torch.from_numpy(values)
        levels = _bags(torch.from_numpy(latents), torch.from_numpy(starts[:-1]), w_dec.detach(), values)
        levels = levels.view(len(z), depth, -1)
        levels[:, 0] += b_dec
        for level in range(1, depth):
            levels[:, level] += levels[:, level - 1]
        codes = revived = None
        if chosen.dead is not None:
            codes = chosen.dead_hidden * chosen.kept
            revived = codes @ w_dec[chosen.dead]
        ctx.save_for_backward(z, w_enc, w_dec, values, codes)
        ctx.set_materialize_grads(False)
        ctx.chosen, ctx.rows, ctx.latents, ctx.sums, ctx.starts = chosen, rows, latents, sums, starts
        return levels, values, revived

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        to_levels, to_values, to_revived = grads
        z, w_enc, w_dec, values, codes = ctx.saved_tensors
        assert to_levels is not None
        # What a level sums is also in all wider ones.
        to_sums = to_levels.clone(memory_format=torch.contiguous_format)
        for level in range(to_sums.shape[1] - 2, -1, -1):
            to_sums[:, level] += to_sums[:, level + 1]
        to_b_dec = to_sums[:, 0].sum(0)
        to_sums = to_sums.view(-1, to_levels.shape[2])
        to_codes = _products(to_sums, w_dec, ctx.starts, ctx.latents)
        if to_values is not None:
            to_codes += to_values
        # 16-bit integers are sorted by radix.
        by_latent = np.argsort(ctx.latents.astype(np.min_scalar_type(len(w_dec))), kind="stable")
        starts = torch.from_numpy(np.searchsorted(ctx.latents[by_latent], np.arange(len(w_dec))))
        rows, sums, order = (torch.from_numpy(part) for part in (ctx.rows[by_latent], ctx.sums[by_latent], by_latent))
        to_w_enc = _bags(rows, starts, z, to_codes[order])
        to_w_dec = _bags(sums, starts, to_sums, values[order])
        to_b_enc = torch.from_numpy(np.bincount(ctx.latents, to_codes.numpy(), minlength=len(w_dec))).to(z.dtype)
        if to_revived is not None:
            dead = ctx.chosen.dead
            to_dead = (to_revived @ w_dec[dead].T) * ctx.chosen.kept
            to_w_enc.index_add_(0, dead, to_dead.T @ z)
            to_w_dec.index_add_(0, dead, codes.T @ to_revived)
            to_b_enc.index_add_(0, dead, to_dead.sum(0))
        if ctx.centred:
            # The sum over rows of the gradient of z, without the gradient of z.
            to_b_dec -= w_enc @ to_b_enc
        return None, to_w_enc.T, to_b_enc, to_w_dec, to_b_dec, None, None, None


def _bags(index: Tensor, starts: Tensor, table: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows of a table, one sum per run."""
    return embedding_bag(index, table, starts, mode="sum", per_sample_weights=weights)


def _products(rows: Tensor, columns: Tensor, starts: np.ndarray, chosen: np.ndarray) -> Tensor:
    """Inner products of each row with the chosen ones of another matrix; each run has those of one row."""
    with warnings.catch_warnings():
        # torch says once that its compressed rows are in beta.
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        pattern = torch.sparse_csr_tensor(
            torch.from_numpy(starts),
            torch.from_numpy(chosen),
            rows.new_zeros(len(chosen)),
            (len(rows), len(columns)),
            check_invariants=False,
        )
    return torch.sparse.sampled_addmm(pattern, rows, columns.T, beta=0).values()


class _Sparse:
    """The training step that the TopK family shares."""

    cfg: Any
    W_enc: Any
    W_dec: Any
    b_enc: Any
    b_dec: Any
    widths: Sequence[int] = ()

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)  # type: ignore[call-arg]
        self.W_enc.data = by_latent(self.W_enc.data)

    def choose(self, ranked: Float[Tensor, "n d_sae"]) -> Int[Tensor, " active"]:
        """Flat positions of the active latents, in order."""
        raise NotImplementedError

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """sae-lens' output, but with activations as a sparse tensor."""
        x = step_input.sae_in
        # The norms of the decoder rank latents, but cancel in the reconstruction: activations are multiplied by them,
        # the decoder is divided.
        weights = Weights(self.W_enc, self.b_enc, self.W_dec, self.b_dec)
        with torch.no_grad():
            chosen = self._chosen(x, weights, step_input.dead_neuron_mask)
            rows, latents = chosen.active // len(chosen.norms), chosen.latents
            firing = torch.bincount(latents, minlength=len(chosen.norms))
        rebuilt = reconstruct(x, weights, chosen, centred=True, widths=self.widths)
        levels = rebuilt.levels.unbind(1)
        names = [*(f"inner_mse_loss_{width}" for width in self.widths[:-1]), "mse_loss"]
        losses = {name: mse_loss(level, x, reduction="sum") / len(x) for name, level in zip(names, levels, strict=True)}
        out, total = levels[-1], sum(losses.values(), x.new_zeros(()))
        if rebuilt.revived is not None:
            assert chosen.dead is not None
            # sae-lens' auxiliary loss (Gao et al. 2024, appendix A.2): dead latents reconstruct the error of live ones.
            missed = mse_loss(rebuilt.revived, x - out.detach(), reduction="sum") / len(x)
            share = min(len(chosen.dead) / max(1, x.shape[1] // 2), 1.0)
            losses["auxiliary_reconstruction_loss"] = self.cfg.aux_loss_coefficient * share * missed
            total = total + losses["auxiliary_reconstruction_loss"]
        active = chosen.scores.reshape(-1)[chosen.active]
        return TrainStepOutput(
            sae_in=x,
            sae_out=out,
            feature_acts=torch.sparse_coo_tensor(
                torch.stack([rows, latents]), active, chosen.scores.shape, check_invariants=False, is_coalesced=True
            ),
            hidden_pre=chosen.scores,
            loss=total,
            losses=losses,
            metrics={"firing": firing},
        )

    def _chosen(self, x: Tensor, weights: Weights, dead: Tensor | None) -> Chosen:
        norms = weights.w_dec.norm(dim=-1).clamp_min(LEAST_NORM)
        ranked = scores(x - weights.b_dec, weights, norms)
        active = self.choose(ranked)
        if dead is None or not bool(dead.any()):
            return Chosen(ranked, norms, active)
        columns, most = dead.nonzero()[:, 0], max(1, x.shape[1] // 2)
        kept = ranked.new_ones(len(x), len(columns))
        if len(columns) > most:
            top = ranked.index_select(1, columns).topk(most, sorted=False).indices
            kept = torch.zeros_like(kept).scatter_(1, top, 1.0)
        return Chosen(ranked, norms, active, columns, kept)


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
        # As it is saved: sae-lens' float64 does not exist on mps.
        threshold: Tensor = self.topk_threshold  # type: ignore[has-type]
        self.topk_threshold = threshold.float()

    def choose(self, ranked: Float[Tensor, "n d_sae"]) -> Int[Tensor, " active"]:
        return largest_of_batch(ranked, int(self.cfg.k * len(ranked)))


class Matryoshka(BatchTopK, MatryoshkaBatchTopKTrainingSAE):
    """sae-lens' Matryoshka BatchTopK: the first latents of each width also rebuild the rows by themselves."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.widths = cfg.matryoshka_widths
