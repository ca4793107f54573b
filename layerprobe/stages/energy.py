"""The stage that computes energy and bits of meta-training and of adaptation on clusters, for every number of rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from layerprobe.context import Context
from layerprobe.energy_section import EnergySection
from layerprobe.energy_study import cluster_sampler, energy_of
from layerprobe.few_shot import inner_config, naming_few_shot_keys, outer_depth, section_of
from layerprobe.stage import Json, ResolvedStudy, Stage, StudyShape, TableSpec
from layerprobe.stages._artifacts import save
from layerprobe.stages._few_shot import data_identity, inner_identity, make_inputs, make_learner, train_sampler
from layerprobe.stages.energy_rounds import CLUSTER_COLUMNS, EnergyRounds
from layerprobe.store import Artifact, ArtifactMeta

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.energy import TwoStage
    from layerprobe.metalearning import InnerConfig

PARTS = ("center", "uplink", "downlink", "devices", "sidelink")
ENERGY = TableSpec(
    "energy",
    "Energy of meta-training for t0 rounds and then adapting to every task on its cluster: one row per depth, topology, number "
    "of devices and t0.",
    {
        **CLUSTER_COLUMNS,
        "topology": "`ring`, `mesh`, or `server` (devices send to and receive from a server; rounds are those of the mesh)",
        "rounds": "rounds of adaptation, mean over tasks and seeds; a lower bound where `censored`",
        "rounds_low": "lower end of their 95% interval over tasks, and over seeds where there are several",
        "rounds_high": "upper end of their 95% interval",
        "censored": "whether a cluster was stopped short of the target: rounds and energy are lower bounds, left out of the optimum",
        "tasks": "number of tasks",
        "seeds": "number of training seeds",
        "target": "accuracy that every cluster adapts up to",
        "center_joule": "learning at the data centre, PUE included",
        "uplink_joule": "texts of meta-training from devices to the data centre",
        "downlink_joule": "the meta-trained parameters from the data centre to all devices",
        "devices_joule": "learning on devices",
        "sidelink_joule": "models exchanged in adaptation; with a server, up- and downlinks to it",
        "total_joule": "sum of the five parts",
        "total_low": "total at the lower end of the rounds' interval",
        "total_high": "total at the upper end",
        "optimum": "whether the total is the lowest among the t0 whose clusters all reached the target",
        "ratio": "total without meta-training (t0 = 0) over this total; missing where either is a lower bound",
        "joule_per_batch_center": "energy of one task's inner loop at the data centre, in J, without PUE",
        "query_batches": "first-order query pass over the inner loop, in energy",
        "second_order_factor": "query pass with second derivatives over that without, 1 for first-order meta-gradients",
        "joule_per_batch_device": "energy of one local step of a device, in J: forward through the whole encoder, backward to the "
        "adapted blocks",
        "flops_center": "floating-point operations of one task's meta-gradient at the data centre",
        "flops_device": "floating-point operations of one local step of a device",
        "energy_note": "how joule per batch was obtained",
        "device_batches": "local steps of a device per round",
        "meta_tasks": "tasks whose clusters send texts in each round of meta-training",
        "parameters_down": "parameters that a device receives after meta-training: all that the outer loop changed",
        "parameters_exchanged": "parameters that a device sends to a neighbour in a round: those that the inner depth adapts",
        "upload_bits_per_device": "bits of the texts that a device sends up in a round of meta-training, UTF-8",
        "neighbours": "transmissions of a device per round",
    },
)


@dataclass(frozen=True)
class Energy(Stage):
    """Energy of every depth, topology, number of devices and t0, from measured rounds and operations."""

    rounds: tuple[EnergyRounds, ...]

    name: ClassVar = "energy"
    version: ClassVar = 1
    few_shot: ClassVar = True
    accelerator: ClassVar = True
    tables: ClassVar = (ENERGY,)

    @property
    def title(self) -> str:
        return "all depths"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        if shape.study.energy is not None:
            yield cls(tuple(EnergyRounds.tasks(shape)))

    def parents(self) -> Mapping[str, Stage]:
        return {task.id: task for task in self.rounds}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        few, energy = section_of(study.study), energy_of(study.study)
        names = [name for name in EnergySection.model_fields if name.endswith("per_joule") or "joule_per" in name]
        assumed = {name: getattr(energy, name) for name in ("pue", "bits_per_parameter", *names)}
        loops = [inner_identity(study, depth) for depth in few.inner]
        own = {"outer": few.outer, "tasks_per_step": few.tasks_per_step, "loops": loops, "seed": study.study.seeds[0]}
        return {**data_identity(study), **assumed, **own}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        table = pd.concat([parent.table("energy_rounds") for parent in parents.values()], ignore_index=True)
        inputs = {depth: inputs_of(context, depth) for depth in section_of(context.study).inner}
        frames = []
        for _, rows in table.groupby(["inner", "topology", "devices"], sort=False):
            first: Any = rows.iloc[0]
            for links in (first.topology, "server") if first.topology == "mesh" else (first.topology,):
                energy = energy_of(context.study)
                frames.append(energy_rows(rows, links, int(first.devices), inputs[first.inner], energy))
        save(folder, "energy", pd.concat(frames, ignore_index=True)[list(ENERGY.columns)])


def energy_rows(
    rounds: pd.DataFrame, topology: str, devices: int, inputs: Mapping[str, Any], energy: EnergySection
) -> pd.DataFrame:
    """Rows of the table `energy` for one depth, topology and number of devices.

    Args:
        rounds: rows of `energy_rounds`.
        topology: with `server`, those of the mesh.
        devices: per task.
        inputs: what batches and models of this depth amount to, as `inputs_of` returns it.
        energy: assumptions.
    """
    import numpy as np
    import pandas as pd

    from layerprobe.energy import MeasuredRounds, energy_curve, mean_rounds

    model = two_stage(topology, devices, inputs, energy)
    measured, means = [], []
    for _, rows in rounds.groupby("meta_rounds"):
        by_task = rows.pivot(index="seed", columns="task", values="rounds").to_numpy(float)
        stopped = rows.groupby("task").censored.any()
        measured.append(MeasuredRounds(int(rows.meta_rounds.max()), by_task.mean(axis=0), stopped.to_numpy()))
        means.append(mean_rounds(by_task))
    curve = energy_curve(model, measured)
    parts = {f"{part}_joule": np.asarray(getattr(curve.energy, part)) for part in PARTS}
    value, low, high = (np.array([getattr(one, end) for one in means]) for end in ("value", "low", "high"))
    # Everything that is done or sent in a round of adaptation is proportional to the rounds.
    fixed, varying = (sum(parts[f"{part}_joule"] for part in names) for names in (PARTS[:3], PARTS[3:]))
    per_round = np.divide(varying, value, out=np.zeros_like(value), where=value > 0)
    best = None if curve.censored.all() else curve.optimum().meta_rounds
    constant = {name: inputs[name] for name in INPUTS} | {
        "inner": rounds.inner.iloc[0],
        "topology": topology,
        "devices": devices,
        "tasks": rounds.task.nunique(),
        "seeds": rounds.seed.nunique(),
        "target": rounds.target.iloc[0],
        "device_batches": energy.local_steps,
        "meta_tasks": inputs["meta_tasks"],
        "upload_bits_per_device": inputs["episode_bits"] / devices,
        "neighbours": model.neighbours,
    }
    return pd.DataFrame(
        {
            "meta_rounds": curve.meta_rounds,
            "rounds": value,
            "rounds_low": low,
            "rounds_high": high,
            "censored": curve.censored,
            **parts,
            "total_joule": fixed + varying,
            "total_low": fixed + per_round * low,
            "total_high": fixed + per_round * high,
            "optimum": curve.meta_rounds == best if best is not None else False,
            "ratio": curve.ratio,
        }
    ).assign(**constant)


INPUTS = (
    *("joule_per_batch_center", "query_batches", "second_order_factor", "joule_per_batch_device"),
    *("flops_center", "flops_device", "energy_note", "parameters_down", "parameters_exchanged"),
)
"""Columns that depend on the depth alone."""


def two_stage(topology: str, devices: int, inputs: Mapping[str, Any], energy: EnergySection) -> TwoStage:
    """The model of energy of one depth, topology and number of devices."""
    from layerprobe.energy import TwoStage, server_bit_per_joule
    from layerprobe.energy import topology as links_of

    is_server = topology == "server"
    up, down = energy.uplink_bit_per_joule, energy.downlink_bit_per_joule
    return TwoStage(
        pue=energy.pue,
        joule_per_batch_center=inputs["joule_per_batch_center"],
        joule_per_batch_device=inputs["joule_per_batch_device"],
        second_order_factor=inputs["second_order_factor"],
        uplink_bit_per_joule=up,
        downlink_bit_per_joule=down,
        sidelink_bit_per_joule=server_bit_per_joule(up, down) if is_server else energy.sidelink_bit_per_joule,
        parameters_down=inputs["parameters_down"],
        parameters_exchanged=inputs["parameters_exchanged"],
        bits_per_parameter=energy.bits_per_parameter,
        devices_per_task=devices,
        neighbours=1 if is_server else links_of(topology, devices).neighbours,
        support_batches=1,
        query_batches=inputs["query_batches"],
        device_batches=energy.local_steps,
        upload_bits_per_device=inputs["episode_bits"] / devices,
        resend_data=True,
        meta_tasks=inputs["meta_tasks"],
    )


def inputs_of(context: Context, depth: str) -> dict[str, Any]:
    """What batches and models of one inner depth amount to: joule, operations, parameters and bits."""
    few, seed = section_of(context.study), context.study.seeds[0]
    with naming_few_shot_keys():
        operations = batch_operations(context, inner_config(context.study, depth, 1.0))
    learner, sampler = make_learner(context, seed), train_sampler(context, seed)
    like = learner.parameters()
    sizes = {name: value.numel() for name, value in like.items()}
    outer = [*learner.names_at(outer_depth(context.study)), "head.weight", "head.bias"]
    texts = context.few_shot.rows.examples
    episodes = [sampler.draw(number) for number in range(20)]
    rows = [int(row) for one in episodes for half in (one.support, one.query) for row in half.ravel()]
    written = sum(len(texts.texts[row].encode()) for row in rows)
    if texts.pairs is not None:
        written += sum(len(texts.pairs[row].encode()) for row in rows)
    return operations | {
        "parameters_down": sum(sizes[name] for name in outer),
        "parameters_exchanged": sum(sizes[name] for name in inner_config(context.study, depth, 1.0).names(learner)),
        "episode_bits": 8 * written / len(episodes),
        "meta_tasks": few.tasks_per_step,
    }


def batch_operations(context: Context, config: InnerConfig) -> dict[str, Any]:
    """Energy and operations of a task's meta-gradient, by part, and of one local step of a device.

    Nothing is cached: every pass starts at the tokens, as on a device or in a data centre that sees a text once.
    """
    import torch

    from layerprobe.metalearning import adapt, meta_gradient

    energy, seed = energy_of(context.study), context.study.seeds[0]
    learner, inputs = make_learner(context, seed), make_inputs(context, make_learner(context, seed), None)
    task = inputs.task(train_sampler(context, seed).draw(0))
    clusters = cluster_sampler(context.few_shot, context.few_shot.parts.validation)
    local = clusters.draw(0).support[:, : energy.local_shots]
    state = inputs.state(local)
    labels = torch.arange(len(local), device=context.device).repeat_interleave(energy.local_shots)
    outer = [*learner.names_at(outer_depth(context.study)), "head.weight", "head.bias"]
    plain = learner.parameters()
    trained = {name: value.clone().requires_grad_(name in outer) for name, value in plain.items()}
    one_step = replace(config, steps=1, learned_rates=False)
    work: dict[str, Callable[[], Any]] = {
        "inner": lambda: adapt(learner, plain, task.support, task.support_labels, config),
        "first": lambda: meta_gradient(learner, trained, task, replace(config, first_order=True), outer=outer),
        "meta": lambda: meta_gradient(learner, trained, task, config, outer=outer),
        "device": lambda: adapt(learner, plain, state, labels, one_step),
    }
    flops = {name: counted_flops(call) for name, call in work.items()}
    joules, note = measured_joules(work)
    if joules is None:
        per_flop = {"device": energy.joule_per_flop_device}
        joules = {name: number * per_flop.get(name, energy.joule_per_flop_center) for name, number in flops.items()}
    first = max(joules["first"] - joules["inner"], 0.0)
    return {
        "joule_per_batch_center": joules["inner"],
        "query_batches": first / joules["inner"],
        "second_order_factor": max(1.0, (joules["meta"] - joules["inner"]) / first) if first else 1.0,
        "joule_per_batch_device": joules["device"],
        "flops_center": flops["meta"],
        "flops_device": flops["device"],
        "energy_note": note,
    }


def counted_flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


MEASURED_SECONDS = 3.0
"""Least duration of a measurement of energy."""


def measured_joules(work: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, float] | None, str]:
    """Joule of each piece of work by counters of the hardware, and how they were read; None and a note where there are none."""
    import time

    from layerprobe.adaptation import Meter

    with Meter() as meter:
        pass
    joules: dict[str, float] = {}
    for name, call in work.items():
        if meter.cost.energy_kind != "measured":
            why = "no counter of the hardware's energy could be read"
            return None, f"floating-point operations were counted, and joule per operation assumed: {why}"
        call()
        with Meter() as meter:
            start, repeats = time.perf_counter(), 0
            while time.perf_counter() - start < MEASURED_SECONDS:
                call()
                repeats += 1
        joules[name] = 3600 * (meter.cost.energy_wh or 0.0) / repeats
    return joules, f"measured on this machine: {meter.cost.energy_note}"
