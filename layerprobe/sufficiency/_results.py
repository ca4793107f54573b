"""Predictions of several methods on the same examples and seeds, joined by id or refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from layerprobe.errors import MeasureError


@dataclass(frozen=True)
class Paired:
    """Correctness of every method and of the reference, on the same examples and seeds.

    Attributes:
        methods: all but the reference, in order of their first row.
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

    @property
    def disagreement(self) -> Float[np.ndarray, " methods"]:
        """Share of predictions in which exactly one of method and reference was right."""
        return np.abs(self.gaps).mean(axis=(1, 2))


def correctness(predictions: pd.DataFrame) -> pd.DataFrame:
    """The `predictions` of a run on the test examples, as columns method, seed, example_id, correct.

    Raises:
        MeasureError: naming the columns that are missing.
    """
    _need_columns(predictions, ("method", "seed", "example_id", "label", "predicted"), "predictions")
    rows = predictions[predictions["split"] == "test"] if "split" in predictions.columns else predictions
    # As objects: two categorical columns with different categories cannot be compared.
    correct = rows["label"].astype(object) == rows["predicted"].astype(object)
    return rows[["method", "seed", "example_id"]].assign(correct=correct).reset_index(drop=True)


def paired(results: pd.DataFrame, reference: str) -> Paired:
    """Join the methods on example and seed.

    Raises:
        MeasureError: if a column is missing, a value is neither right nor wrong or is repeated, the reference is absent or
            the only method, a method lacks an example or seed, or there are fewer than two examples.
    """
    _need_columns(results, ("method", "seed", "example_id", "correct"), "results")
    names = [str(name) for name in results["method"].drop_duplicates()]
    if reference not in names:
        raise MeasureError(
            f"{{reference}} is {reference!r}, which is not among the methods: {', '.join(names) or 'none'}.",
            "reference",
        )
    if len(names) == 1:
        raise MeasureError(f"{{results}} has only {reference!r}; a comparison needs another method.", "results")
    correct = pd.to_numeric(results["correct"].astype(object), errors="coerce")
    invalid = ~correct.isin([0, 1])
    if invalid.any():
        raise MeasureError(
            f"The column correct of {{results}} has {results['correct'][invalid].iloc[0]}; it takes true and false, or 1 "
            "and 0, without missing values.",
            "results",
        )
    table = results[["method", "seed", "example_id"]].assign(correct=correct.astype(float))
    repeated = table[table.duplicated(["method", "seed", "example_id"])]
    if len(repeated):
        row = repeated.iloc[0]
        raise MeasureError(
            f"{{results}} has the method {row.method!r} with seed {row.seed} on example {row.example_id!r} twice; "
            "keep one row for each method, seed and example.",
            "results",
        )
    wide = table.set_index(["example_id", "seed", "method"])["correct"].unstack("method")
    examples, seeds = wide.index.get_level_values(0).unique(), sorted(wide.index.get_level_values(1).unique())
    if len(examples) < 2:
        raise MeasureError("{results} has a single example; an interval needs at least two.", "results")
    wide = wide.reindex(pd.MultiIndex.from_product([examples, seeds])).astype(float)
    for name in names:
        missing = wide.index[wide[name].isna()]
        if len(missing):
            raise MeasureError(
                f"The method {name!r} lacks {len(missing)} of {len(wide)} predictions, the first for example "
                f"{missing[0][0]!r} with seed {missing[0][1]}; {{results}} needs every method on every example and seed.",
                "results",
            )
    cubes = {str(name): wide[name].to_numpy().reshape(len(examples), len(seeds)) for name in wide.columns}
    methods = tuple(name for name in names if name != reference)
    return Paired(
        reference=reference,
        methods=methods,
        seeds=tuple(int(seed) for seed in seeds),
        correct=np.stack([cubes[name] for name in methods]),
        truth=cubes[reference],
    )


def _need_columns(table: pd.DataFrame, needed: tuple[str, ...], argument: str) -> None:
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise MeasureError(f"{{{argument}}} lacks {', '.join(missing)}; it needs {', '.join(needed)}.", argument)
