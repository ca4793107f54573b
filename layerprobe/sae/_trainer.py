"""Training steps of one dictionary by sae-lens' trainer, without its logging; its start and its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from layerprobe.errors import ArgumentError
from layerprobe.sae._config import Plan
from layerprobe.sae._dictionary import Dictionary
from layerprobe.sae._rows import Scale, evenly_spaced, order, read
from layerprobe.sae._selection import nth_largest
from layerprobe.sae._staging import batches

LOGGED_STEPS = 200
ENCODER = ("W_enc", "b_enc", "b_gate", "b_mag", "r_mag")
"""Names of the encoder's parameters in sae-lens' architectures."""


def trainer_settings(plan: Plan, device: str = "cpu") -> SAETrainerConfig:
    """The schedule, as sae-lens configures it."""
    return SAETrainerConfig(
        total_training_samples=plan.steps * plan.batch_size,
        train_batch_size_samples=plan.batch_size,
        device=device,
        lr=plan.learning_rate,
        # Unused by the constant schedule, but its default is an assertion error.
        lr_end=plan.learning_rate / 10,
        lr_warm_up_steps=plan.steps // 20,
        lr_decay_steps=plan.steps // 5,
        dead_feature_window=max(10, min(1000, plan.steps // 5)),
        feature_sampling_window=max(1, min(2000, plan.steps)),
    )


class Trainer(SAETrainer[Any, Any]):
    """sae-lens' trainer with a history and a fused optimizer; the caller makes the steps.

    Forward pass, losses, clipping, schedules and the count of steps since a latent was active are sae-lens'.
    """

    def __init__(self, plan: Plan, sae: Any, rows: np.ndarray, scale: Scale) -> None:
        self.rows, self.plan = rows, plan
        self.order = order(len(rows), plan.batch_size, plan.order_seed)
        super().__init__(trainer_settings(plan, str(sae.device)), sae, self._batches())
        if plan.frozen_decoder:
            sae.W_dec.requires_grad_(False)
        if plan.frozen_encoder:
            for name, parameter in sae.named_parameters():
                parameter.requires_grad_(name not in ENCODER)
        self.initial_directions = unit_rows(sae.W_dec.detach())
        self.parameters = [p for p in sae.parameters() if p.requires_grad]
        # The same Adam, seven times as fast on a CPU.
        self.optimizer.param_groups[0]["fused"] = True
        self.activation_scaler.scaling_factor = scale.factor
        self.history: list[dict[str, float]] = []
        self.log_interval = max(1, plan.steps // LOGGED_STEPS)
        self.sae.train()

    def _batches(self) -> Iterator[Tensor]:
        yield from batches(self.rows, self.order, self.sae.device)

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
        if self.plan.least_cosine is not None:
            hold_directions(self.sae.W_dec.data, self.initial_directions, self.plan.least_cosine)
        self.optimizer.zero_grad()
        self.lr_scheduler.step()
        for scheduler in self.coefficient_schedulers.values():
            scheduler.step()
        if self.n_training_steps % self.log_interval == 0:
            self.history.append(self._logged(output, firing))
        self.n_training_steps += 1

    @torch.no_grad()
    def _logged(self, output: Any, firing: Tensor) -> dict[str, float]:
        x = output.sae_in
        errors, squares = (output.sae_out - x).pow(2).sum(), (x - x.mean(0)).pow(2).sum()
        loss = output.loss.item()
        if not np.isfinite(loss):
            raise _divergence(self.plan, f" at step {self.n_training_steps} (the loss is {loss})")
        return {
            "step": self.n_training_steps,
            "loss": loss,
            "explained_variance": (1 - errors / squares).item(),
            "l0": firing.sum().item() / len(x),
            "dead_share": self.dead_neurons.float().mean().item(),
        }

    def save(self, folder: Path) -> None:
        """Fold the scale of the rows into the weights, set the threshold, and save in sae-lens' format."""
        if not all(bool(p.isfinite().all()) for p in self.sae.parameters()):
            raise _divergence(self.plan)
        self.set_final_sae_metadata()
        finish(self.sae, self.plan, self.rows, self.activation_scaler.scaling_factor or 1.0, folder)


def unit_rows(rows: Float[Tensor, "latents d"]) -> Float[Tensor, "latents d"]:
    """Rows of norm 1."""
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-8)


def hold_directions(rows: Float[Tensor, "latents d"], start: Float[Tensor, "latents d"], least_cosine: float) -> None:
    """Turn rows back, in place, until their cosine with their start is at least this; their norms stay.

    Args:
        rows: to change.
        start: of norm 1.
        least_cosine: from -1 to 1.
    """
    norms, unit = rows.norm(dim=1, keepdim=True), unit_rows(rows)
    cosine = (unit * start).sum(1, keepdim=True)
    aside = unit_rows(unit - cosine * start)
    held = least_cosine * start + (1 - least_cosine**2) ** 0.5 * aside
    rows.copy_(torch.where(cosine < least_cosine, norms * held, rows))


def _divergence(plan: Plan, where: str = "") -> ArgumentError:
    return ArgumentError(
        f"Training of a sparse autoencoder diverged{where}; check {{rows}} for values that are not finite, or lower "
        f"{{learning_rate}} from {plan.learning_rate:.3g}.",
        *("rows", "learning_rate"),
    )


def initialise(plan: Plan, scale: Scale, start: Dictionary | None = None, device: str = "cpu") -> Any:
    """A training SAE before its first step: random directions about the mean of the rows, or the weights of a start."""
    # Drawn on the CPU, so that a seed gives the same weights on every device; torch's random state is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        sae = plan.architecture.build(d_in=plan.d_in, d_sae=plan.d_sae, k=plan.k, steps=plan.steps)
    with torch.no_grad():
        if start is not None:
            _copy(sae, start, scale.factor)
        else:
            sae.b_dec.copy_(scale.mean * scale.factor)
            if plan.frozen_decoder or plan.frozen_encoder:
                # sae-lens starts with rows of norm 0.1, which would have to grow; frozen ones cannot.
                sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
                sae.W_enc.copy_(sae.W_dec.T)
    return sae.to(device)


def _copy(sae: Any, start: Dictionary, factor: float) -> None:
    """Undo what saving folded, so that the first step's reconstruction equals the start's.

    Saved weights take unscaled rows, and in the TopK family their decoder rows have norm 1. How the norm is divided
    between encoder and decoder affects only how fast either is trained; each pair gets equal norms, which gradient
    descent from a tied start tends to keep.
    """
    for name, value in start.sae.state_dict().items():
        parameter = getattr(sae, name, None)
        if parameter is not None and parameter.shape == value.shape:
            parameter.data.copy_(value)
    sae.b_dec.data *= factor
    if not hasattr(sae.cfg, "rescale_acts_by_decoder_norm"):
        sae.W_enc.data /= factor
        sae.W_dec.data *= factor
        return
    norm = sae.W_enc.data.norm(dim=0).clamp_min(1e-8).sqrt()
    sae.W_enc.data /= norm
    sae.b_enc.data *= factor / norm
    sae.W_dec.data *= norm[:, None]


def finish(sae: Any, plan: Plan, rows: np.ndarray, factor: float, folder: Path) -> None:
    """Fold the scale of the rows into the weights, calibrate the threshold, and save."""
    sae.fold_activation_norm_scaling_factor(factor)
    if plan.architecture.recalibrated:
        _calibrate(sae, rows, plan.k)
    # A saved dictionary does not record where it was trained.
    sae.to("cpu")
    # During training the encoder may be stored latent by latent, which safetensors refuses.
    sae.W_enc.data = sae.W_enc.data.contiguous()
    sae.save_inference_model(folder)


@torch.no_grad()
def _calibrate(sae: Any, rows: np.ndarray, k: int) -> None:
    """Set the threshold so that k latents per row are active on average."""
    sample = torch.from_numpy(read(rows, evenly_spaced(len(rows)))).to(sae.device)
    hidden = torch.addmm(sae.b_enc, sample - sae.b_dec, sae.W_enc) * sae.W_dec.norm(dim=-1)
    # When the dictionary is saved, the decoder's norms are folded into the encoder, so the threshold is in the units of
    # these scores. A latent is active strictly above it.
    sae.topk_threshold = nth_largest(hidden.relu(), k * len(sample) + 1)
