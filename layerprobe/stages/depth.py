"""The stage that finds the smallest sufficient depth from the predictions of all methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from layerprobe.adaptation import Method
from layerprobe.context import Context
from layerprobe.files import write_json
from layerprobe.stage import Json, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import save
from layerprobe.stages.adapt import Adapt
from layerprobe.stages.reference import LOGISTIC, Reference
from layerprobe.stages.similarity import Similarity
from layerprobe.store import Artifact, ArtifactMeta

CONCLUSION = "sufficiency.json"
"""The conclusion without its table, for the run's record."""
COSTS = ("flops", "seconds", "trainable_parameters", "drift")
"""Costs that quality is compared with, as far as they were measured."""
ASSUMED_DISAGREEMENT = 0.12
"""Share of examples on which exactly one of `head` and `full` is right, as measured on 2,000 tweets."""
ASSUMED_SEED_SD = 0.01
"""Standard deviation over seeds of the difference in accuracy between two methods: an assumption for plans, one point. It
differs widely between data sets: two seeds of `full` on 2,000 tweets reached .765 and .726 on 2,000 others."""
LABELS = {
    "reference:logistic-mean": "logistic regression on the mean over tokens of the frozen model",
    "reference:logistic-cls": "logistic regression on the first token of the frozen model",
}
"""Classifiers of the frozen model in words; they are compared like methods."""


@dataclass(frozen=True)
class Family:
    """The methods that are compared with each other. Classifiers of the frozen model's vectors (`LOGISTIC`) join them."""

    reference: Method
    """The method that the others are compared with."""
    others: tuple[Method, ...]
    left_out: tuple[tuple[str, str], ...]
    """Names of methods that are not compared, and why."""


def family_of(shape: StudyShape) -> Family | None:
    """The methods of a study that can be compared, or None if there is no reference.

    The reference is `full`, or in a study without it the deepest `top:k`; "sufficient" then means as good as that.
    """
    candidates = [method for method in shape.methods if method.reference_rank is not None]
    reference = max(candidates, key=lambda method: method.reference_rank or 0.0, default=None)
    if reference is None:
        return None
    others, left_out = [], []
    for method in shape.methods:
        if method.is_control:
            left_out.append((method.name, "it is a control that learns no task"))
        elif shape.seeds(method) != shape.seeds(reference):
            left_out.append((method.name, f"it was not run with the seeds of {reference.name}"))
        elif method != reference:
            others.append(method)
    return Family(reference, tuple(others), tuple(left_out))


DIFFERENCES = TableSpec(
    "differences",
    "Accuracy of each method minus that of the reference on the same test examples: one row per method.",
    columns(
        "method",
        "n",
        reference="the method that others are compared with",
        accuracy="accuracy on the test examples, averaged over seeds",
        reference_accuracy="accuracy of the reference",
        difference="accuracy minus reference accuracy, -1 to 1",
        ci_low="lower end of its 95% interval",
        ci_high="upper end of its 95% interval",
        band_low="lower end of the 95% interval that holds for all methods at once",
        band_high="upper end of the 95% interval that holds for all methods at once",
        se="standard error of the difference",
        df="degrees of freedom of its t distribution, the number of seeds minus 1; missing where it is the normal one",
        disagreement="share of predictions in which exactly one of the two is right",
        seeds="number of seeds",
        conditional_on_seeds="whether the intervals hold for these seeds only",
        identical="whether both are right on exactly the same examples",
    ),
)
SEED_DIFFERENCES = TableSpec(
    "seed_differences",
    "The same differences for each seed: one row per method and seed.",
    columns(
        "method",
        "seed",
        "n",
        reference="the method that others are compared with",
        accuracy="accuracy on the test examples",
        reference_accuracy="accuracy of the reference with this seed",
        difference="accuracy minus reference accuracy",
        disagreement="share of examples on which exactly one of the two is right",
    ),
)
SUFFICIENCY = TableSpec(
    "sufficiency",
    "Test of each method for non-inferiority to the reference: one row per method.",
    columns(
        "method",
        "n",
        reference="the method that others are compared with",
        margin="largest loss of accuracy that counts as none",
        depth="number of top blocks that the method trains; missing outside the fixed sequence",
        order="place in the sequence of tests, from 1; missing outside it",
        family="`sequence` (deepest first, up to the first failure) or `holm` (methods without a depth)",
        outcome="`sufficient`, `inferior`, `undecided`, `undecidable` (with these seeds) or `not tested`",
        difference="accuracy minus reference accuracy",
        lower="one-sided lower bound of the difference at the level of the test",
        upper="upper bound of the difference, simultaneous over all methods",
        p="p value of the test",
        p_adjusted="p value adjusted within its family",
        disagreement="share of predictions in which exactly one of the two is right",
        needed="test examples that would decide with 80% power if there is no difference",
        needed_at_observed="test examples that would decide with 80% power if the difference is the observed one",
        seed_error="critical value x standard error over seeds; missing if the test is conditional on seeds",
        validation_accuracy="accuracy on held-out training examples, averaged over seeds; missing if nothing was tuned",
    ),
)
PARETO = TableSpec(
    "pareto",
    "Accuracy against cost: one row per cost and method.",
    columns(
        "method",
        cost="`flops`, `seconds`, `trainable_parameters`, or `drift` (1 minus similarity, averaged over layers)",
        value="the cost, averaged over seeds",
        quality="accuracy on the test examples, averaged over seeds",
        efficient="whether no other method is at least as good in both and better in one; missing if unknown",
        dominated_by="the most accurate method that dominates it; empty if none does",
    ),
)


@dataclass(frozen=True)
class Depth(Stage):
    """Paired differences to the reference, the smallest sufficient depth, and the methods on the Pareto front.

    Depths are tested from the deepest to the shallowest. At depth 0 are all models without a trained block, in the order of
    their accuracy on held-out training examples.
    """

    family: Family
    runs: tuple[tuple[Method, int], ...]
    """The compared methods, reference included, with their seeds."""

    name: ClassVar = "depth"
    version: ClassVar = 4
    tables: ClassVar = (DIFFERENCES, SEED_DIFFERENCES, SUFFICIENCY, PARETO)
    on_cpu: ClassVar = "tests on predictions"

    @property
    def title(self) -> str:
        return f"every method against {self.family.reference.name}"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        family = family_of(shape)
        if family is not None:
            compared = (family.reference, *family.others)
            yield cls(family, tuple((method, seed) for method, seed in shape.runs if method in compared))

    def parents(self) -> Mapping[str, Stage]:
        tasks = [stage(method, seed) for stage in (Adapt, Similarity) for method, seed in self.runs]
        return {task.id: task for task in (*tasks, Reference())}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return {"margin": study.study.adaptation.margin, "left_out": dict(self.family.left_out)}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        from layerprobe import sufficiency

        def gather(stage: type[Adapt] | type[Similarity], table: str) -> pd.DataFrame:
            return pd.concat([parents[stage(*run).id].table(table) for run in self.runs], ignore_index=True)

        linear, adaptation = parents[Reference().id], gather(Adapt, "adaptation")
        predictions = pd.concat([gather(Adapt, "predictions"), linear.table("predictions")], ignore_index=True)
        results = sufficiency.correctness(predictions)
        reference, margin = self.family.reference.name, context.study.adaptation.margin
        n_layers = context.resolved.n_layers
        depths = {method.name: depth for method in self.family.others if (depth := method.depth(n_layers)) is not None}
        tuned = pd.concat([adaptation, linear.table("adaptation")], ignore_index=True)
        tuned = tuned[(tuned["when"] == "after") & (tuned["split"] == "test")]
        unchanged = [name for name, depth in depths.items() if depth == 0]
        frozen = sufficiency.by_validation(tuned, [*unchanged, *LOGISTIC])
        depths = {name: depth for name, depth in depths.items() if depth} | dict.fromkeys(frozen, 0)
        result = sufficiency.smallest_sufficient_depth(results, depths, reference=reference, margin=margin)
        save(folder, "differences", sufficiency.differences(results, reference=reference))
        save(folder, "seed_differences", sufficiency.seed_differences(results, reference=reference))
        validation = (
            tuned.reindex(columns=["method", "validation_accuracy"]).groupby("method")["validation_accuracy"].mean()
        )
        validation = result.table["method"].map(validation).astype(float)
        table = result.table.assign(reference=reference, margin=margin, validation_accuracy=validation)
        save(folder, "sufficiency", table)
        cost_table = costs_by_method(adaptation, gather(Similarity, "similarity"))
        costs = [cost for cost in COSTS if cost in cost_table.columns and cost_table[cost].notna().any()]
        if costs:
            save(folder, "pareto", sufficiency.pareto(cost_table, costs=costs))
        plain = (
            "reference",
            "margin",
            "alpha",
            "smallest",
            "undecided",
            "needed",
            "n",
            "seeds",
            "conditional_on_seeds",
        )
        conclusion = {key: getattr(result, key) for key in (*plain, "critical_value", "df")}
        words = {"sentence": result.in_words(LABELS), "order": list(result.order), "frozen": frozen[0]}
        write_json(folder / CONCLUSION, conclusion | words | {"left_out": dict(self.family.left_out)})


def power_note(family: Family, margin: float, examples: int, seeds: int) -> str:
    """How many test examples and seeds the conclusion about depth would need, before anything is trained."""
    from layerprobe import sufficiency

    needed = sufficiency.required_examples(ASSUMED_DISAGREEMENT, margin)
    enough = "which data.test reaches" if examples >= needed else f"but data.test gives {examples:,}"
    takes = {
        n: sufficiency.required_seeds(ASSUMED_SEED_SD, ASSUMED_DISAGREEMENT, margin, n)
        for n in (examples, max(examples, 2 * needed))
    }
    enough_seeds = " or ".join(f"{m} seeds on {n:,} test examples" for n, m in takes.items() if m)
    covered = (
        f"the study has {seeds}"
        if seeds >= sufficiency.FEWEST_SEEDS
        else f"with the {seeds} of this study, the conclusion does not cover another training run"
    )
    return (
        f"To show that a method loses less than {margin:.3g} of {family.reference.name}'s accuracy (adaptation.margin) "
        f"takes about {needed:,} test examples, {enough}: for 80% power if there is no true difference, assuming that the "
        f"two disagree on {100 * ASSUMED_DISAGREEMENT:.0f}% of the examples, as head and full did on tweets; fewer "
        "in proportion where they disagree less. To cover other training runs, too, it takes "
        f"{enough_seeds or 'more seeds and test examples'}, assuming that the difference varies between seeds with a "
        f"standard deviation of {ASSUMED_SEED_SD:.3g}; {covered}."
    )


def costs_by_method(adaptation: Any, similarity: Any) -> Any:
    """One row per method: accuracy on test and costs, averaged over seeds.

    `drift` is 1 minus the debiased CKA of base and adapted (else minus the paired cosine), averaged over layers; it is
    missing if neither was measured.
    """
    after = adaptation[(adaptation["when"] == "after") & (adaptation["split"] == "test")]
    names = ["accuracy", *(cost for cost in COSTS if cost in after.columns)]
    table = after.groupby("method", sort=False)[names].mean().reset_index()
    unit = "token" if "token" in set(similarity.unit) else similarity.unit.iloc[0]
    rows = similarity[(similarity["rows"] == "all") & (similarity.unit == unit)]
    measure = next((name for name in ("cka", "paired_cosine") if name in set(rows.measure)), None)
    if measure is None:
        return table
    drift = 1 - rows[rows.measure == measure].groupby("method").value.mean()
    return table.assign(drift=table.method.map(drift))
