"""Answers of several methods on the same examples and seeds, joined by id or refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from layerprobe.errors import MeasureError

COLUMNS = ("method", "seed", "example_id", "correct")


@dataclass(frozen=True)
class Paired:
    """Correctness of every method beside the reference's, on the same examples and seeds.

    Attributes:
        methods: all but the reference, in the order in which they first came.
        correct: 1 where a method was right.
        truth: 1 where the reference was right.
    """

    reference: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    correct: Float[np.ndarray, "methods examples seeds"]
    truth: Float[np.ndarray, "examples seeds"]

    @property
    def n(self) -> int:
        """Number of examples."""
        return self.truth.shape[0]

    @property
    def gaps(self) -> Float[np.ndarray, "methods examples seeds"]:
        """1 where only the method was right, -1 where only the reference was, 0 where they agree."""
        return self.correct - self.truth


def correctness(predictions: pd.DataFrame) -> pd.DataFrame:
    """A run's `predictions` as the table that this package reads: method, seed, example_id, correct.

    Raises:
        MeasureError: naming the columns that are missing.
    """
    needed = ("method", "seed", "example_id", "label", "predicted")
    _need_columns(predictions, needed, "predictions")
    kept = predictions[["method", "seed", "example_id"]].copy()
    # As objects: two categorical columns with other categories cannot be compared.
    kept["correct"] = predictions["label"].astype(object) == predictions["predicted"].astype(object)
    return kept.reset_index(drop=True)


def paired(results: pd.DataFrame, reference: str) -> Paired:
    """Join the methods on example and seed.

    Raises:
        MeasureError: if a column is missing, an answer is neither right nor wrong or stands there twice, the reference
            is absent or alone, the methods differ in examples or seeds, or there are fewer than two examples.
    """
    _need_columns(results, COLUMNS, "results")
    names = [str(name) for name in results["method"].drop_duplicates()]
    if reference not in names:
        raise MeasureError(
            f"The reference {reference!r} is not among the methods, which are {', '.join(names) or 'none'}; "
            "name one of them as the reference."
        )
    if len(names) == 1:
        raise MeasureError(
            f"The results hold {reference!r} alone; a comparison needs at least one other method beside it."
        )
    correct = pd.to_numeric(results["correct"].astype(object), errors="coerce")
    if not correct.isin([0, 1]).all():
        odd = results["correct"][~correct.isin([0, 1])].iloc[0]
        raise MeasureError(f"The column correct holds {odd}; it takes true and false, or 1 and 0, and nothing missing.")
    table = results[["method", "seed", "example_id"]].assign(correct=correct.astype(float))
    twice = table.duplicated(["method", "seed", "example_id"])
    if twice.any():
        row = table[twice].iloc[0]
        raise MeasureError(
            f"The method {row.method!r} with seed {row.seed} answers example {row.example_id!r} twice; "
            "keep one answer of each method, seed and example."
        )
    wide = table.set_index(["example_id", "seed", "method"])["correct"].unstack("method")
    _need_same(table, names, reference, wide)
    wide = wide.astype(float)
    examples, seeds = wide.index.get_level_values(0).unique(), sorted(wide.index.get_level_values(1).unique())
    if len(examples) < 2:
        raise MeasureError("The methods share a single example; an interval needs at least two.")
    full = pd.MultiIndex.from_product([examples, seeds])
    cube = wide.reindex(full).to_numpy().reshape(len(examples), len(seeds), -1)
    column = {str(name): i for i, name in enumerate(wide.columns)}
    others = tuple(name for name in names if name != reference)
    return Paired(
        reference=reference,
        methods=others,
        seeds=tuple(int(seed) for seed in seeds),
        correct=np.stack([cube[:, :, column[name]] for name in others]),
        truth=cube[:, :, column[reference]],
    )


def _need_columns(table: pd.DataFrame, needed: tuple[str, ...], what: str) -> None:
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise MeasureError(
            f"The {what} lack the column{'s' * (len(missing) > 1)} {', '.join(missing)}; needed are {', '.join(needed)}."
        )


def _need_same(table: pd.DataFrame, names: list[str], reference: str, wide: pd.DataFrame) -> None:
    seeds = {str(name): set(rows["seed"]) for name, rows in table.groupby("method", observed=True)}
    for name in names:
        if seeds[name] != seeds[reference]:
            raise MeasureError(
                f"The method {name!r} has the seeds {_listed(seeds[name])} and {reference!r} has {_listed(seeds[reference])}; "
                "compare only methods that were run with the same seeds."
            )
    examples = wide.index.get_level_values(0).nunique()
    for name in names:
        lacking = wide[name].isna()
        if lacking.any():
            example, seed = lacking[lacking].index[0]
            raise MeasureError(
                f"The method {name!r} lacks {int(lacking.sum())} answers that others have, the first for example {example!r} "
                f"with seed {seed}; compare only methods that answered the same examples."
            )
    if len(wide) != examples * len(seeds[reference]):
        counts = wide.groupby(level=1).size()
        raise MeasureError(
            f"The seeds were judged on different examples (seed {counts.idxmin()} on {counts.min()} of {examples}); "
            "judge all seeds on the same examples."
        )


def _listed(seeds: set) -> str:
    return ", ".join(str(seed) for seed in sorted(seeds)) or "none"
