"""Few-shot tasks from labelled texts: classes divided into parts, and episodes drawn within a part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from layerprobe.errors import ArgumentError

PART_NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class Part:
    """The classes of one part.

    Attributes:
        name: "train", "validation" or "test".
        classes: labels, sorted.
        rows: rows of each class, in order of `classes`.
        groups: group of each class; None if there are no groups.
    """

    name: str
    classes: tuple[str, ...]
    rows: tuple[Int[np.ndarray, " _"], ...]
    groups: tuple[str, ...] | None


@dataclass(frozen=True)
class Parts:
    """Classes divided into three parts that share neither a class, nor a group, nor a text.

    Attributes:
        train: for meta-training.
        validation: for early stopping and choice of rates.
        test: for the reported accuracy.
        repeated: number of rows left out because their class has the same text already.
        ambiguous: number of rows left out because another class has the same text.
        small: classes left out because they have fewer texts than required.
    """

    train: Part
    validation: Part
    test: Part
    repeated: int
    ambiguous: int
    small: tuple[str, ...]


@dataclass(frozen=True)
class Episode:
    """One few-shot task; the label of a text is the position of its class.

    Attributes:
        classes: labels of the classes, in the order drawn.
        support: rows to adapt on, one row of the array per class.
        query: rows to score, one row of the array per class; none of them is in `support`.
    """

    classes: tuple[str, ...]
    support: Int[np.ndarray, "ways shots"]
    query: Int[np.ndarray, "ways queries"]


@dataclass(frozen=True)
class EpisodeSampler:
    """Draws episodes of one part, each by its number, so that a stopped training resumes with the same episodes.

    Attributes:
        part: what the classes are drawn from.
        ways: classes per episode, at least 2.
        shots: support texts per class, at least 1.
        queries: query texts per class, at least 1.
        within_group: whether all classes of an episode come from one group (each group with enough classes is equally
            likely); otherwise from the whole part.
        seed: seed of the draws.

    Raises:
        ArgumentError: if the part has too few classes, a class too few texts, or no group has enough classes.
    """

    part: Part
    ways: int
    shots: int
    queries: int
    within_group: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("ways", 2), ("shots", 1), ("queries", 1)):
            if getattr(self, name) < least:
                raise ArgumentError(f"{{{name}}} is {getattr(self, name)}; it must be at least {least}.", name)
        few = min(len(rows) for rows in self.part.rows)
        if few < self.shots + self.queries:
            raise ArgumentError(
                f"{{shots}} + {{queries}} is {self.shots + self.queries}, but a class of the {self.part.name} part has {few} "
                "texts; lower them.",
                *("shots", "queries"),
            )
        if len(self.part.classes) < self.ways:
            raise ArgumentError(
                f"{{ways}} is {self.ways}, but the {self.part.name} part has {len(self.part.classes)} classes; lower it.",
                "ways",
            )
        if self.within_group:
            if self.part.groups is None:
                raise ArgumentError("{within_group} needs {groups}, and there are none.", "within_group", "groups")
            if not self.groups:
                most = max(self.part.groups.count(group) for group in self.part.groups)
                raise ArgumentError(
                    f"{{ways}} is {self.ways}, but no group of the {self.part.name} part has more than {most} classes; lower "
                    "it, or turn {within_group} off.",
                    *("ways", "within_group"),
                )

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups with enough classes for an episode of their own; empty if there are no groups."""
        groups = self.part.groups or ()
        return tuple(group for group in sorted(set(groups)) if groups.count(group) >= self.ways)

    def draw(self, number: int) -> Episode:
        """The episode of this number, counted from 0: the same for the same part, settings and seed."""
        rng = np.random.default_rng([self.seed, PART_NAMES.index(self.part.name), number])
        eligible = np.arange(len(self.part.classes))
        if self.within_group:
            group = self.groups[rng.integers(len(self.groups))]
            eligible = np.flatnonzero(np.array(self.part.groups) == group)
        drawn = rng.choice(eligible, self.ways, replace=False)
        rows = np.stack([rng.choice(self.part.rows[i], self.shots + self.queries, replace=False) for i in drawn])
        return Episode(tuple(self.part.classes[i] for i in drawn), rows[:, : self.shots], rows[:, self.shots :])


def split_classes(
    texts: Sequence[str],
    labels: Sequence[str],
    groups: Sequence[str] | None = None,
    *,
    min_texts: int,
    ways: int = 2,
    shares: tuple[float, float, float] = (0.55, 0.18, 0.27),
    seed: int = 0,
) -> Parts:
    """Divide classes into parts for meta-training, meta-validation and meta-test.

    With groups, whole groups go to one part, as in FC100 (Oreshkin et al. 2018), whose parts share no superclass. No text,
    compared without case and repeated white space, is in two classes: a text with two labels is left out, and of a text that
    its class repeats the first row is kept.

    Args:
        texts: the texts.
        labels: class of each text.
        groups: coarser label of each text; all texts of a class have one group.
        min_texts: fewest distinct texts of a class, usually shots + queries; classes with fewer are left out.
        ways: fewest classes of a part.
        shares: shares of the groups (of the classes, without groups) in train, validation and test.
        seed: seed of the division.

    Raises:
        ArgumentError: if lengths differ, a class has two groups, shares are not positive, or a part would have too few
            classes.
    """
    if len(texts) != len(labels) or (groups is not None and len(groups) != len(texts)):
        counts = f"{len(texts)} values, {{labels}} {len(labels)}" + (
            "" if groups is None else f", {{groups}} {len(groups)}"
        )
        raise ArgumentError(f"{{texts}} has {counts}; each text takes one of each.", "texts", "labels", "groups")
    if not (min(shares) > 0 and np.isfinite(shares).all()):
        raise ArgumentError(f"{{shares}} is {shares}; each must be above 0.", "shares")
    if min_texts < 2:
        raise ArgumentError(f"{{min_texts}} is {min_texts}; it must be at least 2.", "min_texts")
    group_of = _group_of_class(labels, groups)
    rows, repeated, ambiguous = _distinct_rows(texts, labels)
    kept = sorted(label for label in group_of if len(rows.get(label, ())) >= min_texts)
    small = tuple(sorted(set(group_of) - set(kept)))
    units = sorted({group_of[label] for label in kept})
    if len(units) < len(PART_NAMES):
        unit = "class" if groups is None else "group"
        argument = "labels" if groups is None else "groups"
        raise ArgumentError(
            f"{{{argument}}} leaves a part without a {unit}: {len(units)} have a class of {min_texts} or more distinct texts, "
            f"and each of {len(PART_NAMES)} parts needs one; lower {{min_texts}}.",
            *(argument, "min_texts"),
        )
    order = np.random.default_rng(seed).permutation(units)
    ends = np.cumsum(_sizes(len(units), shares))
    parts = []
    for name, of_part in zip(PART_NAMES, np.split(order, ends[:-1]), strict=True):
        classes = tuple(label for label in kept if group_of[label] in set(of_part))
        if len(classes) < ways:
            raise ArgumentError(
                f"{{ways}} is {ways}, but the {name} part has {len(classes)} classes of {min_texts} or more distinct texts "
                f"({len(small)} classes have fewer); lower {{ways}} or {{min_texts}}, or change {{shares}} or {{seed}}.",
                *("ways", "min_texts", "shares", "seed"),
            )
        of_classes = None if groups is None else tuple(group_of[label] for label in classes)
        parts.append(Part(name, classes, tuple(rows[label] for label in classes), of_classes))
    train, validation, test = parts
    return Parts(train, validation, test, repeated, ambiguous, small)


def _group_of_class(labels: Sequence[str], groups: Sequence[str] | None) -> dict[str, str]:
    """Group of each class; without groups, each class is its own."""
    found: dict[str, str] = {}
    for label, group in zip(labels, labels if groups is None else groups, strict=True):
        if found.setdefault(str(label), str(group)) != str(group):
            raise ArgumentError(
                f"{{groups}} has {found[str(label)]!r} and {str(group)!r} for the class {str(label)!r}; a class has one group.",
                "groups",
            )
    return found


def _distinct_rows(texts: Sequence[str], labels: Sequence[str]) -> tuple[dict[str, np.ndarray], int, int]:
    """Rows of each class without repeated texts and without texts of several classes, and how many of each kind."""
    occurrences: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        occurrences.setdefault(" ".join(str(text).split()).casefold(), []).append(row)
    rows: dict[str, list[int]] = {}
    repeated = ambiguous = 0
    for found in occurrences.values():
        if len({str(labels[row]) for row in found}) > 1:
            ambiguous += len(found)
        else:
            repeated += len(found) - 1
            rows.setdefault(str(labels[found[0]]), []).append(found[0])
    return {label: np.array(sorted(found), dtype=np.int64) for label, found in rows.items()}, repeated, ambiguous


def _sizes(n: int, shares: tuple[float, float, float]) -> np.ndarray:
    """Whole numbers in proportion to the shares, by largest remainder, at least 1 each."""
    exact = np.maximum(n * np.array(shares) / sum(shares), 1)
    exact = 1 + (exact - 1) * (n - len(exact)) / (exact - 1).sum() if exact.sum() > len(exact) else exact
    sizes = np.floor(exact).astype(int)
    sizes[np.argsort(-(exact - sizes), kind="stable")[: n - sizes.sum()]] += 1
    return sizes
