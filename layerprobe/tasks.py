"""The tasks of a study: which stage works on what, and what each is made from."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from layerprobe.task import Task

if TYPE_CHECKING:
    from layerprobe.adaptation import Method
    from layerprobe.inputs import Inputs
    from layerprobe.study import Study


def tasks_of(inputs: Inputs) -> list[Task]:
    """Every task of a study, parents first."""
    from layerprobe import sae_tasks
    from layerprobe.stages import adapting, capturing, comparing, internals, latents

    made = [
        Task("capture", "base", inputs.capture_identity, capturing.capture_base(inputs), size=inputs.capture_bytes),
        Task(
            "capture-train",
            "base",
            inputs.train_identity,
            capturing.capture_train(inputs, None),
            size=inputs.train_bytes,
        ),
        Task(
            "reference",
            "logistic",
            inputs.reference_identity,
            adapting.reference(inputs),
            parents=("capture-train: base", "capture: base"),
        ),
    ]
    made.append(
        Task(
            "geometry",
            "base",
            inputs.geometry_base_identity,
            comparing.geometry_base(inputs),
            parents=("capture: base",),
        )
    )
    if "probes" in inputs.study.internals.parts:
        made.append(
            Task(
                "probes",
                "base",
                inputs.reference_identity,
                internals.probe_base(inputs),
                parents=("capture-train: base", "capture: base"),
            )
        )
    if inputs.sae_layers:
        made.append(
            Task(
                "capture-sae",
                "base",
                inputs.sae_rows_identity,
                capturing.capture_sae(inputs, None),
                size=inputs.sae_bytes,
            )
        )
        for layer in inputs.sae_layers:
            made += sae_tasks.of_base(inputs, layer)
    # The head's classifier stands in for the base's own, so it comes first.
    for method in sorted(inputs.methods, key=lambda method: method.changes_body):
        for seed in inputs.seeds(method):
            made += _method_tasks(inputs, method, seed)
        if len(inputs.seeds(method)) > 1 and method.changes_body:  # a head leaves every layer to the base
            made.append(_seeds_task(inputs, method))
    read = tuple(task.id for task in made if task.stage == "latents")
    if read:
        made.append(
            Task("crossing", "every method", inputs.nothing_identity, latents.crossing(inputs, read), parents=read)
        )
    made += _depth_task(inputs)
    return made


def _depth_task(inputs: Inputs) -> Iterable[Task]:
    """What is concluded from all methods together; nothing where none is comparable to another."""
    from layerprobe.stages import depth

    family = depth.family_of(inputs.methods, inputs.seeds)
    if family is None:
        return
    compared = [method for method in inputs.methods if method == family.reference or method in family.others]
    names = [called(method.name, seed) for method in compared for seed in inputs.seeds(method)]
    adapts, similarities = [f"adapt: {name}" for name in names], [f"similarity: {name}" for name in names]
    yield Task(
        "depth",
        f"every method against {family.reference.name}",
        inputs.depth_identity(family.left_out),
        depth.conclude(inputs, family, adapts, similarities),
        parents=(*adapts, *similarities),
    )


def seeds_of(study: Study, method: Method) -> tuple[int, ...]:
    """Seeds to run a method with; a finished checkpoint has nothing left that a seed could change."""
    return study.seeds if method.uses_seed else study.seeds[:1]


def _seeds_task(inputs: Inputs, method: Method) -> Task:
    from layerprobe.stages import comparing

    captures = [(seed, f"capture: {called(method.name, seed)}") for seed in inputs.seeds(method)]
    pairs = [(*one, *other) for one, other in itertools.pairwise(captures)]
    return Task(
        "seeds",
        method.name,
        inputs.similarity_identity(method, captures[0][0]),
        comparing.seeds(inputs, method, pairs),
        parents=tuple(name for _, name in captures),
    )


def _method_tasks(inputs: Inputs, method: Method, seed: int) -> Iterable[Task]:
    from layerprobe import sae_tasks
    from layerprobe.stages import adapting, capturing, comparing, showing

    name = called(method.name, seed)
    adapt, capture = f"adapt: {name}", f"capture: {name}"
    yield Task(
        "adapt",
        name,
        inputs.adapt_identity(method, seed),
        adapting.adapt(inputs, method, seed),
        size=inputs.adapt_bytes(method, seed),
    )
    if inputs.study.data.ood:
        yield Task(
            "outside",
            name,
            inputs.outside_identity(method, seed),
            adapting.outside(inputs, method, seed, adapt),
            parents=(adapt,),
        )
    yield Task(
        "capture",
        name,
        inputs.capture_identity,
        capturing.capture_adapted(inputs, adapt),
        parents=(adapt, "capture: base"),
        size=inputs.capture_bytes,
    )
    yield Task(
        "similarity",
        name,
        inputs.similarity_identity(method, seed),
        comparing.similarity(inputs, method, seed, capture),
        parents=("capture: base", capture),
    )
    yield Task(
        "nulls",
        name,
        inputs.nulls_identity(method, seed),
        comparing.nulls(inputs, method, seed, capture),
        parents=("capture: base", capture),
    )
    yield Task(
        "geometry",
        name,
        inputs.geometry_identity(method, seed),
        comparing.geometry(inputs, method, seed, capture),
        parents=("capture: base", capture, "geometry: base"),
    )
    yield Task(
        "sentences",
        name,
        inputs.named_identity(method, seed),
        showing.sentences(inputs, method, seed, capture),
        parents=("capture: base", capture),
    )
    yield from _internals_tasks(inputs, method, seed, adapt, capture)
    if not inputs.sae_layers:
        return
    rows = f"capture-sae: {name}"
    yield Task(
        "capture-sae",
        name,
        inputs.sae_rows_identity,
        capturing.capture_sae(inputs, adapt),
        parents=(adapt, "capture-sae: base"),
        size=inputs.sae_bytes,
    )
    classifiers = {"adapted": adapt}
    head = next((method_ for method_ in inputs.methods if not method_.changes_body), None)
    if head is not None:  # the base's own classifier is a trained head on it
        seeds = inputs.seeds(head)
        classifiers["base"] = f"adapt: {called(head.name, seed if seed in seeds else seeds[0])}"
    for layer in inputs.sae_layers:
        yield from sae_tasks.of_method(inputs, method, seed, name, layer, rows, capture, classifiers)
    if inputs.study.adaptation.checkpoints and method.trains_blocks:
        yield sae_tasks.along_training(inputs, method, seed, name, adapt, capture)


def _internals_tasks(inputs: Inputs, method: Method, seed: int, adapt: str, capture: str) -> Iterable[Task]:
    from layerprobe.stages import capturing, internals

    name, parts = called(method.name, seed), inputs.study.internals.parts
    named = inputs.named_identity(method, seed)
    if "probes" in parts:
        train = f"capture-train: {name}"
        yield Task(
            "capture-train",
            name,
            inputs.train_identity,
            capturing.capture_train(inputs, adapt),
            parents=(adapt, "capture-train: base"),
            size=inputs.train_bytes,
        )
        yield Task(
            "probes",
            name,
            named,
            internals.probes(inputs, method, seed, capture, train),
            parents=("capture-train: base", train, "capture: base", capture, "probes: base"),
        )
    if "weights" in parts:
        yield Task("weights", name, named, internals.weights(inputs, method, seed, adapt), parents=(adapt,))
    if "interventions" in parts:
        yield Task(
            "interventions",
            name,
            inputs.interventions_identity(method, seed),
            internals.interventions(inputs, method, seed, adapt),
            parents=(adapt,),
        )


def called(method: str, seed: int) -> str:
    return f"{method} seed {seed}"


def outline(study: Study) -> list[tuple[str, str]]:
    """Stage and name of each task of a study whose model or data is out of reach."""
    return [(task.stage, task.name) for task in tasks_of(_OutOfReach(study))]  # type: ignore[arg-type]


class _Nothing(int):
    """A function of anything and a number of bytes in one: tasks may call it or reckon with it."""

    def __call__(self, *args: Any, **kwargs: Any) -> _Nothing:
        return self


def asked_methods(study: Study) -> tuple[Method, ...]:
    """The methods that a study names; of "depths", where no encoder tells how many there are, the two ends."""
    from layerprobe.adaptation import expand_methods

    return expand_methods(study.adaptation.methods, None)


class _OutOfReach:
    """Stands in for a study's inputs where model or data can't be read: it knows names, and nothing that hangs on them."""

    def __init__(self, study: Study) -> None:
        from layerprobe.adaptation.methods import Method

        class EveryDepth(Method):
            name = "every depth"

        self.study = study
        self.methods = (EveryDepth(),) if study.adaptation.methods == "depths" else asked_methods(study)
        self.sae_layers = ("early", "middle", "last") if study.sae.layers is None else study.sae.layers
        self.seeds = partial(seeds_of, study)

    def __getattr__(self, name: str) -> Any:
        return _Nothing()
