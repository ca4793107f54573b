"""Training that was interrupted, kept on disk so that it goes on where it stood."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from layerprobe.sae._trainer import Trainer

CHECKPOINT = "training.safetensors"
COUNTERS = ("n_training_steps", "n_training_samples", "n_frac_active_samples")
TRACKED = ("act_freq_scores", "n_forward_passes_since_fired")


def save(trainer: Trainer, folder: Path, key: str) -> None:
    """Weights, optimizer and counters as safetensors, with the rest as JSON in its header; replaced by rename."""
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
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{CHECKPOINT}.{os.getpid()}.partial"
    save_file({name: value.contiguous() for name, value in tensors.items()}, partial, {"state": json.dumps(state)})
    partial.replace(folder / CHECKPOINT)


def resume(trainer: Trainer, folder: Path, key: str) -> bool:
    """Bring a fresh trainer to where an interrupted one with the same key stood; False if there is none to go on from."""
    path = folder / CHECKPOINT
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            if state["key"] != key:
                return False
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception:
        # Cut short or damaged: training starts again and writes it anew.
        return False
    _restore(trainer, state, tensors)
    return True


@torch.no_grad()
def _restore(trainer: Trainer, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    for name, own in trainer.sae.state_dict().items():
        own.copy_(tensors[f"weights.{name}"])
    with warnings.catch_warnings():
        # torch warns of a schedule that moves before the optimizer; here it is moved to where it stood.
        warnings.simplefilter("ignore")
        for _ in range(state["n_training_steps"]):
            trainer.lr_scheduler.step()
    for number, parameter in enumerate(trainer.parameters):
        prefix = f"adam.{number}."
        trainer.optimizer.state[parameter] = {
            name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
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
