"""Gradient descent on the blocks of a model with the transformers Trainer."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from layerprobe.adaptation._trained import frozen_in_eval
from layerprobe.encoder import collate
from layerprobe.layers import resumed
from layerprobe.progress import report

if TYPE_CHECKING:
    from layerprobe.adaptation._fit import Training


class _Reporter(TrainerCallback):
    """Reports the progress of training."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        report("training", state.global_step, state.max_steps)


class _Keeper(TrainerCallback):
    """Calls `keep` after certain steps."""

    def __init__(self, steps: Collection[int], keep: Callable[[int], None]) -> None:
        self.steps, self.keep = steps, keep

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            self.keep(state.global_step)


class _EqualSteps(TrainerCallback):
    """Scales the steps of groups of parameters so that all have the same relative size."""

    def __init__(self, groups: Sequence[Sequence[nn.Parameter]]) -> None:
        self.groups = groups

    @torch.no_grad()
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before = [[parameter.clone() for parameter in group] for group in self.groups]

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        equalise_steps(self.groups, self.before)


@torch.no_grad()
def equalise_steps(groups: Sequence[Sequence[Tensor]], before: Sequence[Sequence[Tensor]]) -> None:
    """Scale the step of each group, in place, so that |dW| / |W| is the mean over groups of what it was.

    Norms are over all parameters of a group. A group without a step, or of zeros, is left as it is.

    Args:
        groups: parameters after a step.
        before: the same before it.
    """
    pairs = [list(zip(*pair, strict=True)) for pair in zip(groups, before, strict=True)]
    steps = [_norm([after - old for after, old in pair]) / _norm([old for _, old in pair]) for pair in pairs]
    moved = [float(step) for step in steps if 0 < step < torch.inf]
    for pair, step in zip(pairs, steps, strict=True):
        if 0 < step < torch.inf:
            scale = sum(moved) / len(moved) / float(step)
            for after, old in pair:
                after.copy_(old + (after - old) * scale)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.double().norm() for tensor in tensors]).norm()


class _Trainer(Trainer):
    """The Trainer, with the frozen values of each batch kept apart from the model's inputs."""

    frozen_batch: torch.Tensor

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        if "frozen" in inputs:
            self.frozen_batch = inputs.pop("frozen").to(self.args.device)
        return super().training_step(model, inputs, *args, **kwargs)


def train_blocks(
    training: Training,
    model: nn.Module,
    examples: np.ndarray,
    learning_rate: float,
    keep: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Train the parameters that require gradients, in place; everything below them is in eval mode throughout.

    AdamW (fused), linear decay without warm-up, gradients clipped at norm 1, batches of similar length in seeded order.
    If `training.frozen` holds the method's frozen layer, the blocks below it are not computed. Its values are float32, so
    in bf16 the result differs from training without them by the rounding of the frozen part; in float32 it agrees to
    numerical tolerance.

    Args:
        training: data, method and configuration.
        model: a classifier.
        examples: numbers of the examples to train on.
        learning_rate: peak rate.
        keep: called with the number of steps done at each of `config.checkpoints` points, evenly spaced before the end.

    Returns:
        The training log: step, epoch, loss, learning_rate, split.
    """
    encoder, config = training.encoder, training.config
    layer = training.method.frozen_layer(encoder.n_layers)
    frozen = training.frozen.get(layer) if layer else None

    def collated(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = collate(encoder, batch, range(len(batch)))
        if frozen is not None:
            inputs["frozen"] = frozen.batch([row["example"] for row in batch])
        return {**inputs, "labels": torch.tensor([row["labels"] for row in batch])}

    rows = [{**training.encodings[i], "labels": int(training.labels[i]), "example": int(i)} for i in examples]
    steps = config.epochs * -(-len(examples) // config.batch_size)
    with tempfile.TemporaryDirectory() as scratch, frozen_in_eval(model, layer):
        trainer = _Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                num_train_epochs=config.epochs,
                per_device_train_batch_size=config.batch_size,
                learning_rate=learning_rate,
                train_sampling_strategy="group_by_length",
                bf16=config.resolved_precision == "bf16",
                use_cpu=config.device == "cpu",
                optim="adamw_torch_fused",
                seed=training.seed,
                data_seed=training.seed,
                logging_steps=max(1, steps // 50),
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=config.device == "cuda",
                remove_unused_columns=False,
            ),
            train_dataset=rows,
            data_collator=collated,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Reporter)
        if config.checkpoints and keep is not None:
            kept = {steps * i // (config.checkpoints + 1) for i in range(1, config.checkpoints + 1)} - {0, steps}
            trainer.add_callback(_Keeper(kept, keep))
        if groups := training.method.step_groups(model, encoder):
            trainer.add_callback(_EqualSteps([[model.get_parameter(name) for name in group] for group in groups]))
        with nullcontext() if frozen is None else resumed(model, frozen.layer, lambda: trainer.frozen_batch):
            # The Trainer starts with a full garbage collection, which takes a second over the imported modules.
            gc.freeze()
            try:
                trainer.train()
            finally:
                gc.unfreeze()
        # In bf16 the model's own forward would remain wrapped in autocast; evaluation expects float32.
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    columns = ("step", "epoch", "loss", "learning_rate")
    return [
        {**{column: entry[column] for column in columns}, "split": "train"}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
