"""Gradient descent on a model's blocks with the transformers Trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from layerprobe.encoder import Encoder, collate


class _Bar(ProgressCallback):
    """The Trainer's progress bar, with the loss beside it instead of printed below it."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


class _Texts(Dataset):
    def __init__(self, encodings: list[dict[str, list[int]]], labels: np.ndarray) -> None:
        self.rows = [{**e, "labels": int(label)} for e, label in zip(encodings, labels, strict=True)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def train_blocks(
    model: nn.Module,
    encoder: Encoder,
    encodings: list[dict[str, list[int]]],
    labels: np.ndarray,
    *,
    seed: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    precision: str,
    device: str,
    progress: bool,
) -> list[dict[str, Any]]:
    """Train the parameters that require gradients, in place; frozen modules stay in eval mode throughout.

    AdamW (fused), linear decay without warm-up, gradients clipped at norm 1, batches of like length in seeded order.

    Returns:
        The training log: step, epoch, loss, learning_rate, split.
    """

    def collated(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(encoder, rows, range(len(rows)))
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}

    steps = epochs * -(-len(labels) // batch_size)
    with tempfile.TemporaryDirectory() as scratch, _frozen_in_eval(model):
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                num_train_epochs=epochs,
                per_device_train_batch_size=batch_size,
                learning_rate=learning_rate,
                train_sampling_strategy="group_by_length",
                bf16=precision == "bf16",
                use_cpu=device == "cpu",
                optim="adamw_torch_fused",
                seed=seed,
                data_seed=seed,
                logging_steps=max(1, steps // 50),
                save_strategy="no",
                report_to="none",
                disable_tqdm=not progress,
                dataloader_pin_memory=device == "cuda",
                remove_unused_columns=False,
            ),
            train_dataset=_Texts(encodings, labels),
            data_collator=collated,
        )
        trainer.remove_callback(PrinterCallback)
        if progress:
            trainer.remove_callback(ProgressCallback)
            trainer.add_callback(_Bar)
        trainer.train()
    return [
        {
            "step": int(entry["step"]),
            "epoch": float(entry["epoch"]),
            "loss": float(entry["loss"]),
            "learning_rate": float(entry["learning_rate"]),
            "split": "train",
        }
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


@contextmanager
def _frozen_in_eval(model: nn.Module) -> Iterator[None]:
    """Keep modules whose every parameter is frozen in eval mode, although the Trainer calls `train()` on the whole.

    Dropout in a frozen block would make its output differ from the pretrained one's in every step.
    """
    frozen = [
        module
        for module in model.modules()
        if (own := list(module.parameters())) and not any(parameter.requires_grad for parameter in own)
    ]
    for module in frozen:
        module.eval()
        setattr(module, "train", partial(_stay, module))  # noqa: B010
    try:
        yield
    finally:
        for module in frozen:
            del module.train


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """`train()` of a frozen block: it stays in eval mode."""
    return module
