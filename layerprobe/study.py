"""A study: what is computed for one model and one data set, read from TOML and validated."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field, StrictBool, StrictInt, StrictStr, ValidationError

from layerprobe import hub
from layerprobe.energy_section import EnergySection
from layerprobe.errors import Mistakes, StudyError
from layerprobe.files import given_path
from layerprobe.section_types import Count, FiniteRate, Rate, Section, Seed, as_tuple, listed

Unit = Literal["token", "mean", "cls"]
Control = Literal["untrained", "frozen-decoder", "soft-frozen-decoder", "frozen-encoder", "second-seed"]
Part = Literal["probes", "weights", "interventions"]


class ModelSection(Section):
    name: StrictStr
    """`bundled:minilm-l6`, a local checkpoint folder, or a Hub id such as `google-bert/bert-base-uncased`."""
    revision: StrictStr | None = None
    """Branch, tag or commit of a Hub model; the run records the commit."""
    trust_remote_code: StrictBool = False
    """Whether code from the model's folder may run. Leave it off unless you have read that code."""


class OodSection(Section):
    name: StrictStr
    """Name of the set in the tables."""
    source: StrictStr
    """As `data.source`."""
    config: StrictStr | None = None
    """As `data.config`."""
    revision: StrictStr | None = None
    """As `data.revision`."""
    text: Annotated[StrictStr | tuple[StrictStr, StrictStr] | None, BeforeValidator(as_tuple)] = None
    """As `data.text`."""
    label: StrictStr | None = None
    """As `data.label`; each of its labels is a label of the data."""
    rows: Count | None = None
    """Number of examples to evaluate on. Default: all."""


class DataSection(Section):
    source: StrictStr
    """`bundled:tweets`, `bundled:bbc-news`, `bundled:icd10`, a local CSV, TSV, JSONL or Parquet file, a folder that
    `save_to_disk` of `datasets` wrote, or a `datasets` Hub id."""
    config: StrictStr | None = None
    """Configuration of a Hub data set."""
    revision: StrictStr | None = None
    """Branch, tag or commit of a Hub data set."""
    text: Annotated[StrictStr | tuple[StrictStr, StrictStr] | None, BeforeValidator(as_tuple)] = None
    """Column that holds the text, or two columns for sentence pairs. Default: `text`, or the bundled set's own."""
    label: StrictStr | None = None
    """Column that holds the label. Default: `label`, or the bundled set's own."""
    group: Annotated[StrictStr, Field(min_length=1)] | None = None
    """Column that holds a coarser label, for few-shot studies: all classes of a group are in one part. Default: none, or the
    bundled set's own. (For what must not be split otherwise, such as the texts of one author, see `data.group_column`.)"""
    test_source: StrictStr | None = None
    """A second source of the same columns, as `data.source`, for the test examples. Default: a test split of the source if it
    has one, else a part of the source."""
    split_column: StrictStr | None = None
    """Column that assigns each row to a split: train, validation or test. Validation rows are tested on if none is test, and
    are left out otherwise. Default: none."""
    group_column: StrictStr | None = None
    """Column whose equal values (author, document, patient) mark examples that stay in one part of the split, so that nothing
    leaks from training to test. Unlike `data.group` it has nothing to do with labels. Default: none."""
    on_missing: Literal["error", "drop"] = "error"
    """Whether a row without text, label or group is an error, or is left out and counted."""
    labels: dict[StrictStr, StrictStr] = Field(default_factory=dict)
    """A checkpoint's label -> the data's, such as `{"LABEL_0" = "negative"}`. Default: labels are matched by their names;
    labels that have none (`LABEL_0`, ...) are taken in the data's sorted order."""
    train: Count | None = None
    """Number of training examples. Default: 2,000, or 80% of the data set if that is less."""
    test: Count | None = None
    """Number of test examples. Default: 500, or 20% of the data set if that is less."""
    max_length: Annotated[StrictInt, Field(ge=4)] = 128
    """Largest number of tokens per example, special tokens included; longer examples are truncated."""
    near_duplicates: Literal["remove", "keep"] = "remove"
    """Whether near copies are removed (of test examples from the training part, of training and test examples from the
    examples for dictionaries and from out-of-domain sets) or only counted."""
    seed: Seed = 0
    """Seed of the split. All training seeds share one split, and so one test set."""
    ood: Annotated[tuple[OodSection, ...], BeforeValidator(as_tuple)] = ()
    """Out-of-domain sets (`[[data.ood]]`) on which quality is measured as well."""


class AdaptationSection(Section):
    methods: Annotated[tuple[StrictStr, ...] | Literal["depths"], BeforeValidator(listed)] = ("head", "full")
    """`head`, `head:mean`, `head:cls`, `top:k`, `full`, `full:equal-step`, `lp-ft`, `bitfit`, `lora:r`, `lora:r@layers`,
    `checkpoint:PATH` (a folder with a classifier, or with a LoRA adapter of `model.name`), and the control
    `shuffled-labels`; or "depths" for head, top:1 ... top:L and full."""
    epochs: Count = 2
    """Passes over the training examples (`head` is trained to convergence instead)."""
    batch_size: Count = 16
    """Examples per training batch."""
    learning_rate: Rate = 5e-5
    """Peak learning rate of AdamW for `top:k`, `full`, `lp-ft` and `shuffled-labels`."""
    head_learning_rate: Rate | None = None
    """Learning rate of `head`. Default: chosen on a validation part of the training examples."""
    learning_rates: dict[StrictStr, Rate] = Field(default_factory=dict)
    """Peak learning rates of individual methods, such as `{"lora:8" = 1e-3}`; the others keep their defaults."""
    search: StrictBool = False
    """Whether to choose each method's learning rate on a validation part of the training examples."""
    tuning: Literal["default", "equal"] = "default"
    """How much each method's setting is tuned. `default`: heads and logistic regression choose their penalty among several on
    held-out training examples; the others are trained at one learning rate, or with `search` at the best of three. `equal`:
    every method chooses among three values (a third of its default, itself, three times it) by the cross-entropy on the same
    15% of the training examples."""
    pooling: Literal["model", "mean", "cls"] = "model"
    """What the head reads: the family's own head, the mean over tokens, or the first token; one for all methods except
    `head:mean` and `head:cls`."""
    checkpoints: Count | None = None
    """Number of evenly spaced checkpoints kept during training, on which transfer is measured. Default: none."""
    margin: Rate = 0.01
    """Non-inferiority margin: the loss of accuracy relative to `full` below which a shallower depth is sufficient."""


class ActivationsSection(Section):
    examples: Count = 500
    """Number of test examples whose tokens are stored; pooled vectors are stored for all test examples."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the stored activations. float16 halves the disk space and is refused if a value overflows."""


class SimilaritySection(Section):
    measures: Annotated[tuple[StrictStr, ...], BeforeValidator(listed), Field(min_length=1)] = (
        "paired_cosine",
        "paired_cosine_baseline",
        "cka",
        "procrustes",
    )
    """Measures that compare base with adapted, by function name; `layerprobe measures` lists them."""
    units: Annotated[tuple[Unit, ...], BeforeValidator(listed), Field(min_length=1)] = ("token", "mean", "cls")
    """What one row represents: a token, the mean over an example's tokens, or its first token."""
    shuffles: Count = 19
    """Permutations of whole examples that make the null; a value beyond all of 19 is significant at 5%."""
    random_changes: Annotated[StrictInt, Field(ge=0)] = 3
    """Random changes of the weights, of the same norms as those of a method, that its drift is compared with; 0 for none."""


class SaeSection(Section):
    layers: Annotated[tuple[StrictInt, ...] | None, BeforeValidator(listed)] = None
    """Layers on which dictionaries are trained. Default: an early, a middle and the last layer. `[]`: none."""
    architecture: StrictStr = "topk"
    """Kind of sparse autoencoder: a row of `layerprobe.sae.architectures`, such as `topk`, `batchtopk` or `jumprelu`."""
    expansion: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """Latents per dimension of the layer. Default: four, fewer if there are few rows."""
    k: Count | None = None
    """Active latents per token, in the TopK family. Default: one per twelve dimensions."""
    rows: Count = 60_000
    """Number of token rows per layer and side on which dictionaries are trained."""
    controls: Annotated[tuple[Control, ...], BeforeValidator(listed)] = (
        "untrained",
        "frozen-decoder",
        "second-seed",
    )
    """Control dictionaries: untrained; trained with a frozen random decoder, with a random decoder whose directions keep a
    cosine of .8 with their start, or with a frozen random encoder, each on both sides; trained from a second seed."""
    crosscoder: StrictBool = True
    """Whether to train a crosscoder on base and adapted rows, which separates shared from exclusive features."""
    census_nulls: Annotated[StrictInt, Field(ge=0)] = 0
    """Crosscoders without exclusive features to train per layer, with which exclusive latents are compared. With 0 their
    number is reported without a conclusion; with n, at least 20 / n of them can be shown."""


class InternalsSection(Section):
    parts: Annotated[tuple[Part, ...], BeforeValidator(listed)] = ("probes", "weights", "interventions")
    """Analyses of the adapted model: linear probes by layer, change of weights, interventions on layers."""
    examples: Count = 250
    """Number of test examples for repeated runs of the classifier: with blocks reset to base weights, or a layer
    replaced by its reconstruction."""


class FewShotSection(Section):
    """Few-shot tasks instead of one classifier: a study with this section compares inner loops, and nothing else."""

    ways: Annotated[StrictInt, Field(ge=2)] = 5
    """Classes per episode."""
    shots: Count = 5
    """Support examples per class, which the inner loop adapts to."""
    queries: Count = 10
    """Query examples per class, which accuracy is measured on."""
    within_group: StrictBool = False
    """Whether all classes of an episode are of one group (`data.group`), which is harder."""
    inner: Annotated[tuple[StrictStr, ...], BeforeValidator(listed), Field(min_length=1)] = ("head", "full")
    """How deep the inner loop adapts: `head` (ANIL), `top:k`, `full` (MAML) or `body` (BOIL)."""
    inner_steps: Count = 5
    """Gradient steps of the inner loop."""
    inner_rate: FiniteRate | None = None
    """Rate of the inner loop at all depths. Default: each depth has its own, the best of `few_shot.rate_grid`."""
    inner_rates: dict[StrictStr, FiniteRate] = Field(default_factory=dict)
    """Rates of individual depths, such as `{full = 0.05}`, which are not chosen."""
    rate_grid: Annotated[tuple[FiniteRate, ...], BeforeValidator(listed), Field(min_length=1)] = (
        0.03,
        0.1,
        0.3,
        1.0,
        3.0,
    )
    """Inner rates that are tried at each depth; the one with the lowest loss on the meta-validation episodes, before
    meta-training, is used."""
    first_order: StrictBool = False
    """Whether meta-gradients leave out second derivatives."""
    learned_rates: StrictBool = False
    """Whether the outer loop learns an inner rate per block."""
    l2: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """L2 penalty of the head in the inner loop, which makes its loss strongly convex."""
    outer: StrictStr = "full"
    """What the outer loop trains: `full`, or `top:k`, whose frozen blocks are computed once."""
    outer_steps: Count = 100
    """Largest number of outer steps."""
    outer_rate: Rate = 2e-5
    """Adam's rate in the outer loop."""
    tasks_per_step: Count = 4
    """Episodes per outer step."""
    validate_every: Count = 10
    """Outer steps between validations."""
    validation_tasks: Count = 20
    """Episodes per validation."""
    patience: Count | None = 5
    """Validations without a lower loss after which meta-training stops."""
    keep_steps: Annotated[tuple[Count, ...], BeforeValidator(listed)] = ()
    """Outer steps after which the parameters of meta-trained bodies are kept, for studies of energy; meta-training does not stop
    early before the last of them. The start (0) needs no entry."""
    test_tasks: Annotated[StrictInt, Field(ge=8)] = 200
    """Episodes of meta-test classes that accuracy is measured on, the same for all."""
    layer_tasks: Annotated[StrictInt, Field(ge=2)] = 10
    """Episodes after whose inner loops the layers are compared with those before."""
    probes: Annotated[StrictInt, Field(ge=50)] = 2000
    """Meta-test examples that layers are compared on, outside the supports of those episodes."""
    baselines: Annotated[
        tuple[Literal["pretrained", "random", "multiclass", "multitask"], ...], BeforeValidator(listed)
    ] = ("pretrained", "random", "multiclass", "multitask")
    """Bodies without meta-training: pretrained, with random weights, or fine-tuned on the meta-train classes (as one
    classifier of all of them, or on episodes with one shared head and no inner loop)."""
    dictionaries: StrictBool = False
    """Whether to train the dictionaries of the section `sae` on the pretrained and on each meta-trained body, and to match
    them."""
    convergence: StrictBool = False
    """Whether to compare the convergence of the outer loop by number of inner steps and geometry of the inner loss."""


class Study(Section):
    """One question asked of one model and one data set."""

    name: StrictStr = "study"
    """Name of the run folder. Default: the name of the file."""
    question: StrictStr = "What did fine-tuning do to every layer?"
    """The question at the head of the report."""
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(listed), Field(min_length=1)] = (0,)
    """Training seeds; each method is trained once per seed."""
    model: ModelSection
    data: DataSection
    adaptation: AdaptationSection = AdaptationSection()
    activations: ActivationsSection = ActivationsSection()
    similarity: SimilaritySection = SimilaritySection()
    sae: SaeSection = SaeSection()
    internals: InternalsSection = InternalsSection()
    few_shot: FewShotSection | None = None
    energy: EnergySection | None = None

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> Study:
        """Read a study from a TOML file, then apply `section.key=value` overrides.

        Paths in the file are relative to the file's folder, paths in overrides to the working folder. A single word or number
        stands for a list of one.

        Raises:
            StudyError: if the file is missing or is not TOML, or if a key or value is invalid.
        """
        content = read_content(path)
        for override in overrides:
            apply_override(content, override)
        return cls.parse(content, origin=str(path))

    @classmethod
    def parse(cls, content: Mapping[str, Any], *, origin: str = "the study") -> Study:
        """Validate a study given as nested dictionaries.

        Raises:
            StudyError: naming the key, its value, what is allowed, and for an unknown key the nearest valid one.
        """
        mistakes = Mistakes()
        try:
            study = cls.model_validate(content)
        except ValidationError as error:
            mistakes.found = [StudyError(f"{origin}: {_full_stop(_sentence(e).rstrip('.'))}") for e in error.errors()]
            mistakes.report()
            raise
        named = [one.name for one in study.data.ood]
        for key, values in (
            ("seeds", study.seeds),
            ("similarity.units", study.similarity.units),
            ("similarity.measures", study.similarity.measures),
            ("sae.controls", study.sae.controls),
            ("internals.parts", study.internals.parts),
            ("data.ood.name", (*named, "test")),
        ):
            if len(set(values)) != len(values):
                mistakes.add(f"{origin}: {key} = {list(values)} lists a value twice; list each once.")
        mistakes.report()
        if study.data.test_source is not None and study.data.split_column is not None:
            raise StudyError(
                f"{origin}: data.test_source and data.split_column both say which examples are tested on; leave one out."
            )
        if study.few_shot is not None:
            for key in ("test_source", "split_column", "group_column"):
                if getattr(study.data, key) is not None:
                    raise StudyError(
                        f"{origin}: data.{key} = {getattr(study.data, key)!r} has no meaning in a few-shot study, which divides "
                        "classes and not examples; leave it out (data.group keeps the classes of a group in one part)."
                    )
        if not slug(study.name):
            raise StudyError(f"{origin}: name = {study.name!r} has no letter or digit to name a folder with.")
        return study

    @classmethod
    def from_data(
        cls,
        data: Any,
        /,
        *,
        model: str | Mapping[str, Any],
        text: str | tuple[str, str] = "text",
        label: str = "label",
        home: str | Path | None = None,
        **sections: Any,
    ) -> Study:
        """A study of data in memory, which is written to `<home>/data/<sha256>.parquet`; the study refers to that file.

        Only the columns that the study names are written, and equal data gives the same file.

        Args:
            data: (given by position) a pandas DataFrame, a `datasets.Dataset`, or a `datasets.DatasetDict`, whose test split (else validation
                split) is tested on.
            model: `model.name`, or the section `model` as a dictionary.
            text: column of the text, or two columns for pairs.
            label: column of the label.
            home: as in `run`; by default `$LAYERPROBE_HOME` or the user's cache folder.
            **sections: the other keys and sections of the study, such as `name="mine"`, `adaptation={"methods": ["head"]}`
                or `data={"train": 500, "group_column": "author"}`.

        Raises:
            StudyError: as `parse`.
            DataError: if the data is of another type, is empty, or lacks a column.
        """
        from layerprobe.data import DataSource, save_data
        from layerprobe.errors import DataError
        from layerprobe.files import home as default_home

        section = dict(sections.pop("data", {}))
        for key in ("source", "text", "label"):
            if key in section:
                raise StudyError(
                    f"Study.from_data: data.{key} is given by the argument {'data' if key == 'source' else key}; leave it out "
                    "of the section data."
                )
        named = {"name": model} if isinstance(model, str) else dict(model)
        content = {**sections, "model": named, "data": {**section, "source": "data", "text": text, "label": label}}
        study = cls.parse(content, origin="Study.from_data")  # wrong keys are found before anything is written
        given = study.data
        source = DataSource(
            name="data",
            text=given.text,
            label=given.label,
            group=given.group,
            split_column=given.split_column,
            group_column=given.group_column,
        )
        folder = (default_home() if home is None else Path(home)) / "data"
        try:
            saved = save_data(data, source, folder.absolute())
        except DataError as error:
            keys = ("group", "split_column", "group_column")
            raise DataError(error.with_names({key: f"data.{key}" for key in keys})) from error
        content["data"]["source"] = str(saved.path)
        if given.test_source is None and saved.split_column is not None:
            content["data"]["split_column"] = saved.split_column
        return cls.parse(content, origin="Study.from_data")

    def resolved(self) -> dict[str, Any]:
        """The study with every default filled in, as plain JSON values."""
        return json.loads(self.model_dump_json())


def slug(text: str) -> str:
    """A name reduced to lower-case letters, digits and single hyphens, safe as a folder name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-")


def read_content(path: str | Path) -> dict[str, Any]:
    """The content of a study file before it is validated, with the default name and absolute paths.

    Raises:
        StudyError: if the file is missing or is not TOML.
    """
    path = given_path(path)
    content = read_toml(path, "study")
    content.setdefault("name", slug(path.stem))
    anchor_paths(content, path.parent)
    return content


def read_toml(path: Path, kind: str) -> dict[str, Any]:
    """The content of a TOML file.

    Args:
        path: the file.
        kind: what it holds, for messages: `study` or `sweep`.

    Raises:
        StudyError: if the file is missing or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors write a byte order mark
    except FileNotFoundError:
        raise StudyError(f"There is no {kind} file {path}; name a TOML file, such as one of `analyses/`.") from None
    except IsADirectoryError:
        raise StudyError(f"{path} is a folder, not a {kind}; name a TOML file in it.") from None
    except PermissionError:
        raise StudyError(f"The {kind} file {path} cannot be read: permission denied.") from None
    except UnicodeDecodeError:
        raise StudyError(f"The {kind} file {path} is not UTF-8 text; save it as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"The {kind} file {path} is not valid TOML: {error}.") from None
    except RecursionError:
        raise StudyError(f"The {kind} file {path} is nested too deeply; no value of a {kind} is.") from None
    except (ValueError, OSError) as error:  # such as a number of a million digits
        raise StudyError(f"The {kind} file {path} cannot be read: {error}.") from None


def anchor_paths(content: dict[str, Any], folder: Path) -> None:
    """Make the paths of a study file absolute; those that are nowhere are reported as missing in the file's folder."""

    def absolute(value: Any, may_be_hub: bool = True) -> Any:
        if not isinstance(value, str) or ":" in value or value.startswith("~"):
            return value
        missing = not os.path.exists(value) and not (may_be_hub and hub.is_hub_id(value))
        try:
            return str((folder / value).resolve()) if os.path.exists(folder / value) or missing else value
        except (OSError, ValueError, RuntimeError):  # too long, or not a path: what reads it says so
            return value

    data = content.get("data")
    further = data.get("ood") if isinstance(data, dict) else None
    places = [(content.get("model"), "name"), (data, "source"), (data, "test_source")]
    for table, key in [*places, *((one, "source") for one in (further if isinstance(further, list) else []))]:
        if isinstance(table, dict) and key in table:
            table[key] = absolute(table[key])
    methods = content.get("adaptation", {}).get("methods") if isinstance(content.get("adaptation"), dict) else None
    if isinstance(methods, str):
        methods = content["adaptation"]["methods"] = methods if methods == "depths" else [methods]
    if isinstance(methods, list):
        for i, method in enumerate(methods):
            if isinstance(method, str) and method.startswith("checkpoint:"):
                methods[i] = "checkpoint:" + absolute(method.removeprefix("checkpoint:"), may_be_hub=False)


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set a key of a study's content, given as `section.key=value`.

    Raises:
        StudyError: if it is not of that form.
    """
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise StudyError(f"--set {override!r} is not of the form section.key=value; for example --set data.train=500.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except RecursionError:
        raise StudyError(f"--set {override[:60]!r}… is nested too deeply; no value of a study is.") from None
    except ValueError:
        value = text.strip()
    table = content
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise StudyError(f"--set {override!r}: {part!r} is a value, not a section.")
    table[parts[-1]] = value


def _full_stop(text: str) -> str:
    return text if text.endswith("?") else f"{text}."


def _sentence(error: Any) -> str:
    location = [part for part in error["loc"] if isinstance(part, str) and part in _KEYS] or list(error["loc"][:1])
    where = ".".join(str(part) for part in location)
    given = error.get("input")
    if error["type"] == "extra_forbidden":
        unknown = ".".join(str(part) for part in error["loc"])
        unknown = unknown if len(unknown) <= 200 else f"{unknown[:200]}…"
        known = _known_keys(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"the keys there are {', '.join(known)}."
        return f"unknown key {unknown!r}; {hint}"
    if error["type"] == "missing":
        needs = (
            "each [[data.ood]] needs a name and a source"
            if "ood" in where
            else "a study needs model.name and data.source"
        )
        return f"{where} is missing; {needs}."
    field = _field(error["loc"])
    meaning = f" ({' '.join(field.split()).rstrip('.')})" if field else ""
    return f"{where} = {_shown(given)}: {error['msg'][0].lower()}{error['msg'][1:]}{meaning}"


def _shown(value: Any) -> str:
    """A value of a study as messages show it."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        return "a value that cannot be shown"
    return text if len(text) <= 200 else f"{text[:200]}…"


_SECTIONS: dict[str, type[Section]] = {
    name: kind
    for name, info in Study.model_fields.items()
    for kind in (info.annotation, *get_args(info.annotation))
    if isinstance(kind, type) and issubclass(kind, Section)
}
_KEYS = set(Study.model_fields) | {key for section in _SECTIONS.values() for key in section.model_fields}


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    if location[:2] == ("data", "ood"):
        return list(OodSection.model_fields)
    model = _SECTIONS.get(str(location[0])) if location else Study
    return list(model.model_fields) if model else []


def _field(location: tuple[Any, ...]) -> str | None:
    model: type[BaseModel] | None = Study
    for part in location:
        if model is None or part not in model.model_fields:
            break
        info = model.model_fields[part]
        if part in _SECTIONS and model is Study:
            model = _SECTIONS[part]
        else:
            return info.description
    return None


STUDY_KEYS = {
    "method": "adaptation.methods",
    "methods": "adaptation.methods",
    "epochs": "adaptation.epochs",
    "batch_size": "adaptation.batch_size",
    "learning_rate": "adaptation.learning_rate",
    "learning_rates": "adaptation.learning_rates",
    "pooling": "adaptation.pooling",
    "tuning": "adaptation.tuning",
    "margin": "adaptation.margin",
    "architecture": "sae.architecture",
    "expansion": "sae.expansion",
    "k": "sae.k",
    "measures": "similarity.measures",
    "draws": "similarity.shuffles",
    "dtype": "activations.dtype",
    "token_examples": "activations.examples",
    "max_length": "data.max_length",
    "labels": "data.labels",
    "precision": "--precision",
    "device": "--device",
}
"""Study keys and options behind the arguments that the libraries' errors mention."""
