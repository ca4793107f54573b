"""TopK and BatchTopK dictionaries that compute with their active latents only.

With 32 of 1,536 latents active, 98% of the products in sae-lens' decoder and in the gradients of both matrices are with
zeros. Here the encoder and one product of the gradient stay dense; the rest sums over active latents. Loss and
gradients are sae-lens' own up to rounding, and so is what is saved.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopKTrainingSAE
from torch import Tensor
from torch.nn.functional import embedding_bag

from layerprobe.sae._selection import largest_of_batch, largest_of_rows, only


class _Reconstruct(torch.autograd.Function):
    """Rows rebuilt from chosen latents: (z W_enc + b_enc at chosen positions) W_dec + b_dec, z = rows - b_dec.

    The decoder's norms rank latents but cancel in the reconstruction (activations are multiplied by them, the decoder
    divided), so they need no gradient. `chosen` holds flat positions in (row, latent), in order.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        w_enc: Tensor,
        b_enc: Tensor,
        w_dec: Tensor,
        b_dec: Tensor,
        hidden: Tensor,
        chosen: np.ndarray,
    ) -> Tensor:
        rows, latents = np.divmod(chosen, hidden.shape[1])
        at = torch.from_numpy(latents)
        # numpy gathers and scatters few of many several times as quickly as torch does on a CPU.
        codes = torch.from_numpy(hidden.numpy().reshape(-1)[chosen])
        ctx.save_for_backward(z, w_enc, w_dec, codes)
        ctx.chosen, ctx.rows, ctx.latents = chosen, rows, latents
        return _sums(at, _starts(rows, len(z)), w_dec, codes) + b_dec

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        z, w_enc, w_dec, codes = ctx.saved_tensors
        d_sae = len(w_dec)
        # Gradient of each active code. Gathering decoder rows one by one is slower than this one dense product.
        to_codes = torch.from_numpy((grad @ w_dec.T).numpy().reshape(-1)[ctx.chosen])
        by_latent = np.argsort(ctx.latents.astype(np.int32), kind="stable")
        rows = torch.from_numpy(ctx.rows[by_latent])
        starts = _starts(ctx.latents[by_latent], d_sae)
        order = torch.from_numpy(by_latent)
        to_enc = _sums(rows, starts, z, to_codes[order]).T
        to_dec = _sums(rows, starts, grad.contiguous(), codes[order]) if ctx.needs_input_grad[3] else None
        to_b_enc = torch.from_numpy(np.bincount(ctx.latents, to_codes.numpy(), minlength=d_sae)).to(grad.dtype)
        # The sum over rows of the gradient of z, without the gradient of z: only the decoder's bias needs it.
        to_b_dec = grad.sum(0) - w_enc @ to_b_enc
        return None, to_enc, to_b_enc, to_dec, to_b_dec, None, None


def _starts(sorted_numbers: np.ndarray, n: int) -> Tensor:
    """Where each number's run begins in a sorted array."""
    return torch.from_numpy(np.searchsorted(sorted_numbers, np.arange(n)))


def _sums(index: Tensor, starts: Tensor, table: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows of a table, one for each run."""
    return embedding_bag(index, table, starts, mode="sum", per_sample_weights=weights)


class _Sparse:
    """What the two share: one training step on active latents."""

    cfg: Any
    W_enc: Any
    W_dec: Any
    b_enc: Any
    b_dec: Any

    def choose(self, ranked: Float[np.ndarray, "n d_sae"]) -> np.ndarray:
        """Flat positions of the active latents, in order."""
        raise NotImplementedError

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        x = step_input.sae_in
        with torch.no_grad():
            z = x - self.b_dec
            hidden = torch.addmm(self.b_enc, z, self.W_enc)
            ranked = hidden * self.W_dec.norm(dim=-1)
            chosen = self.choose(ranked.numpy())
            firing = torch.from_numpy(np.bincount(chosen % ranked.shape[1], minlength=ranked.shape[1]))
        rebuilt = _Reconstruct.apply(z, self.W_enc, self.b_enc, self.W_dec, self.b_dec, hidden, chosen)
        error = (rebuilt - x).pow(2).sum(-1).mean()
        losses = {"mse_loss": error}
        dead = step_input.dead_neuron_mask
        if dead is not None and bool(dead.any()):
            losses["auxiliary_reconstruction_loss"] = self._dead_loss(x, rebuilt.detach(), dead)
        return TrainStepOutput(
            sae_in=x,
            sae_out=rebuilt,
            feature_acts=only(ranked, chosen),
            hidden_pre=ranked,
            loss=sum(losses.values(), torch.zeros(())),
            losses=losses,
            metrics={"firing": firing},
        )

    def _dead_loss(self, x: Tensor, rebuilt: Tensor, dead: Tensor) -> Tensor:
        """sae-lens' auxiliary loss (Gao et al. 2024, appendix A.2): dead latents rebuild what the live ones leave.

        As theirs, but over the dead columns alone.
        """
        columns = dead.nonzero()[:, 0]
        most = max(1, x.shape[1] // 2)
        decoder = self.W_dec[columns]
        # The decoder's norms rank; in the reconstruction they cancel.
        hidden = (x - self.b_dec) @ self.W_enc[:, columns] + self.b_enc[columns]
        if len(columns) > most:
            ranked = (hidden * decoder.norm(dim=-1)).detach()
            kept = torch.zeros_like(hidden).scatter_(-1, ranked.topk(most, sorted=False).indices, 1.0)
            hidden = hidden * kept
        missed = (hidden @ decoder - (x - rebuilt)).pow(2).sum(-1).mean()
        return self.cfg.aux_loss_coefficient * min(len(columns) / most, 1.0) * missed


class TopK(_Sparse, TopKTrainingSAE):
    """sae-lens' TopK: each row keeps its k largest activations."""

    def choose(self, ranked: Float[np.ndarray, "n d_sae"]) -> np.ndarray:
        return largest_of_rows(ranked, self.cfg.k)


class BatchTopK(_Sparse, BatchTopKTrainingSAE):
    """sae-lens' BatchTopK: the batch keeps its k x rows largest activations.

    The running estimate of the threshold is left out: it is set on the rows when training ends.
    """

    def choose(self, ranked: Float[np.ndarray, "n d_sae"]) -> np.ndarray:
        return largest_of_batch(ranked, int(self.cfg.k * len(ranked)))
