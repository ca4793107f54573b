"""What a stage is: a frozen dataclass whose fields are the parameters of one task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from layerprobe.files import digest
from layerprobe.store import Artifact, ArtifactMeta
from layerprobe.study import Study

if TYPE_CHECKING:
    from layerprobe.adaptation import Method
    from layerprobe.context import Context
    from layerprobe.data import CopyCount

Json = Any
Layer = int | str
"""A layer number, or in a plan without a model a symbol such as `last`."""

COLUMNS: Mapping[str, str] = {
    "method": "adaptation method",
    "seed": "training seed",
    "layer": "layer: 0 = embedding output, i = output of block i, L = last block",
    "unit": "what one row represents: `token`, or one pooled vector per example (`mean` or `cls`)",
    "measure": "name of the measure, as `layerprobe measures` lists it",
    "n": "number of examples",
    "side": "`base` or `adapted`",
    "example_id": "stable identifier of the example",
    "token_index": "position of the token in its example, from 0",
    "token": "the token, as the tokenizer writes it",
    "special": "whether it is a special token, such as [CLS]",
    "depth": "number of top blocks that the method trains: 0 for `head`, L for `full`; missing for a method without a depth",
    "is_control": "whether the method is a control that learns no task",
    "is_reference": "whether the row is of a reference without a model of its own, such as logistic regression",
    "concurrent_tasks": "largest number of tasks that ran at the same time, this one included",
}
"""Columns that have one meaning in all tables."""

ADDED: Mapping[str, tuple[str, ...]] = {
    "method": ("depth", "is_control", "is_reference"),
    "seconds": ("concurrent_tasks",),
}
"""Columns that the pipeline adds to tables that have a certain column."""


@dataclass(frozen=True)
class TableSpec:
    """A table that a stage writes: its name, what one row is, and the meaning of each column."""

    name: str
    description: str
    columns: Mapping[str, str]


def columns(*common: str, **special: str) -> dict[str, str]:
    """Meanings of a table's columns: names of common ones, and the others with their meaning.

    The columns that the pipeline adds are included.
    """
    meanings = {name: COLUMNS[name] for name in common} | special
    added = {name: COLUMNS[name] for column in ADDED if column in meanings for name in ADDED[column]}
    return added | meanings


@dataclass(frozen=True)
class StudyShape:
    """What decides the list of tasks: the study, and the number of layers where the model is at hand."""

    study: Study
    n_layers: int | None

    @cached_property
    def methods(self) -> tuple[Method, ...]:
        """The study's methods, those that leave the body unchanged first."""
        from layerprobe.adaptation import expand_methods

        methods = expand_methods(self.study.adaptation.methods, self.n_layers)
        return tuple(sorted(methods, key=lambda method: method.changes_body))

    def seeds(self, method: Method) -> tuple[int, ...]:
        """The seeds to train a method with; one where no seed changes the result."""
        return self.study.seeds if method.uses_seed else self.study.seeds[:1]

    @cached_property
    def runs(self) -> tuple[tuple[Method, int], ...]:
        """Every method with each of its seeds."""
        return tuple((method, seed) for method in self.methods for seed in self.seeds(method))

    @property
    def sae_layers(self) -> tuple[Layer, ...]:
        """Layers that get dictionaries: the study's, else an early, a middle and the last one."""
        if self.study.sae.layers is not None:
            return tuple(sorted(set(self.study.sae.layers)))
        if self.n_layers is None:
            return ("early", "middle", "last")
        last = self.n_layers
        return tuple(sorted({max(1, last // 4), max(1, last // 2), last}))


@dataclass(frozen=True)
class OodFacts:
    """What is known of an out-of-domain set."""

    name: str
    fingerprint: str
    classes: tuple[int, ...]
    left_out: tuple[str, ...] = ()
    """Ids of near copies of training and test examples, which were left out."""


@dataclass(frozen=True)
class ResolvedStudy:
    """A study with what only its data and model can tell; picklable, and all that a worker needs besides the task."""

    study: Study
    n_layers: int
    width: int
    device: str
    precision: Literal["bf16", "tf32", "fp32"]
    """Of training."""
    corpus: str
    """Fingerprint of the labelled examples."""
    encoder: str
    """Fingerprint of the encoder."""
    ood: tuple[OodFacts, ...]
    checkpoints: Mapping[str, Mapping[str, str]]
    """For each `checkpoint:PATH`, sha256 of each of its files."""
    sae_source: Literal["unseen", "train"]
    """Which examples the rows for dictionaries come from."""
    n_train: int
    n_test: int
    train_tokens: int
    captured_tokens: int
    """Tokens of the test examples whose every token is stored."""
    model_bytes: int
    """Size of the encoder's weights."""
    left_out: tuple[str, ...] = ()
    """Ids of near copies of test examples, which are not trained on."""
    sae_left_out: tuple[str, ...] = ()
    """Ids of near copies of training and test examples, which give no rows for dictionaries."""
    near_copies: tuple[CopyCount, ...] = ()
    """How many near copies were found in each part."""

    @cached_property
    def shape(self) -> StudyShape:
        return StudyShape(self.study, self.n_layers)

    @property
    def train_layers(self) -> tuple[int, ...]:
        """Layers whose pooled vectors of the training examples are stored: all for probes, else those with dictionaries and
        the last."""
        if "probes" in self.study.internals.parts:
            return tuple(range(self.n_layers + 1))
        return tuple(sorted({*self.sae_layers, self.n_layers}))

    @property
    def sae_layers(self) -> tuple[int, ...]:
        return tuple(layer for layer in self.shape.sae_layers if isinstance(layer, int))

    @property
    def texts(self) -> dict[str, Json]:
        """What decides the examples and their tokens, for identities."""
        data = self.study.data
        text = list(data.text) if isinstance(data.text, tuple) else data.text
        left_out = {"left_out": digest(list(self.left_out))} if self.left_out else {}
        return {
            "corpus": self.corpus,
            "split_seed": data.seed,
            "text": text,
            "label": data.label,
            "train": data.train,
            "test": data.test,
            "max_length": data.max_length,
            **left_out,
            **self._episodes,
        }

    @property
    def _episodes(self) -> dict[str, Json]:
        """What decides which examples a few-shot study trains on and compares layers on; empty for other studies."""
        few = self.study.few_shot
        if few is None:
            return {}
        names = ("ways", "shots", "queries", "within_group", "layer_tasks", "probes")
        return {"few_shot": {name: getattr(few, name) for name in names}}

    @property
    def dictionary_bytes(self) -> int:
        latents = int((self.study.sae.expansion or 4) * self.width)
        return 4 * (2 * latents * self.width + latents + self.width)


@dataclass(frozen=True)
class Stage:
    """One stage applied to particular parameters (its fields): a task.

    Tasks are hashable, picklable and printable. Subclasses state `name`, `version` and `tables`, list their tasks for a
    study, name their parents by role, and build one artifact from the parents' artifacts.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    """Raised when the result changes for the same input, so that older artifacts are not reused."""
    tables: ClassVar[tuple[TableSpec, ...]] = ()
    keyed_by_content: ClassVar[bool] = False
    """Whether the identity alone decides the key, so that equal content made in two ways is one artifact."""
    resumable: ClassVar[bool] = False
    """Whether a build resumes from what an interrupted one left in its folder."""
    few_shot: ClassVar[bool] = False
    """Whether it belongs to few-shot studies; a study consists of the stages of its kind alone."""
    accelerator: ClassVar[bool] = False
    """Whether it computes on the study's device."""
    on_cpu: ClassVar[str] = ""
    """What it computes on the CPU although another device is set, such as a fit of scikit-learn; `layerprobe doctor` and
    `docs/accelerators.md` list it. Required of stages without `accelerator`."""
    opened: ClassVar[str | None] = None
    """Folder of the artifact that people may open on its own, such as a checkpoint."""
    first_guess: ClassVar[float] = 2.0
    """Seconds to expect where nothing is known from earlier runs."""
    study_keys: ClassVar[Mapping[str, str]] = {}
    """Study keys behind the library arguments that its errors mention."""

    @property
    def title(self) -> str:
        """What the task is about, for people."""
        return "all methods"

    @property
    def id(self) -> str:
        return f"{self.name}: {self.title}"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        """The tasks of this stage in a study."""
        return ()

    def parents(self) -> Mapping[str, Stage]:
        """The tasks whose artifacts this one reads, by role."""
        return {}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        """What decides the result, besides the parents' keys; reads no artifact."""
        return {}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        """Write the artifact's files into an empty folder."""
        raise NotImplementedError

    def size(self, study: ResolvedStudy) -> int:
        """Bytes that the artifact takes, estimated from above."""
        return 0

    def memory(self, study: ResolvedStudy) -> int:
        """Bytes of memory to reserve for it where a scheduler places tasks by memory."""
        return 1_500_000_000 + 4 * study.model_bytes + self.size(study)

    def content(self, folder: Path) -> Mapping[str, str]:
        """Digests of the content, for children that are keyed by it."""
        return {}

    def checksums(self, folder: Path) -> Mapping[str, str]:
        """sha256 of files that the build has hashed while writing them, by relative path."""
        return {}

    def key(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> str:
        """The artifact's key: sha256 of stage, version, identity and the parents' keys."""
        identity = self.identity(study, parents)
        keys = {} if self.keyed_by_content else {role: parent.key for role, parent in parents.items()}
        return digest({"stage": self.name, "version": self.version, "identity": identity, "parents": keys})


@dataclass(frozen=True)
class ModelStage(Stage):
    """A stage that is applied to one model: the base, or the model of one method and seed."""

    method: Method | None = None
    """None for the base."""
    seed: int | None = None

    @classmethod
    def of_base(cls) -> Self:
        return cls()

    @property
    def side(self) -> Literal["base", "adapted"]:
        return "base" if self.method is None else "adapted"

    @property
    def title(self) -> str:
        return "base" if self.method is None else f"{self.method.name} seed {self.seed}"

    @property
    def number_of_seed(self) -> int:
        """The training seed, which every adapted model has."""
        assert self.seed is not None
        return self.seed

    @property
    def named(self) -> dict[str, Json]:
        """Method and seed, as columns of a table and as part of an identity."""
        assert self.method is not None
        return {"method": self.method.name, "seed": self.seed}


@dataclass(frozen=True)
class LayerStage(ModelStage):
    """A stage that is applied to one layer of one model."""

    layer: Layer = 0

    @property
    def title(self) -> str:
        return f"{super().title} layer {self.layer}"

    @property
    def number(self) -> int:
        """The layer as a number: symbols stand for layers only in plans without a model."""
        assert isinstance(self.layer, int)
        return self.layer

    @property
    def named(self) -> dict[str, Json]:
        return {**super().named, "layer": self.number}
