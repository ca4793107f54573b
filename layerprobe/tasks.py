"""The tasks of a study: which stage works on what, and what each is made from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.artifacts import Artifact, digest

if TYPE_CHECKING:
    from layerprobe.adaptation import Method
    from layerprobe.inputs import Inputs
    from layerprobe.study import Study

Parents = Mapping[str, Artifact]


@dataclass(frozen=True)
class Task:
    """One stage's work on one thing: what it is made from, and how."""

    stage: str
    name: str
    identity: Callable[[Parents], dict[str, Any]]
    """What decides the result, besides the parents' keys; may read finished parents."""
    build: Callable[[Path, Parents], None]
    """Writes the artifact's data into an empty folder."""
    parents: tuple[str, ...] = ()
    size: int = 0
    """Bytes that it will take, estimated from above."""
    keyed_by_content: bool = False
    """Whether the identity is all there is to the key, so that equal content made in two ways is one artifact."""

    @property
    def id(self) -> str:
        return f"{self.stage}: {self.name}"

    def key(self, done: Parents) -> str | None:
        """The task's key, or None while a parent is unfinished."""
        from layerprobe.stages import VERSIONS

        if any(parent not in done for parent in self.parents):
            return None
        parents = [] if self.keyed_by_content else [done[parent].key for parent in self.parents]
        return digest(
            {"stage": self.stage, "version": VERSIONS[self.stage], "identity": self.identity(done), "parents": parents}
        )


def tasks_of(inputs: Inputs) -> list[Task]:
    """Every task of a study, parents first."""
    from layerprobe.stages import adapting, capturing, internals

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
    layers = inputs.sae_layers
    if layers:
        made.append(
            Task(
                "capture-sae",
                "base",
                inputs.sae_rows_identity,
                capturing.capture_sae(inputs, None),
                size=inputs.sae_bytes,
            )
        )
        made += [_dictionary(inputs, "base", layer, "capture-sae: base") for layer in layers]
    for method in inputs.methods:
        for seed in inputs.seeds(method):
            made += _method_tasks(inputs, method, seed)
        if len(inputs.seeds(method)) > 1 and method.kind != "head":  # a head leaves every layer to the base
            made.append(_seeds_task(inputs, method))
    return made


def _seeds_task(inputs: Inputs, method: Method) -> Task:
    from layerprobe.stages import comparing

    captures = [(seed, f"capture: {_called(method.name, seed)}") for seed in inputs.seeds(method)]
    pairs = [(*one, *other) for one, other in itertools.pairwise(captures)]
    return Task(
        "seeds",
        method.name,
        inputs.similarity_identity(method, captures[0][0]),
        comparing.seeds(inputs, method, pairs),
        parents=tuple(name for _, name in captures),
    )


def _method_tasks(inputs: Inputs, method: Method, seed: int) -> Iterable[Task]:
    from layerprobe.stages import adapting, capturing, comparing, dictionaries, showing

    name = _called(method.name, seed)
    adapt, capture = f"adapt: {name}", f"capture: {name}"
    yield Task(
        "adapt",
        name,
        inputs.adapt_identity(method, seed),
        adapting.adapt(inputs, method, seed),
        size=inputs.model_bytes(method),
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
        parents=("capture: base", capture),
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
    for layer in inputs.sae_layers:
        yield _dictionary(inputs, name, layer, rows)
        base_sae, adapted_sae = f"sae: base layer {layer}", f"sae: {name} layer {layer}"
        yield Task(
            "features",
            f"{name} layer {layer}",
            inputs.features_identity(method, seed, layer),
            dictionaries.features(inputs, method, seed, layer, capture, rows, base_sae, adapted_sae),
            parents=("capture: base", capture, "capture-sae: base", rows, base_sae, adapted_sae),
        )


def _internals_tasks(inputs: Inputs, method: Method, seed: int, adapt: str, capture: str) -> Iterable[Task]:
    from layerprobe.stages import capturing, internals

    name, parts = _called(method.name, seed), inputs.study.internals.parts
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


def _dictionary(inputs: Inputs, side: str, layer: int, rows: str) -> Task:
    from layerprobe.stages import dictionaries

    return Task(
        "sae",
        f"{side} layer {layer}",
        inputs.sae_identity(rows, layer),
        dictionaries.train_sae(inputs, rows, layer),
        parents=(rows,),
        size=inputs.dictionary_bytes,
        keyed_by_content=True,
    )


def _called(method: str, seed: int) -> str:
    return f"{method} seed {seed}"


def outline(study: Study) -> list[tuple[str, str]]:
    """The plan of a study whose model or data is out of reach: names only."""
    from layerprobe.adaptation import parse_method

    layers = study.sae.layers if study.sae.layers is not None else ("early", "middle", "last")
    pairs: list[tuple[str, str]] = [("capture", "base"), ("capture-train", "base"), ("reference", "logistic")]
    if layers:
        pairs += [("capture-sae", "base"), *(("sae", f"base layer {layer}") for layer in layers)]
    methods = study.adaptation.methods
    names = ["every depth"] if methods == "depths" else [parse_method(method).name for method in methods]
    for method in names:
        for seed in study.seeds[:1] if method.startswith("checkpoint:") else study.seeds:
            name = _called(method, seed)
            pairs += [(stage, name) for stage in ("adapt", "capture", "similarity", "nulls", "geometry", "sentences")]
            if layers:
                pairs.append(("capture-sae", name))
                pairs += [(stage, f"{name} layer {layer}") for layer in layers for stage in ("sae", "features")]
    return pairs
