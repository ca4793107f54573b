"""The data of a few-shot study: classes divided into parts, the episodes of each part, and the probe examples."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from layerprobe.errors import ArgumentError, Mistakes, StudyError
from layerprobe.files import digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerprobe.data import Corpus, Examples, Labelled
    from layerprobe.metalearning import Episode, EpisodeSampler, InnerConfig, OuterConfig, Part, Parts
    from layerprobe.study import FewShotSection, Study

KEYS: Mapping[str, str] = {
    **{name: f"few_shot.{name}" for name in ("ways", "shots", "queries", "within_group", "l2", "outer")},
    "groups": "data.group",
    "labels": "data.label",
    "min_texts": "few_shot.shots + few_shot.queries",
    "seed": "data.seed",
    "depth": "few_shot.inner",
    "steps": "few_shot.inner_steps",
    "rate": "few_shot.inner_rate",
    "rates": "few_shot.rate_grid",
    "encoder": "model.name",
}
"""Study keys behind the arguments of `layerprobe.metalearning`."""


@dataclass(frozen=True)
class FewShotData:
    """The examples of a few-shot study and how their classes are divided.

    Attributes:
        study: the study.
        rows: all distinct examples.
        parts: classes of meta-training, meta-validation and meta-test; their rows are positions in `rows.examples`.
    """

    study: Study
    rows: Labelled
    parts: Parts

    @property
    def section(self) -> FewShotSection:
        return section_of(self.study)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over ids, labels and groups of all examples."""
        rows = self.rows
        groups = None if rows.groups is None else list(rows.groups)
        return digest([list(rows.examples.ids), rows.examples.labels.tolist(), list(rows.label_names), groups])

    def sampler(self, part: Part, seed: int) -> EpisodeSampler:
        """Episodes of a part with the study's numbers of classes and examples."""
        from layerprobe.metalearning import EpisodeSampler

        few = self.section
        return EpisodeSampler(part, few.ways, few.shots, few.queries, few.within_group, seed)

    @cached_property
    def probes(self) -> np.ndarray:
        """Rows of meta-test examples that layers are compared on: none is in an episode of the layer comparison."""
        few, data = self.section, self.study.data
        sampler = self.sampler(self.parts.test, data.seed)
        episodes = [sampler.draw(number) for number in range(few.layer_tasks)]
        used = np.unique(np.concatenate([np.r_[one.support.ravel(), one.query.ravel()] for one in episodes]))
        free = np.setdiff1d(np.concatenate(self.parts.test.rows), used)
        return np.sort(np.random.default_rng(data.seed).permutation(free)[: few.probes])

    def group_of(self, part: Part, episode: Episode) -> str:
        """The group of all classes of an episode of a part; empty if they are mixed."""
        if part.groups is None:
            return ""
        groups = {part.groups[part.classes.index(label)] for label in episode.classes}
        return groups.pop() if len(groups) == 1 else ""

    def examples_of(self, part: Part, *, shuffled: bool = False) -> Examples:
        """All examples of a part's classes, class by class or in seeded order, so that the first are of all classes."""
        rows = np.concatenate(part.rows)
        return self.rows.examples.take(
            np.random.default_rng(self.study.data.seed).permutation(rows) if shuffled else rows
        )

    def corpus(self) -> Corpus:
        """The examples as the parts of a corpus: meta-training classes to train on, the probe examples to compare layers on."""
        from layerprobe.data import CopyCount, Corpus

        empty = dict.fromkeys(("n", "n_of", "copies", "originals", "equal_text", "equal_tokens", "similar"), 0)
        counted = CopyCount(part="train", name="", of="test", same_label=0, removed=0, replaced=0, **empty)
        parts, notes = self.parts, list(self.rows.notes)
        if parts.ambiguous:
            notes.append(f"{parts.ambiguous:,} examples whose text has labels of several classes were left out.")
        if parts.small:
            least = self.section.shots + self.section.queries
            notes.append(f"{len(parts.small):,} classes with fewer than {least} distinct examples were left out.")
        return Corpus(
            name=self.rows.source,
            label_names=self.rows.label_names,
            train=self.examples_of(parts.train, shuffled=True),
            test=self.rows.examples.take(self.probes),
            unseen=self.examples_of(parts.validation),
            fingerprint=self.fingerprint,
            revision=self.rows.commit,
            notes=tuple(notes),
            near_copies=counted,
            left_out=(),
        )


def section_of(study: Study) -> FewShotSection:
    assert study.few_shot is not None
    return study.few_shot


def load_few_shot(study: Study, rows: Labelled) -> FewShotData:
    """Divide the classes of a few-shot study.

    Raises:
        StudyError: if there are too few classes, groups or examples, naming study keys.
    """
    from layerprobe.metalearning import split_classes

    few, labels = section_of(study), rows.examples.labels
    known = np.flatnonzero(labels >= 0)
    if len(known) < len(labels):
        raise StudyError(f"{rows.source} has {len(labels) - len(known):,} examples without a label; leave them out.")
    texts = rows.examples.texts
    if rows.examples.pairs is not None:
        texts = tuple("\x00".join(pair) for pair in zip(texts, rows.examples.pairs, strict=True))
    with naming_few_shot_keys():
        parts = split_classes(
            texts,
            [rows.label_names[label] for label in labels],
            rows.groups,
            min_texts=few.shots + few.queries,
            ways=few.ways,
            seed=study.data.seed,
        )
        data = FewShotData(study, rows, parts)
        for part in (parts.train, parts.validation, parts.test):
            data.sampler(part, 0)
    if len(data.probes) < 50:
        raise StudyError(
            f"{len(data.probes)} meta-test examples are left to compare layers on, outside the episodes of "
            "few_shot.layer_tasks; at least 50 are needed: lower few_shot.layer_tasks, or give more examples."
        )
    return data


def given_rate(study: Study, depth: str) -> float | None:
    """The inner rate that a study gives for a depth; None if it is to be chosen."""
    few = section_of(study)
    return few.inner_rates.get(depth, few.inner_rate)


def inner_config(study: Study, depth: str, rate: float) -> InnerConfig:
    """The inner loop of one depth with the rate that was given or chosen for it."""
    from layerprobe.metalearning import InnerConfig

    few = section_of(study)
    with naming_few_shot_keys():
        return InnerConfig(
            depth,
            few.inner_steps,
            rate,
            first_order=few.first_order,
            l2=few.l2,
            learned_rates=few.learned_rates,
        )


def outer_depth(study: Study) -> int | None:
    """Number of top blocks that the outer loop trains; None for everything.

    Raises:
        StudyError: if `few_shot.outer` is neither `full` nor `top:k`.
    """
    outer = section_of(study).outer
    if outer == "full":
        return None
    number = outer.removeprefix("top:")
    if not outer.startswith("top:") or not number.isdecimal():
        raise StudyError(f"few_shot.outer is {outer!r}; it is full, or top:k such as top:2.")
    return int(number)


def outer_config(study: Study) -> OuterConfig:
    """The outer loop."""
    from layerprobe.metalearning import OuterConfig

    few = section_of(study)
    return OuterConfig(
        outer_depth(study),
        few.outer_steps,
        few.outer_rate,
        few.tasks_per_step,
        few.validate_every,
        few.validation_tasks,
        few.patience,
    )


def check_few_shot(study: Study, n_layers: int | None) -> None:
    """Whether depths and rates of a few-shot study fit each other and the model.

    Raises:
        LayerprobeError: naming study keys, with all mistakes.
    """
    from layerprobe.metalearning import check_depths

    few, mistakes = section_of(study), Mistakes()
    configs, outer = {}, None
    for depth in few.inner:
        with mistakes.collected():
            configs[depth] = inner_config(study, depth, rate=1.0)
    with mistakes.collected():
        outer = outer_config(study)
    if len({config.depth for config in configs.values()}) < len(configs):
        mistakes.add(f"few_shot.inner = {list(few.inner)} lists a depth twice; list each once.")
    for depth in few.inner_rates:
        if depth not in few.inner:
            mistakes.add(f"few_shot.inner_rates has {depth!r}, which few_shot.inner does not list.")
    if sorted(set(few.keep_steps)) != list(few.keep_steps) or max(few.keep_steps, default=0) > few.outer_steps:
        mistakes.add(
            f"few_shot.keep_steps = {list(few.keep_steps)}: its steps must ascend, up to few_shot.outer_steps "
            f"({few.outer_steps})."
        )
    if n_layers is not None and outer is not None:
        for config in configs.values():
            with mistakes.collected(), naming_few_shot_keys():
                check_depths(config, outer, n_layers)
    mistakes.report()


@contextmanager
def naming_few_shot_keys() -> Iterator[None]:
    """Let errors of the library name the keys of the study."""
    try:
        yield
    except ArgumentError as error:
        raise StudyError(error.with_names(KEYS)) from error
