"""The energy part of a few-shot study: the tasks of clusters of devices, and whether its keys fit each other and the data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from layerprobe.errors import ArgumentError, Mistakes, StudyError
from layerprobe.few_shot import section_of

if TYPE_CHECKING:
    from layerprobe.energy_section import EnergySection
    from layerprobe.few_shot import FewShotData
    from layerprobe.metalearning import EpisodeSampler, Part
    from layerprobe.study import Study


def energy_of(study: Study) -> EnergySection:
    assert study.energy is not None
    return study.energy


def meta_rounds(study: Study) -> tuple[int, ...]:
    """The numbers of meta-training rounds that are compared, t0: 0 and those after which parameters are kept."""
    return (0, *section_of(study).keep_steps)


def check_energy(study: Study, data: FewShotData | None) -> None:
    """Whether the keys of `[energy]` fit those of `[few_shot]` and the data, where they are at hand.

    Raises:
        LayerprobeError: naming study keys, with all mistakes.
    """
    if study.energy is None:
        return
    few, energy, mistakes = section_of(study), study.energy, Mistakes()
    if not few.keep_steps:
        mistakes.add(
            "[energy] compares numbers of meta-training rounds, and few_shot.keep_steps lists none; for example "
            f"keep_steps = [{max(1, few.outer_steps // 4)}, {few.outer_steps}] (0 is always compared)."
        )
    if energy.tasks < few.tasks_per_step:
        mistakes.add(
            f"energy.tasks is {energy.tasks}, but the clusters that send texts for a round of meta-training are among "
            f"them, few_shot.tasks_per_step = {few.tasks_per_step}; raise energy.tasks to that."
        )
    for key in ("devices", "topologies"):
        if len(set(values := getattr(energy, key))) < len(values):
            mistakes.add(f"energy.{key} = {list(values)} lists a value twice; list each once.")
    if data is not None:
        with mistakes.collected():  # of the first part: the same keys put the other one right
            for part in (data.parts.validation, data.parts.test):
                cluster_sampler(data, part)
    mistakes.report()


def cluster_sampler(data: FewShotData, part: Part) -> EpisodeSampler:
    """Tasks of clusters: episodes whose support examples are those of all devices, with many query examples.

    Raises:
        StudyError: if too few classes have that many examples, naming study keys.
    """
    from layerprobe.metalearning import EpisodeSampler
    from layerprobe.metalearning import Part as OtherPart

    study = data.study
    few, energy = data.section, energy_of(study)
    shots, queries = max(energy.devices) * energy.local_shots, math.ceil(energy.queries / few.ways)
    large = [i for i, rows in enumerate(part.rows) if len(rows) >= shots + queries]
    groups = None if part.groups is None else tuple(part.groups[i] for i in large)
    chosen = OtherPart(part.name, tuple(part.classes[i] for i in large), tuple(part.rows[i] for i in large), groups)
    try:
        if not large:
            raise ArgumentError("no class is large enough")
        return EpisodeSampler(chosen, few.ways, shots, queries, few.within_group, study.data.seed)
    except ArgumentError as error:
        one_group = " of one group" if few.within_group else ""
        raise StudyError(
            f"energy.queries, energy.devices and energy.local_shots need {shots + queries} examples per class, which "
            f"{len(large)} of {len(part.classes)} classes of the {part.name} part have; few_shot.ways = {few.ways} such "
            f"classes{one_group} are needed: lower these keys."
        ) from error
