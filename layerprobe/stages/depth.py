"""The stage that concludes how deep adaptation had to go, from what all methods answered on the same test texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.artifacts import write_json
from layerprobe.inputs import Inputs
from layerprobe.stages.files import Build, save
from layerprobe.task import Parents

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.adaptation import Method

CONCLUSION = "sufficiency.json"
"""The conclusion without its table, for the run's record."""
COSTS = ("flops", "seconds", "trainable_parameters", "drift")
"""What quality is set against, as far as it was measured."""
ASSUMED_DISAGREEMENT = 0.12
"""Share of answers in which exactly one of `head` and `full` is right: seen on 2,000 tweets, assumed where nothing was seen."""


@dataclass(frozen=True)
class Family:
    """The methods that are compared with each other.

    Attributes:
        reference: what the others are held against.
        others: the compared methods.
        left_out: method -> why.
    """

    reference: Method
    others: tuple[Method, ...]
    left_out: Mapping[str, str]


def family_of(methods: Sequence[Method], seeds: Callable[[Method], Sequence[int]]) -> Family | None:
    """Who is compared with whom, or None if there is nobody to compare.

    The reference is `full`, or in a study without it the deepest `top:k`: then "sufficient" means as good as that.
    """
    ranks = {method: rank for method in methods if (rank := method.reference_rank) is not None}
    reference = max(ranks, key=lambda method: ranks[method], default=None)
    if reference is None:
        return None
    others, left_out = [], {}
    for method in methods:
        if method.is_control:
            left_out[method.name] = "it is a control that learns no task"
        elif tuple(seeds(method)) != tuple(seeds(reference)):
            left_out[method.name] = f"it was not run with the seeds of {reference.name}"
        elif method != reference:
            others.append(method)
    return Family(reference, tuple(others), left_out) if others else None


def conclude(inputs: Inputs, family: Family, adapts: Sequence[str], similarities: Sequence[str]) -> Build:
    """Paired differences to the reference, the smallest sufficient depth, and which methods no other undercuts.

    Args:
        family: who is compared.
        adapts: tasks that hold the compared methods' predictions and costs, reference included.
        similarities: tasks that hold their drift.
    """

    def build(folder: Path, done: Parents) -> None:
        from layerprobe import sufficiency

        results = correct(_gather(done, adapts, "predictions"))
        reference, margin = family.reference.name, inputs.study.adaptation.margin
        n_layers = inputs.encoder.n_layers
        depths = {m.name: depth for m in family.others if (depth := m.depth(n_layers)) is not None}
        found = sufficiency.smallest_sufficient_depth(results, depths, reference=reference, margin=margin)
        save(folder, "differences", sufficiency.differences(results, reference=reference))
        save(folder, "seed_differences", sufficiency.seed_differences(results, reference=reference))
        save(folder, "sufficiency", found.table.assign(reference=reference, margin=margin))
        bought = prices(_gather(done, adapts, "adaptation"), _gather(done, similarities, "similarity"))
        costs = [cost for cost in COSTS if cost in bought.columns and bought[cost].notna().any()]
        if costs:
            save(folder, "pareto", sufficiency.pareto(bought, costs=costs))
        plain = ("reference", "margin", "alpha", "smallest", "undecided", "needed", "sentence", "n", "seeds")
        write_json(
            folder / CONCLUSION,
            {key: getattr(found, key) for key in plain}
            | {"conditional_on_seeds": found.conditional_on_seeds, "left_out": dict(family.left_out)},
        )

    return build


def power_note(family: Family, margin: float, texts: int) -> str:
    """How many test texts the conclusion would need, before anything is trained."""
    from layerprobe import sufficiency

    needed = sufficiency.required_examples(ASSUMED_DISAGREEMENT, margin)
    enough = "which data.test reaches" if texts >= needed else f"but data.test gives {texts:,}"
    return (
        f"To show that a method loses less than {margin:.3g} of {family.reference.name}'s accuracy (adaptation.margin) takes about "
        f"{needed:,} test texts, {enough}: for 80% power if there is no true difference, assuming that the two disagree "
        f"on {100 * ASSUMED_DISAGREEMENT:.0f}% of the texts, as head and full did on tweets; texts in proportion where they disagree less."
    )


def correct(predictions: pd.DataFrame) -> pd.DataFrame:
    """Predictions on the test texts as `method`, `seed`, `example_id`, `correct`."""
    rows = predictions
    if "split" in rows.columns:
        rows = rows[rows["split"] == "test"]
    return rows[["method", "seed", "example_id"]].assign(correct=rows["label"] == rows["predicted"])


def prices(adaptation: pd.DataFrame, similarity: pd.DataFrame) -> pd.DataFrame:
    """One row a method: accuracy on test and costs, averaged over seeds.

    `drift` is 1 less the debiased CKA of base and adapted (without it, the paired cosine), averaged over layers; it is
    left out if neither was measured.
    """
    after = adaptation[(adaptation["when"] == "after") & (adaptation["split"] == "test")]
    columns = ["accuracy", *(cost for cost in COSTS if cost in after.columns)]
    found = after.groupby("method", sort=False)[columns].mean().reset_index()
    unit = "token" if "token" in set(similarity.unit) else similarity.unit.iloc[0]
    rows = similarity[(similarity["rows"] == "all") & (similarity.unit == unit)]
    measure = next((name for name in ("cka", "paired_cosine") if name in set(rows.measure)), None)
    if measure is None:
        return found
    drift = 1 - rows[rows.measure == measure].groupby("method").value.mean()
    return found.assign(drift=found.method.map(drift))


def _gather(done: Parents, tasks: Sequence[str], name: str) -> pd.DataFrame:
    import pandas as pd

    frames: list[Any] = [pd.read_parquet(done[task].folder / "tables" / f"{name}.parquet") for task in tasks]
    return pd.concat(frames, ignore_index=True)
