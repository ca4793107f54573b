"""Dictionaries trained by sae-lens on rows that are already on disk, one or several in a pass."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Num
from tqdm import tqdm

from layerprobe.errors import StudyError
from layerprobe.sae import _checkpoint
from layerprobe.sae._dictionary import Dictionary, load
from layerprobe.sae._recipe import Recipe, recipe
from layerprobe.sae._rows import measure
from layerprobe.sae._trainer import Trainer, started

CHECKPOINT_SECONDS = 30.0


def train(
    rows: Num[np.ndarray, "n d"],
    folder: str | Path,
    *,
    architecture: str = "topk",
    expansion: float | None = None,
    k: int | None = None,
    samples: int | None = None,
    batch_size: int = 1024,
    learning_rate: float | None = None,
    seed: int = 0,
    order_seed: int | None = None,
    start: Dictionary | None = None,
    frozen_decoder: bool = False,
    progress: bool = True,
    description: str = "training a sparse autoencoder",
) -> Dictionary:
    """Train a sparse autoencoder and save it in sae-lens' own format, with its training log beside it.

    Rows are read in shuffled order, scaled to a mean norm of sqrt(d) while training; the scale is folded into the saved
    weights, which take raw rows. The decoder's bias starts at the rows' mean: from zero, a large mean leaves most
    latents dead. In the BatchTopK family the saved threshold is set so that k latents are active on average on
    training rows; the running estimate that sae-lens keeps lags behind in short runs.

    Every half minute the state of training is written to `training.safetensors` in the folder. Called again with the
    same rows and options, an interrupted training goes on from there and ends with the same weights as one that was
    never interrupted; with others it starts anew. The file is removed at the end.

    Args:
        rows: activations, rows x features; may be memory-mapped. At least as many as latents.
        folder: gets `cfg.json`, `sae_weights.safetensors` and `history.parquet` (step, loss, explained_variance, l0,
            dead_share, measured on the training batch).
        architecture: as sae-lens names it.
        expansion: latents for each feature of a row. By default four, or as many as leave two rows for
            each latent. On 13,000 rows four explained .745 of held-out variance, two .727, one .701; on 3,000 rows, two
            a latent, four were still ahead of two (.657, .646).
        k: active latents a row, in the TopK family. By default one for each twelve features: 32 of 384.
        samples: rows to train on, repeats counted. By default four passes, more for few rows: up to 32 passes, to reach
            200 batches. On 13,000 rows 4 passes explained .679, 8 .724, 16 (203 batches) and 32 .745; on 3,000 rows 32
            .657, 128 .614; on 60,000 rows 4 .781, 8 .795 at twice the time.
        batch_size: rows in a step; never more than there are rows.
        learning_rate: Adam's peak rate, warmed up over 5% of the steps and lowered to zero over the last 20%. By
            default 3e-3 at 1,536 latents and in proportion to (1536 / latents)^(1/3) elsewhere, at most 1e-2. At 384
            latents 3e-3 explained .726, 5e-3 .735, 1e-2 .732; at 1,536 1e-3 .749, 2e-3 .774, 3e-3 .781, 5e-3 .777; at
            3,072 1e-3 .766, 2e-3 .790, 3e-3 .793 (60,000 token rows of MiniLM's last layer on tweets, k = 32).
        seed: of the weights, and of the order of rows if that has none of its own.
        order_seed: of the order of rows.
        start: a dictionary of the same kind and sizes whose weights training goes on from, instead of random ones.
        frozen_decoder: leave the decoder's directions as they start, and train the rest: with random directions, a
            control that shows how much is explained without learning any (.35 where training them gives .78).
        progress: whether to draw a progress bar on stderr.
        description: the bar's title.

    Raises:
        StudyError: if the rows are too few, k, the width or the start do not fit, or training diverges.
    """
    made = recipe(
        rows.shape,
        architecture=architecture,
        expansion=expansion,
        k=k,
        samples=samples,
        batch_size=batch_size,
        learning_rate=learning_rate,
        start=start,
        frozen_decoder=frozen_decoder,
    )
    order_seed = seed if order_seed is None else order_seed
    return _run([_Job(made, rows, Path(folder), seed, order_seed, start)], progress, description)[0]


def train_many(
    rows: Mapping[str, Num[np.ndarray, "n d"]],
    folders: Mapping[str, str | Path],
    *,
    architecture: str = "topk",
    expansion: float | None = None,
    k: int | None = None,
    samples: int | None = None,
    batch_size: int = 1024,
    learning_rate: float | None = None,
    seed: int = 0,
    order_seed: int | None = None,
    start: Mapping[str, Dictionary] | None = None,
    frozen_decoder: bool = False,
    progress: bool = True,
    description: str = "training sparse autoencoders",
) -> dict[str, Dictionary]:
    """Train dictionaries of several layers or sides in one pass over their rows, a step of each in turn.

    Each ends with the same weights as `train` gives alone, since nothing is shared but the time; rows of equal number
    are read in the same order. sae-lens' MultiSAETrainer does the same with plain trainers, which have no history,
    cannot resume without a pickle and draw their own bar, so its steps are driven here.

    One pass is for rows that are read together. On a CPU it is not quicker than one by one (`benchmarks/sae.py`
    measures both) and holds all dictionaries and their optimizers in memory.

    Args:
        rows: activations by name.
        folders: one for each name.
        start: a dictionary to start from, for the names that have one.
        **others: as in `train`, for all alike; what depends on rows or width is decided for each.

    Raises:
        StudyError: as `train`, or if rows, folders and starts have different names.
    """
    strange = sorted(set(rows) ^ set(folders)) or sorted(set(start or {}) - set(rows))
    if strange or not rows:
        raise StudyError(
            f"train_many was given rows named {', '.join(map(repr, rows)) or 'nothing'} and folders named "
            f"{', '.join(map(repr, folders)) or 'nothing'}; give one folder for each, and starts only for these"
            + (f" ({strange[0]!r} is alone)." if strange else ".")
        )
    jobs = []
    for name, own in rows.items():
        begin = (start or {}).get(name)
        made = recipe(
            own.shape,
            architecture=architecture,
            expansion=expansion,
            k=k,
            samples=samples,
            batch_size=batch_size,
            learning_rate=learning_rate,
            start=begin,
            frozen_decoder=frozen_decoder,
        )
        jobs.append(_Job(made, own, Path(folders[name]), seed, seed if order_seed is None else order_seed, begin))
    return dict(zip(rows, _run(jobs, progress, description), strict=True))


class _Job:
    """One dictionary to be trained, and where it goes."""

    def __init__(
        self, made: Recipe, rows: np.ndarray, folder: Path, seed: int, order_seed: int, start: Dictionary | None
    ) -> None:
        scale = measure(rows)
        known = [sorted(asdict(made).items()), scale.fingerprint, seed, order_seed, _weights_digest(start)]
        self.key = hashlib.sha256(repr(known).encode()).hexdigest()
        self.folder = folder
        self.trainer = Trainer(made, started(made, scale, seed=seed, start=start), rows, scale, order_seed)
        _checkpoint.resume(self.trainer, folder, self.key)

    @property
    def steps_left(self) -> int:
        return self.trainer.recipe.steps - self.trainer.n_training_steps

    def keep(self) -> None:
        _checkpoint.save(self.trainer, self.folder, self.key)

    def finish(self) -> Dictionary:
        import pandas as pd

        self.trainer.save(self.folder)
        pd.DataFrame(self.trainer.history).to_parquet(self.folder / "history.parquet", index=False)
        (self.folder / _checkpoint.CHECKPOINT).unlink(missing_ok=True)
        # What is measured later is what was saved.
        return load(self.folder)


def _run(jobs: list[_Job], progress: bool, description: str) -> list[Dictionary]:
    total, left = sum(job.trainer.recipe.steps for job in jobs), sum(job.steps_left for job in jobs)
    kept = time.monotonic()
    with tqdm(
        total=total,
        initial=total - left,
        desc=description,
        unit="step",
        leave=False,
        disable=not progress,
        delay=1,
    ) as bar:
        for job in _turns(jobs):
            job.trainer.advance()
            bar.update()
            if job.trainer.history and job.trainer.history[-1]["step"] == job.trainer.n_training_steps - 1:
                last = job.trainer.history[-1]
                bar.set_postfix_str(
                    f"loss {last['loss']:.3g}, EV {last['explained_variance']:.2f}, L0 {last['l0']:.1f}, "
                    f"dead {last['dead_share']:.0%}",
                    refresh=False,
                )
            if time.monotonic() - kept >= CHECKPOINT_SECONDS:
                for other in jobs:
                    other.keep()
                kept = time.monotonic()
    return [job.finish() for job in jobs]


def _turns(jobs: list[_Job]) -> Iterator[_Job]:
    """A step of each in turn until all are done."""
    while waiting := [job for job in jobs if job.steps_left]:
        yield from waiting


def _weights_digest(start: Dictionary | None) -> str:
    if start is None:
        return ""
    digest = hashlib.sha256()
    for name, value in sorted(start.sae.state_dict().items()):
        digest.update(name.encode() + torch.as_tensor(value).contiguous().numpy().tobytes())
    return digest.hexdigest()
