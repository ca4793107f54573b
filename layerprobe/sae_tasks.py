"""The tasks on dictionaries: which are trained from what, and what is read off them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from layerprobe.task import Task

if TYPE_CHECKING:
    from layerprobe.adaptation import Method
    from layerprobe.inputs import Inputs

SIDES = ("base", "adapted")


def of_base(inputs: Inputs, layer: Any) -> Iterable[Task]:
    """The base's dictionary at a layer, those beside it, and what the latents of both seeds' are about."""
    from layerprobe.stages import latents

    rows, controls = "capture-sae: base", inputs.study.sae.controls
    first = f"base layer {layer}"
    yield _dictionary(inputs, first, layer, rows)
    # What differs from the base's by chance alone: it goes on from it on the same rows, in another order.
    yield _dictionary(inputs, f"{first}, other order", layer, rows, start=f"sae: {first}", other_order=True)
    yield _about(inputs, first, layer, "capture: base")
    if "frozen-decoder" in controls:
        yield _dictionary(inputs, f"{first}, frozen decoder", layer, rows, frozen=True)
    if "second-seed" in controls:
        yield _dictionary(inputs, f"{first}, second seed", layer, rows, other_seed=True)
        yield _about(inputs, f"{first}, second seed", layer, "capture: base")
    roles = _null_roles(inputs, layer)
    yield Task(
        "match",
        first,
        inputs.nothing_identity,
        latents.match_bases(inputs, layer, roles),
        parents=("capture: base", *roles.values()),
    )


def _null_roles(inputs: Inputs, layer: Any) -> dict[str, str]:
    """The base's dictionaries that matching is judged by."""
    base = f"sae: base layer {layer}"
    found = {"base": base, "base:other-order": f"{base}, other order"}
    if "second-seed" in inputs.study.sae.controls:
        found["base:second-seed"] = f"{base}, second seed"
    return found


def of_method(
    inputs: Inputs,
    method: Method,
    seed: int,
    name: str,
    layer: Any,
    rows: str,
    capture: str,
    classifiers: dict[str, str],
) -> Iterable[Task]:
    """An adapted model's dictionaries at a layer, which start from the base's, and all that compares the two sides."""
    from layerprobe.stages import dictionaries, latents, showing

    asked = inputs.study.sae
    base, own = f"base layer {layer}", f"{name} layer {layer}"
    read = {"base": f"sae: {base}", "adapted": f"sae: {own}", "base:other-order": f"sae: {base}, other order"}
    about = {"base": f"associations: {base}", "adapted": f"associations: {own}"}
    yield _dictionary(inputs, own, layer, rows, start=f"sae: {base}")
    yield _about(inputs, own, layer, capture)
    if "frozen-decoder" in asked.controls:
        read["base:frozen-decoder"] = f"sae: {base}, frozen decoder"
    if "second-seed" in asked.controls:
        yield _dictionary(
            inputs, f"{own}, second seed", layer, rows, start=f"sae: {base}, second seed", other_seed=True
        )
        yield _about(inputs, f"{own}, second seed", layer, capture)
        for side, which in (("base", base), ("adapted", own)):
            read[f"{side}:second-seed"] = f"sae: {which}, second seed"
            about[f"{side}:second-seed"] = f"associations: {which}, second seed"
    joint = f"crosscoder: {own}" if asked.crosscoder else None
    if joint:
        yield Task(
            "crosscoder",
            own,
            inputs.sae_identity(rows, layer, beside="capture-sae: base"),
            dictionaries.train_crosscoder(inputs, rows, layer),
            parents=("capture-sae: base", rows),
            size=2 * inputs.dictionary_bytes,
            keyed_by_content=True,
        )
    captures = ("capture: base", capture)
    yield Task(
        "transfer",
        own,
        inputs.transfer_identity(method, seed, layer),
        dictionaries.transfer(inputs, method, seed, layer, capture, rows, read, classifiers),
        parents=(*captures, "capture-sae: base", rows, *read.values(), *dict.fromkeys(classifiers.values())),
    )
    yield Task(
        "latents",
        own,
        inputs.layer_identity(method, seed, layer),
        latents.latents(inputs, method, seed, layer, capture, read, about, f"match: {base}", joint),
        parents=(*captures, *read.values(), *about.values(), f"match: {base}", *([joint] if joint else [])),
    )
    yield Task(
        "sentence-latents",
        own,
        inputs.layer_identity(method, seed, layer),
        showing.sentence_latents(inputs, method, seed, layer, capture, {side: read[side] for side in SIDES}, about),
        parents=(*captures, *(read[side] for side in SIDES), *(about[side] for side in SIDES)),
    )
    yield Task(
        "exhibit",
        own,
        inputs.layer_identity(method, seed, layer),
        showing.exhibit(inputs, method, seed, layer, capture, {side: read[side] for side in SIDES}, f"latents: {own}"),
        parents=(*captures, *(read[side] for side in SIDES), f"latents: {own}"),
    )


def along_training(inputs: Inputs, method: Method, seed: int, name: str, adapt: str, capture: str) -> Task:
    """How well both sides' dictionaries read the checkpoints that were kept along training."""
    from layerprobe.stages import steps

    tasks = {
        layer: {"base": f"sae: base layer {layer}", "adapted": f"sae: {name} layer {layer}"}
        for layer in inputs.sae_layers
    }
    return Task(
        "steps",
        name,
        inputs.transfer_identity(method, seed, None),
        steps.transfer_steps(inputs, method, seed, adapt, capture, tasks),
        parents=(adapt, "capture: base", capture, *(task for sides in tasks.values() for task in sides.values())),
    )


def _dictionary(inputs: Inputs, name: str, layer: Any, rows: str, *, start: str | None = None, **how: Any) -> Task:
    from layerprobe.stages import dictionaries

    return Task(
        "sae",
        name,
        inputs.sae_identity(rows, layer, start=start, **how),
        dictionaries.train_sae(inputs, rows, layer, start=start, **how),
        parents=tuple(dict.fromkeys([rows, "capture-sae: base", *([start] if start else [])])),
        size=inputs.dictionary_bytes,
        keyed_by_content=True,
        resumable=True,
    )


def _about(inputs: Inputs, name: str, layer: Any, capture: str) -> Task:
    from layerprobe.stages import latents

    return Task(
        "associations",
        name,
        inputs.about_identity(f"sae: {name}", layer, capture),
        latents.associate(inputs, layer, capture, f"sae: {name}"),
        parents=(capture, f"sae: {name}"),
        keyed_by_content=True,
    )
