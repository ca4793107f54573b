"""The tables of a comparison: those of its runs in one, and paired differences between runs with the same test examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.costs import costs_by_method, timed_costs
from layerprobe.report.section import Tables
from layerprobe.sufficiency import differences as paired_differences

FULL = 1.12
"""Position of full fine-tuning on the axis of trained blocks: beyond all blocks, since it trains the embeddings, too."""


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison."""

    label: str
    """Name on the page, unique among the runs."""
    folder: str
    """Path of the run folder."""
    record: RunRecord
    """Its record, complete."""
    tables: Tables
    """Its tables by name."""

    @property
    def n_layers(self) -> int:
        """Number of blocks of its model."""
        assert self.record.encoder is not None  # as in every complete run
        return self.record.encoder.n_layers

    @property
    def methods(self) -> list[str]:
        """Its methods by depth."""
        return queries.methods(self.tables, self.record)

    @property
    def checkpoints(self) -> list[str]:
        """Its models that were adapted elsewhere: no depth is known of them, and no seed changes them."""
        known = [queries.method(name, self.record) for name in self.methods]
        return [one.name for one in known if one and one.depth is None and not (one.uses_seed or one.is_control)]

    def uses_seed(self, method: str) -> bool:
        """Whether a training seed changes a method's result."""
        known = queries.method(method, self.record)
        return known is None or known.uses_seed

    def label_of(self, method: str) -> str:
        """Short name of one of its methods."""
        return queries.label(method, self.record)

    def trained_share(self, method: str) -> float | None:
        """Share of the blocks that a method trains, `FULL` for full fine-tuning; None for a method without a depth."""
        known = queries.method(method, self.record)
        if known is None or known.depth is None:
            return None
        return FULL if known.is_full else known.depth / self.n_layers


@dataclass(frozen=True)
class Match:
    """Methods of several runs that play the same role, one per run."""

    name: str
    """The role: the name of the method, or `checkpoint` or `main method` where names differ."""
    methods: tuple[str, ...]
    """The method of each run, in the order of the runs."""

    @property
    def same_name(self) -> bool:
        """Whether it is one method in all runs."""
        return len(set(self.methods)) == 1


@dataclass(frozen=True)
class Comparison:
    """What the page of a comparison reads besides tables."""

    runs: Sequence[ComparedRun]
    matches: Sequence[Match]
    """Methods that are compared between all runs, by depth."""
    main: Match
    """The match that the answer is about: full fine-tuning, else the last one that learns the task."""
    groups: Sequence[Sequence[str]]
    """Labels of runs that have the same test examples, two or more per group."""
    unpaired: Sequence[str]
    """Why methods of such a group could not be paired."""
    notes: Sequence[str] = ()
    """What else limits the comparison, in sentences."""

    @property
    def name(self) -> str:
        """Title of the page."""
        return f"{len(self.runs)} runs compared"

    @property
    def labels(self) -> list[str]:
        """Labels of the runs."""
        return [run.label for run in self.runs]


def compare(runs: Sequence[ComparedRun]) -> tuple[dict[str, pd.DataFrame], Comparison]:
    """Tables by name, `quality`, `differences`, `cost`, `drift` and `paired` as far as there are rows, and the comparison."""
    groups, measure = groups_of(runs), shared_measure(runs)
    paired, unpaired = pair(groups)
    found = matches(runs)
    tables = {
        "quality": stack(runs, lambda run: queries.accuracy_after(run.tables)),
        "differences": stack(runs, differences_of),
        "cost": stack(runs, lambda run: costs_of(run, timed_costs_of(runs))),
        "drift": stack(runs, lambda run: drift_of(run, measure)) if measure else None,
        "paired": paired,
    }
    labels = [[run.label for run in group] for group in groups]
    comparison = Comparison(runs, found, main_match(found, runs[0].record), labels, unpaired)
    return {name: table for name, table in tables.items() if table is not None}, comparison


def timed_costs_of(runs: Sequence[ComparedRun]) -> list[str]:
    """Costs that are not compared, because in some run other tasks ran at the same time as a training."""
    return list(dict.fromkeys(name for run in runs for name in timed_costs(run.tables)))


def stack(runs: Sequence[ComparedRun], read: Callable[[ComparedRun], pd.DataFrame | None]) -> pd.DataFrame | None:
    """One table over all runs, with the columns `run` and `trained_share`."""
    parts = []
    for run in runs:
        table = read(run)
        if table is not None:
            table = table[table.method.isin(run.methods)].assign(run=run.label)  # without baselines
            parts.append(table.assign(trained_share=table.method.map(run.trained_share).astype(float)))
    return pd.concat(parts, ignore_index=True) if any(map(len, parts)) else None


def differences_of(run: ComparedRun) -> pd.DataFrame | None:
    """Differences to the run's reference, with outcome and margin of the tests."""
    table, tests = queries.having(run.tables, "differences"), queries.having(run.tables, "sufficiency")
    return None if table is None or tests is None else table.merge(tests[["method", "outcome", "margin"]], on="method")


def costs_of(run: ComparedRun, left_out: Sequence[str]) -> pd.DataFrame | None:
    """Mean costs per method, with the run's reference."""
    table, reference = costs_by_method(run.tables, run.record), queries.reference(run.tables, run.record)
    return None if table is None else table.drop(columns=left_out, errors="ignore").assign(reference=reference)


def shared_measure(runs: Sequence[ComparedRun]) -> str | None:
    """CKA if all runs computed it, else the cosine, else the first that all did."""
    tables = [(queries.having(run.tables, "similarity"), run.record) for run in runs]
    computed = [[] if table is None else queries.measures(table, record) for table, record in tables]
    shared = sorted(set.intersection(*map(set, computed)))
    return next((name for name in ("cka", "paired_cosine", *shared) if name in shared), None)


def drift_of(run: ComparedRun, measure: str) -> pd.DataFrame:
    """One measure by layer and method for the first seed, with `share`, the layer as a share of all blocks."""
    table = run.tables["similarity"]
    unit = queries.unit_of(table)
    rows = pd.concat(queries.drift_of(table, method, measure, unit) for method in dict.fromkeys(table.method))
    return rows.assign(share=rows.layer / run.n_layers)


def matches(runs: Sequence[ComparedRun]) -> list[Match]:
    """Methods that are compared between runs: those with one name, the one checkpoint of each run, else the main methods.

    Returns:
        One match or more, by depth.
    """
    names = [name for name in runs[0].methods if all(name in run.methods for run in runs)]
    found = [Match(name, (name,) * len(runs)) for name in names]
    checkpoints = [run.checkpoints for run in runs]
    if all(len(own) == 1 for own in checkpoints):
        match = Match("checkpoint", tuple(own[0] for own in checkpoints))
        found += [] if match.same_name else [match]
    if not any(learns_task(match, runs[0].record) for match in found):
        mains = [queries.main_method(run.methods, run.record) for run in runs]
        found.append(Match("main method", tuple(str(name) for name in mains)))
    return found


def learns_task(match: Match, record: RunRecord) -> bool:
    """Whether a match is of methods that learn the task, judged by the first run's record."""
    return match.methods[0] not in queries.controls(record)


def main_match(found: Sequence[Match], record: RunRecord) -> Match:
    """Full fine-tuning, else the last match of methods that learn the task."""
    full = next((match for match in found if match.methods[0] == queries.full(record)), None)
    return full or ([match for match in found if learns_task(match, record)] or list(found))[-1]


def groups_of(runs: Sequence[ComparedRun]) -> list[list[ComparedRun]]:
    """Runs with the same test examples and labels, as far as there are two or more."""
    groups: dict[Any, list[ComparedRun]] = {}
    for run in runs:
        if queries.having(run.tables, "predictions") is not None:
            rows = predictions_of(run)
            groups.setdefault(frozenset(zip(rows.example_id, rows.label, strict=True)), []).append(run)
    return [group for group in groups.values() if len(group) > 1]


def predictions_of(run: ComparedRun, method: str | None = None) -> pd.DataFrame:
    """Predictions on the test examples, of one method or of all."""
    rows = run.tables["predictions"]
    rows = rows[rows["split"] == "test"]
    return rows if method is None else rows[rows.method == method]


def pair(groups: Sequence[Sequence[ComparedRun]]) -> tuple[pd.DataFrame | None, list[str]]:
    """Differences to the first run of each group per match, over the seeds that all of its runs have.

    A model that does not depend on a seed, such as a checkpoint, is compared with each seed of the others.

    Returns:
        The differences, None if nothing could be paired, and a reason for each match that could not.
    """
    parts, unpaired = [], []
    for group in groups:
        labels = [run.label for run in group]
        for match in matches(group):
            rows = [predictions_of(run, method) for run, method in zip(group, match.methods, strict=True)]
            if any(part.empty for part in rows):
                continue
            seeded = [run.uses_seed(method) for run, method in zip(group, match.methods, strict=True)]
            of_seeded = [set(part.seed) for part, uses in zip(rows, seeded, strict=True) if uses]
            seeds = set.intersection(*of_seeded) if of_seeded else {0}
            if not seeds:
                unpaired.append(f"{match.name} has no seed in common in {', '.join(labels)}")
                continue
            results = pd.concat(
                _at_seeds(part, seeds, uses).assign(method=label)
                for part, uses, label in zip(rows, seeded, labels, strict=True)
            )
            results = results.assign(correct=results.label == results.predicted)
            table = paired_differences(results, reference=labels[0]).rename(columns={"method": "run"})
            methods = dict(zip(labels, match.methods, strict=True))
            parts.append(
                table.assign(
                    role=match.name,
                    method=table.run.map(methods),
                    reference_method=match.methods[0],
                    trainings=len(seeds) if all(seeded) else 1,
                )
            )
    return (pd.concat(parts, ignore_index=True) if parts else None), unpaired


def _at_seeds(rows: pd.DataFrame, seeds: set[int], uses_seed: bool) -> pd.DataFrame:
    """Predictions with these seeds; those that depend on no seed are repeated for each."""
    if uses_seed:
        return rows[rows.seed.isin(seeds)]
    once = rows[rows.seed == rows.seed.min()]
    return pd.concat(once.assign(seed=seed) for seed in sorted(seeds))
