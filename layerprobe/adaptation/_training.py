"""Gradient descent on the blocks of a model with the transformers Trainer."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from layerprobe.adaptation._ranks import Ranks, SharedBatches, SharedExamples
from layerprobe.adaptation._trained import frozen_in_eval
from layerprobe.device import float32_matmul, in_float64
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
    return torch.stack([in_float64(tensor).norm() for tensor in tensors]).norm()


class _Apart(TrainerCallback):
    """Lets the processes of one training draw different dropout masks."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.ranks.index:
            torch.manual_seed(args.seed + self.ranks.index)


class _Trainer(Trainer):
    """The Trainer, with the frozen values of each batch kept apart from the model's inputs, on one device or several.

    On several, each process computes its part of the batches of one process (the Trainer's own way would give each process
    batches of its own, and weigh the last ones wrongly).
    """

    frozen_batch: torch.Tensor
    ranks = Ranks()

    def get_train_dataloader(self) -> DataLoader:
        if self.ranks.count == 1:
            return super().get_train_dataloader()
        rows: Any = self.train_dataset
        batch_size = self.args.train_batch_size * self.ranks.count
        order = LengthGroupedSampler(batch_size, lengths=[len(row["input_ids"]) for row in rows])
        return DataLoader(
            SharedExamples(rows, self.data_collator, self.ranks),
            sampler=SharedBatches(order, batch_size, self.ranks),
            batch_size=None,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if self.ranks.count == 1:
            return super().compute_loss(model, inputs, *args, **kwargs)
        weight = inputs.pop("weight")
        return model(**inputs).loss * weight

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

    Where a launcher started several processes, each computes its part of every batch; with dropout off, weights and losses
    are those of one process up to rounding.

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
    ranks = Ranks.join(config.device)
    ranks.check_batch(config.batch_size)
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
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size // ranks.count,
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
            average_tokens_across_devices=ranks.count == 1,
            # Every trained parameter is used in every step.
            ddp_find_unused_parameters=False if ranks.count > 1 else None,
        )
        # On a machine with several GPUs the Trainer would use all of them, with as many times the batch size.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        trainer = _Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collated)
        trainer.ranks = ranks
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Reporter)
        trainer.add_callback(_Apart(ranks))
        if config.checkpoints and keep is not None:
            kept = {steps * i // (config.checkpoints + 1) for i in range(1, config.checkpoints + 1)} - {0, steps}
            trainer.add_callback(_Keeper(kept, keep))
        if groups := training.method.step_groups(model, encoder):
            trainer.add_callback(_EqualSteps([[model.get_parameter(name) for name in group] for group in groups]))
        tf32 = config.resolved_precision == "tf32"
        with ExitStack() as stack:
            stack.enter_context(float32_matmul(tf32=tf32))
            if frozen is not None:
                stack.enter_context(resumed(model, frozen.layer, lambda: trainer.frozen_batch))
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
