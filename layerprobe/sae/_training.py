"""Training of sparse autoencoders by sae-lens on rows that are on disk."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Num
from safetensors import safe_open
from safetensors.torch import save_file

from layerprobe.errors import ArgumentError
from layerprobe.files import is_intact, remove_checked, write_checked
from layerprobe.progress import track
from layerprobe.sae._config import SaeConfig, plan
from layerprobe.sae._dictionary import Dictionary, load
from layerprobe.sae._rows import measure
from layerprobe.sae._trainer import Trainer, finish, initialise

CHECKPOINT = "training.safetensors"
CHECKPOINT_SECONDS = 30.0
COUNTERS = ("n_training_steps", "n_training_samples", "n_frac_active_samples")
TRACKED = ("act_freq_scores", "n_forward_passes_since_fired")


def train(
    rows: Num[np.ndarray, "n d"],
    folder: str | Path,
    config: SaeConfig = SaeConfig(),  # noqa: B008, it is frozen
    *,
    start: Dictionary | None = None,
    device: str = "cpu",
) -> Dictionary:
    """Train a sparse autoencoder and save it in sae-lens' format, with its training log.

    Rows are read in shuffled order and scaled to a mean norm of sqrt(d); the scale is folded into the saved weights,
    which take unscaled rows. The decoder's bias starts at the mean of the rows: from zero, a large mean leaves most
    latents dead. In the BatchTopK family the saved threshold is set so that k latents per training row are active on
    average.

    Every half minute the state of training is written to `training.safetensors` in the folder. Called again with the
    same rows, configuration and start, an interrupted training resumes and ends with the same weights as one that was
    not interrupted; with others, or if the file does not match its checksum, it starts again. The file is removed at the end.

    Args:
        rows: activations, rows x features; may be memory-mapped. At least as many as latents.
        folder: receives `cfg.json`, `sae_weights.safetensors` and `history.parquet` (step, loss, explained_variance,
            l0, dead_share, measured on the training batch).
        config: architecture, sizes, schedule and seeds.
        start: a dictionary of the same architecture and sizes whose weights training starts from.
        device: where to train; the returned dictionary computes there too.

    Raises:
        ArgumentError: if there are too few rows, sizes or the start do not fit, or training diverges.
    """
    import pandas as pd

    folder = Path(folder)
    sizes = plan(config, rows.shape, start)
    scale = measure(rows)
    trainer = Trainer(sizes, initialise(sizes, scale, start, device), rows, scale)
    key = hashlib.sha256(repr([sizes, scale.fingerprint, _weights_digest(start)]).encode()).hexdigest()
    _resume(trainer, folder / CHECKPOINT, key)
    _run(trainer, folder / CHECKPOINT, key)
    trainer.save(folder)
    pd.DataFrame(trainer.history).to_parquet(folder / "history.parquet", index=False)
    remove_checked(folder / CHECKPOINT)
    # What was saved is what is measured later.
    return load(folder, device=device)


def untrained(dictionary: Dictionary, rows: Num[np.ndarray, "n d"], config: SaeConfig) -> Dictionary:
    """A control: a dictionary of the same kind before training, with random directions about the mean of the rows.

    Other controls are trained: with `frozen_decoder`, `least_cosine` or `frozen_encoder`, or with another `seed`.

    Args:
        dictionary: a trained dictionary; gives the sizes and the device.
        rows: those that it was trained on; give the mean, the scale and the threshold.
        config: the configuration that it was trained with.

    Raises:
        ArgumentError: if the rows have another width.
    """
    if rows.ndim != 2 or rows.shape[1] != dictionary.d_in:
        raise ArgumentError(
            f"{{rows}} has shape {rows.shape}, but the dictionary takes rows of {dictionary.d_in} features.", "rows"
        )
    plain = replace(config, frozen_decoder=False, frozen_encoder=False, least_cosine=None)
    sizes = plan(plain, rows.shape, dictionary)
    scale = measure(rows)
    with tempfile.TemporaryDirectory() as folder:
        finish(initialise(sizes, scale, device=str(dictionary.device)), sizes, rows, scale.factor, Path(folder))
        return load(folder, device=str(dictionary.device))


def _run(trainer: Trainer, checkpoint: Path, key: str) -> None:
    saved = time.monotonic()
    first, steps = trainer.n_training_steps, trainer.plan.steps
    for _ in track(range(first, steps), "training a sparse autoencoder"):
        trainer.advance()
        if time.monotonic() - saved >= CHECKPOINT_SECONDS:
            _save_state(trainer, checkpoint, key)
            saved = time.monotonic()


def _save_state(trainer: Trainer, path: Path, key: str) -> None:
    """Weights, optimizer and counters as safetensors, with the rest as JSON in the header."""
    tensors = {f"weights.{name}": value for name, value in trainer.sae.state_dict().items()}
    for number, parameter in enumerate(trainer.parameters):
        for name, value in trainer.optimizer.state[parameter].items():
            tensors[f"adam.{number}.{name}"] = value
    tensors |= {name: getattr(trainer, name) for name in TRACKED}
    state = {
        "key": key,
        "history": trainer.history,
        "coefficients": {name: s.state_dict() for name, s in trainer.coefficient_schedulers.items()},
        **{name: getattr(trainer, name) for name in COUNTERS},
    }
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checked(path, lambda temporary: save_file(tensors, temporary, {"state": json.dumps(state)}))


def _resume(trainer: Trainer, path: Path, key: str) -> None:
    """Restore a fresh trainer to the state of an interrupted one with the same key, if there is one."""
    if not is_intact(path):
        # Missing or damaged: training starts again and replaces it.
        return
    with safe_open(path, framework="pt", device=str(trainer.sae.device)) as file:
        state = json.loads(file.metadata()["state"])
        if state["key"] != key:
            return
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    _restore(trainer, state, tensors)


@torch.no_grad()
def _restore(trainer: Trainer, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    for name, value in trainer.sae.state_dict().items():
        value.copy_(tensors[f"weights.{name}"])
    with warnings.catch_warnings():
        # torch warns of a schedule that moves before the optimizer does; here it returns to where it was.
        warnings.simplefilter("ignore")
        for _ in range(state["n_training_steps"]):
            trainer.lr_scheduler.step()
    for number, parameter in enumerate(trainer.parameters):
        prefix = f"adam.{number}."
        moments = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        # The fused Adam reads moments in the order in which the parameter is stored.
        trainer.optimizer.state[parameter] = {
            name: torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
            for name, value in moments.items()
        }
    for name in TRACKED:
        setattr(trainer, name, tensors[name])
    for name in COUNTERS:
        setattr(trainer, name, state[name])
    for name, value in state["coefficients"].items():
        trainer.coefficient_schedulers[name].load_state_dict(value)
    trainer.history = state["history"]
    for _ in range(trainer.n_training_steps):
        next(trainer.order)


def _weights_digest(start: Dictionary | None) -> str:
    if start is None:
        return ""
    digest = hashlib.sha256()
    for name, value in sorted(start.sae.state_dict().items()):
        digest.update(name.encode() + torch.as_tensor(value).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
