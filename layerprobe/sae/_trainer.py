"""One dictionary on its way: started, stepped and saved; sae-lens' trainer without its logging."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.optim import get_lr_scheduler
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from layerprobe.errors import StudyError
from layerprobe.sae._dictionary import Dictionary
from layerprobe.sae._recipe import ONE_THRESHOLD, Recipe
from layerprobe.sae._rows import Scale, order, spread
from layerprobe.sae._selection import nth_largest

LOGGED_STEPS = 200


class Trainer(SAETrainer[Any, Any]):
    """sae-lens' trainer with a history of its own and a fused optimizer, stepped from outside.

    What it computes is sae-lens' own: its forward pass, losses, clipping, schedules and count of silent steps.
    """

    def __init__(self, recipe: Recipe, sae: Any, rows: np.ndarray, scale: Scale, order_seed: int) -> None:
        self.order = order(len(rows), recipe.batch_size, order_seed)
        self.rows, self.recipe = rows, recipe
        super().__init__(cfg=recipe.settings(), sae=sae, data_provider=self._batches())
        if recipe.frozen_decoder:
            sae.W_dec.requires_grad_(False)
        self.parameters = [p for p in sae.parameters() if p.requires_grad]
        # The same Adam, seven times as quick on a CPU.
        self.optimizer = torch.optim.Adam(self.parameters, lr=recipe.learning_rate, fused=True)
        self.lr_scheduler = get_lr_scheduler(
            self.cfg.lr_scheduler_name,
            lr=self.cfg.lr,
            optimizer=self.optimizer,
            warm_up_steps=self.cfg.lr_warm_up_steps,
            decay_steps=self.cfg.lr_decay_steps,
            training_steps=recipe.steps,
            lr_end=recipe.learning_rate / 10,
            num_cycles=1,
        )
        self.activation_scaler.scaling_factor = scale.factor
        self.history: list[dict[str, float]] = []
        self.every = max(1, recipe.steps // LOGGED_STEPS)
        self.sae.train()

    def _batches(self) -> Iterator[Tensor]:
        for chosen in self.order:
            yield torch.from_numpy(np.asarray(self.rows[chosen], dtype=np.float32))

    def advance(self) -> None:
        """One step on the next batch."""
        batch = next(self.data_provider)
        self.n_training_samples += len(batch)
        output = self.sae.training_forward_pass(
            TrainStepInput(
                sae_in=self.activation_scaler(batch),
                dead_neuron_mask=self.dead_neurons,
                coefficients=self.get_coefficients(),
                n_training_steps=self.n_training_steps,
                is_logging_step=False,
            )
        )
        with torch.no_grad():
            firing = output.metrics.get("firing")
            if firing is None:
                firing = (output.feature_acts > 0).sum(0)
            self.n_forward_passes_since_fired += 1
            self.n_forward_passes_since_fired[firing > 0] = 0
            self.act_freq_scores += firing
            self.n_frac_active_samples += len(batch)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_scheduler.step()
        for scheduler in self.coefficient_schedulers.values():
            scheduler.step()
        if self.n_training_steps % self.every == 0:
            self.history.append(self._logged(output, firing))
        self.n_training_steps += 1

    @torch.no_grad()
    def _logged(self, output: Any, firing: Tensor) -> dict[str, float]:
        x = output.sae_in
        missed, spread_ = (output.sae_out - x).pow(2).sum(), (x - x.mean(0)).pow(2).sum()
        loss = output.loss.item()
        if not np.isfinite(loss):
            raise StudyError(
                f"Training a sparse autoencoder diverged at step {self.n_training_steps} (the loss is {loss}); look for "
                f"rows that are not finite, or lower the learning rate from {self.recipe.learning_rate:.3g}."
            )
        return {
            "step": self.n_training_steps,
            "loss": loss,
            "explained_variance": (1 - missed / spread_).item(),
            "l0": firing.sum().item() / len(x),
            "dead_share": self.dead_neurons.float().mean().item(),
        }

    def save(self, folder: Path) -> None:
        """Fold the rows' scale into the weights, set the threshold, and write what sae-lens reads."""
        if not all(bool(p.isfinite().all()) for p in self.sae.parameters()):
            raise StudyError(
                f"Training a sparse autoencoder diverged; lower the learning rate from {self.recipe.learning_rate:.3g}."
            )
        self.set_final_sae_metadata()
        finish(self.sae, self.recipe, self.rows, self.activation_scaler.scaling_factor or 1.0, folder)


def started(recipe: Recipe, scale: Scale, *, seed: int, start: Dictionary | None = None) -> Any:
    """A dictionary before its first step: random directions about the rows' mean, or another one's weights."""
    with seeded(seed):
        sae = recipe.build()
    with torch.no_grad():
        if start is None:
            sae.b_dec.copy_(scale.mean * scale.factor)
            if recipe.frozen_decoder:
                # sae-lens starts rows of norm 0.1, which would have to grow; frozen ones cannot.
                sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
                sae.W_enc.copy_(sae.W_dec.T)
        else:
            _copy(sae, start, recipe, scale.factor)
    return sae


def _copy(sae: Any, start: Dictionary, recipe: Recipe, factor: float) -> None:
    """Undo what saving folded, so that the first step's reconstruction is the start's own.

    Saved weights take raw rows, and in the TopK family their decoder rows have norm 1. How the norm is shared between
    encoder and decoder changes nothing there but the speed of either; each pair gets equal norms, which is what
    gradient descent from a tied start tends to keep.
    """
    for name, value in start.sae.state_dict().items():
        own = getattr(sae, name, None)
        if own is not None and own.shape == value.shape:
            own.data.copy_(value)
    sae.b_dec.data *= factor
    if not hasattr(sae.cfg, "rescale_acts_by_decoder_norm"):
        sae.W_enc.data /= factor
        sae.W_dec.data *= factor
        return
    norm = sae.W_enc.data.norm(dim=0).clamp_min(1e-8).sqrt()
    sae.W_enc.data /= norm
    sae.b_enc.data *= factor / norm
    sae.W_dec.data *= norm[:, None]


def finish(sae: Any, recipe: Recipe, rows: np.ndarray, factor: float, folder: Path) -> None:
    """Fold, calibrate and save."""
    sae.fold_activation_norm_scaling_factor(factor)
    if recipe.architecture in ONE_THRESHOLD:
        _calibrate(sae, rows, recipe.k)
    sae.save_inference_model(folder)


@torch.no_grad()
def _calibrate(sae: Any, rows: np.ndarray, k: int) -> None:
    """Set the one threshold of a BatchTopK dictionary so that k latents are active on average."""
    sample = spread(rows)
    hidden = torch.addmm(sae.b_enc, sample - sae.b_dec, sae.W_enc) * sae.W_dec.norm(dim=-1)
    flat = hidden.relu().reshape(-1).numpy()
    # As saved, the decoder's norms are folded into the encoder, so the threshold is in the units ranked here. What is
    # active lies strictly above it.
    value = nth_largest(flat, k * len(sample) + 1) if k * len(sample) < flat.size else 0.0
    sae.topk_threshold = torch.tensor(value, dtype=sae.topk_threshold.dtype)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch for a while, and leave its state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
