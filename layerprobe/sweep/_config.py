"""What a sweep is: a base study and the values of the keys that are varied, read from TOML and validated."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictStr, ValidationError

from layerprobe.errors import LayerprobeError, StudyError
from layerprobe.section_types import Seed, as_tuple
from layerprobe.study import Study, anchor_paths, apply_override, read_content, read_toml, slug

PLAIN = ("model", "model.name", "data", "data.source")
"""Keys whose values are readable without the key."""
Values = tuple[Any, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Combination:
    """One value for each axis of a sweep."""

    name: str
    """The values in words: name of the study; its slug is the name of the run folder."""
    values: Mapping[str, Any] = field(hash=False)
    """Values by study key."""


class Sweep(BaseModel):
    """A base study and the values of the keys that are varied; every combination of values is one run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    base: StrictStr
    """The study that every combination starts from: a TOML file, named relative to the folder of the sweep."""
    axes: Annotated[dict[str, Annotated[Values, BeforeValidator(as_tuple)]], Field(min_length=1)]
    """Values by study key, such as `"data.train" = [500, 1000]`. A section as a key (`data`) takes tables of several keys."""
    name: StrictStr = "sweep"
    """Name of the sweep's folder. Default: the name of the file."""
    question: StrictStr | None = None
    """Question at the head of every report. Default: the base study's."""
    seeds: Annotated[tuple[Seed, ...] | None, BeforeValidator(as_tuple)] = None
    """Training seeds of every combination. Default: the base study's."""
    overrides: Annotated[tuple[StrictStr, ...], BeforeValidator(as_tuple)] = ()
    """Further changes of the base study, each in the form `section.key=value`."""

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> Sweep:
        """Read a sweep from a TOML file, and add `section.key=value` overrides of its base study.

        Paths in the file are relative to the file's folder, paths in the added overrides to the working folder.

        Raises:
            StudyError: if the file is missing or is not TOML, or if a key or value is invalid.
        """
        path = Path(path)
        content = read_toml(path, "sweep")
        content.setdefault("name", slug(path.stem))
        if isinstance(content.get("base"), str):
            content["base"] = str(path.parent / content["base"])
        if isinstance(content.get("axes"), dict):
            content["axes"] = {key: _anchored(key, values, path.parent) for key, values in _flat(content["axes"])}
        if isinstance(content.setdefault("overrides", []), list):
            content["overrides"] += overrides
        return cls.parse(content, origin=str(path))

    @classmethod
    def parse(cls, content: Mapping[str, Any], *, origin: str = "the sweep") -> Sweep:
        """Validate a sweep given as nested dictionaries.

        Raises:
            StudyError: naming the key, its value and what is allowed.
        """
        try:
            sweep = cls.model_validate(content)
        except ValidationError as error:
            first, known = error.errors()[0], ", ".join(cls.model_fields)
            key = ".".join(map(str, first["loc"][:2]))
            if first["type"] == "missing":
                problem = f"{key} is missing; a sweep needs a base study, and axes with the values to combine."
            elif first["type"] == "extra_forbidden":
                problem = f"unknown key {key!r}; the keys of a sweep are {known}."
            elif key.startswith("axes."):
                problem = f"{key} = {first['input']!r} is not a list; list the values to combine, such as [500, 1000]."
            else:
                problem = f"{key} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}."
            raise StudyError(f"{origin}: {problem}") from None
        for key, values in sweep.axes.items():
            if not values:
                raise StudyError(f"{origin}: axes.{key} is empty; list one value or more, or leave the axis out.")
            if any(value in values[:place] for place, value in enumerate(values)):
                raise StudyError(f"{origin}: axes.{key} = {list(values)} lists a value twice; list each once.")
            if key in ("name", "question") or (key == "seeds" and sweep.seeds is not None):
                why = "seeds is given as well" if key == "seeds" else "combinations are named by their values"
                raise StudyError(f"{origin}: axes.{key} cannot be varied, since {why}; remove one of them.")
            for override in sweep.overrides:
                changed = override.partition("=")[0].strip()
                if _varies(key, values, changed):
                    raise StudyError(f"{origin}: {override!r} changes what axes.{key} varies; change the axis instead.")
        if not slug(sweep.name):
            raise StudyError(f"{origin}: name = {sweep.name!r} has no letter or digit to name a folder with.")
        return sweep

    def combinations(self) -> tuple[Combination, ...]:
        """All combinations of values, the last axis varying fastest."""
        labels = [_labels(key, values) for key, values in self.axes.items()]
        names = [", ".join(parts) for parts in product(*labels)]
        slugs = [slug(name) for name in names]
        unique = [
            name if slugs[i] and slugs.count(slugs[i]) == 1 else f"{i + 1} {name}" for i, name in enumerate(names)
        ]
        values = [dict(zip(self.axes, one, strict=True)) for one in product(*self.axes.values())]
        return tuple(map(Combination, unique, values))

    def studies(self) -> dict[Combination, Study]:
        """The study of every combination, validated.

        Raises:
            StudyError: if the base study cannot be read, or with a sentence for every axis and value that makes no valid study.
        """
        base = read_content(self.base)
        if "axes" in base:
            raise StudyError(f"base = {self.base!r} is a sweep; name a study.")
        for override in self.overrides:
            apply_override(base, override)
        base |= {"seeds": list(self.seeds)} if self.seeds is not None else {}
        base |= {"question": self.question} if self.question is not None else {}

        def study_of(one: Combination) -> Study:
            content = copy.deepcopy(base)
            for key, value in one.values.items():
                _set(content, key, value)
            return Study.parse({**content, "name": one.name}, origin=self.base)

        combinations = self.combinations()
        return dict(zip(combinations, for_each(combinations, study_of), strict=True))


def for_each(combinations: Sequence[Combination], action: Callable[[Combination], T]) -> list[T]:
    """What an action returns for every combination.

    Raises:
        StudyError: if it refuses some of them: every reason once, with the axis and value, or the combinations, behind it.
    """
    results: list[T] = []
    refused: dict[str, list[Combination]] = {}
    for one in combinations:
        try:
            results.append(action(one))
        except LayerprobeError as error:
            refused.setdefault(str(error), []).append(one)
    if refused:
        reasons = [f"{_where(some, combinations)}: {reason}" for reason, some in refused.items()]
        count = len({one.name for some in refused.values() for one in some})
        raise StudyError(
            f"{count} of {len(combinations)} combinations of the sweep cannot run, so none was started. {' '.join(reasons)}"
        )
    return results


def _where(some: Sequence[Combination], all: Sequence[Combination]) -> str:
    """What the combinations with a problem have in common."""
    if len(some) == len(all):
        return "Every combination"
    for key, value in some[0].values.items():
        if list(some) == [one for one in all if one.values[key] == value]:
            return f"axes.{key} = {value!r}"
    return "; ".join(", ".join(f"axes.{key} = {value!r}" for key, value in one.values.items()) for one in some)


def _varies(key: str, values: Values, changed: str) -> bool:
    """Whether an axis sets a key of the study, alone or as part of a section."""
    if f"{key}.".startswith(f"{changed}."):
        return True
    inner = changed.removeprefix(f"{key}.").partition(".")[0]
    return changed.startswith(f"{key}.") and any(not isinstance(value, dict) or inner in value for value in values)


def _flat(axes: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Axes by dotted key, which TOML may hold as nested tables."""
    for key, value in axes.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _anchored(key: str, values: Any, folder: Path) -> Any:
    """The values of an axis with absolute paths where they exist relative to a folder."""
    if not isinstance(values, list):
        return values
    anchored = []
    for value in values:
        content: dict[str, Any] = {}
        _set(content, key, value)
        anchor_paths(content, folder)
        for part in key.split("."):
            content = content[part]
        anchored.append(content)
    return anchored


def _set(content: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; a table is merged into what is there."""
    *sections, last = key.split(".")
    for place in sections:
        inner = content.setdefault(place, {})
        if not isinstance(inner, dict):
            raise StudyError(f"{place!r} is a value, not a section of the study.")
        content = inner
    before = content.get(last)
    content[last] = (
        {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else copy.deepcopy(value)
    )


def _labels(key: str, values: Values) -> list[str]:
    """A short label for each value of an axis; the values in full if short ones are not distinct."""
    words = [_word(value) for value in values]
    if len({slug(word) for word in words}) < len(words):
        words = [str(value) for value in values]
    return words if key in PLAIN else [f"{key.rpartition('.')[2]} {word}" for word in words]


def _word(value: Any) -> str:
    """A value in short: the last part of a path or name."""
    if isinstance(value, dict):
        return _word(value.get("name") or value.get("source") or list(value.values()))
    if isinstance(value, list | tuple):
        return " ".join(map(_word, value))
    return value.rstrip("/").rpartition("/")[2].removeprefix("bundled:") if isinstance(value, str) else str(value)
