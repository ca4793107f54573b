"""Gradient descent on a model's blocks with the transformers Trainer."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Collection
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from layerprobe.adaptation._frozen import Frozen
from layerprobe.adaptation._methods import Method
from layerprobe.adaptation._trained import frozen_in_eval
from layerprobe.encoder import Encoder, collate
from layerprobe.layers import resumed


class _Bar(ProgressCallback):
    """The Trainer's progress bar, with the loss beside it instead of printed below it."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


class _Keeper(TrainerCallback):
    """Calls back after certain steps."""

    def __init__(self, steps: Collection[int], keep: Callable[[int], None]) -> None:
        self.steps, self.keep = steps, keep

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            self.keep(state.global_step)


class _Trainer(Trainer):
    """The Trainer, with each batch's frozen layer set apart from what the model is called with."""

    frozen_batch: torch.Tensor

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        if "frozen" in inputs:
            self.frozen_batch = inputs.pop("frozen").to(self.args.device)
        return super().training_step(model, inputs, *args, **kwargs)


class _Texts(Dataset):
    def __init__(self, encodings: list[dict[str, list[int]]], labels: np.ndarray, texts: np.ndarray) -> None:
        self.rows = [{**encodings[i], "labels": int(labels[i]), "text": int(i)} for i in texts]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def train_blocks(
    model: nn.Module,
    encoder: Encoder,
    encodings: list[dict[str, list[int]]],
    labels: np.ndarray,
    texts: np.ndarray,
    *,
    method: Method,
    frozen: Frozen | None,
    seed: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    precision: str,
    device: str,
    progress: bool,
    checkpoints: int = 0,
    keep: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Train the parameters that require gradients, in place; what stands below them stays in eval mode throughout.

    AdamW (fused), linear decay without warm-up, gradients clipped at norm 1, batches of like length in seeded order.

    Args:
        model: a classifier.
        encoder: the pretrained encoder.
        encodings, labels: of all training texts.
        texts: numbers of those to train on.
        method: says below which layer all is frozen.
        frozen: that layer's values for all training texts: the blocks below it are then not computed. They are float32,
            so in bf16 the result differs from training without them by the rounding of the frozen part; in float32 it
            agrees to numerical tolerance.
        seed, epochs, batch_size, learning_rate, precision, device, progress: as `adapt` has them.
        checkpoints: how often, evenly spaced before the end, `keep` is called.
        keep: called with the number of steps done.

    Returns:
        The training log: step, epoch, loss, learning_rate, split.
    """

    def collated(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(encoder, rows, range(len(rows)))
        if frozen is not None:
            batch["frozen"] = frozen.batch([row["text"] for row in rows])
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}

    steps = epochs * -(-len(texts) // batch_size)
    with tempfile.TemporaryDirectory() as scratch, frozen_in_eval(model, encoder, method):
        trainer = _Trainer(
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
            train_dataset=_Texts(encodings, labels, texts),
            data_collator=collated,
        )
        trainer.remove_callback(PrinterCallback)
        if progress:
            trainer.remove_callback(ProgressCallback)
            trainer.add_callback(_Bar)
        if checkpoints and keep is not None:
            wanted = {steps * i // (checkpoints + 1) for i in range(1, checkpoints + 1)} - {0, steps}
            trainer.add_callback(_Keeper(wanted, keep))
        with nullcontext() if frozen is None else resumed(model, frozen.layer, lambda: trainer.frozen_batch):
            # The Trainer begins with a full garbage collection: a second spent on looking at imported modules.
            gc.freeze()
            try:
                trainer.train()
            finally:
                gc.unfreeze()
        # In bf16 the model's own forward stays wrapped in autocast; whoever measures it next expects float32.
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
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
