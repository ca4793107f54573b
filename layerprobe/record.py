"""The typed record of a run: what `run.json` holds, and what the report knows of methods, measures and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from layerprobe.errors import StorageError
from layerprobe.files import digest, os_problem, write_json

CHECKSUM = "checksum"
"""Key of `run.json` with the sha256 of the rest of it, as `files.digest` computes it."""
SCHEMA: Literal[2] = 2
"""Version of `run.json`; raised whenever a field is added, removed or changes its meaning."""


class _Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, validate_assignment=True, validate_by_name=True
    )


class StudyRecord(_Model):
    """The study of a run."""

    given: str | None
    """Text of the study file, None for a study that was made in Python."""
    resolved: dict[str, Any]
    """The study with every default filled in."""


class Provenance(_Model):
    """Versions, commit, machine and time."""

    git_commit: str | None = None
    """Commit of the checkout that was run, None for an installed package."""
    git_dirty: bool | None = None
    """Whether tracked files of that checkout were changed."""
    python: str
    """Version of Python."""
    platform: str
    """Operating system and processor."""
    packages: dict[str, str]
    """Version of each package that the numbers depend on."""
    device: str
    """Device that was computed on: `cpu`, `cuda` or `mps`."""
    precision: str | None = None
    """Precision of fine-tuning, such as `bf16`; None until it is known."""
    started: str
    """Time of the start, ISO 8601 with time zone."""
    finished: str | None = None
    """Time of the end, None while running."""
    seconds: float | None = None
    """Wall-clock seconds of the run, reused tasks excluded."""


class DataRecord(_Model):
    """The data set of a run."""

    name: str
    """Name of the source, such as `bundled:tweets`."""
    label_names: list[str]
    """Labels in the order of their class numbers."""
    n_train: int
    """Number of training examples."""
    n_test: int
    """Number of test examples."""
    n_unseen: int
    """Number of examples in neither part."""
    notes: list[str]
    """Sentences about what was left out, cut or changed."""
    fingerprint: str
    """sha256 of the examples."""
    revision: str | None = None
    """Revision on the Hub, None for local and bundled data."""


class EncoderRecord(_Model):
    """The pretrained model of a run."""

    name: str
    """Name or path of the model."""
    family: str
    """Family, such as `bert`."""
    n_layers: int
    """Number of blocks, L."""
    width: int
    """Features of a hidden state."""
    fingerprint: str
    """sha256 of the weights."""
    pooler: str
    """Whether there is a pretrained pooler."""
    revision: str | None = None
    """Revision on the Hub, None for local and bundled models."""


class TaskRecord(_Model):
    """One finished task."""

    stage: str
    """Name of the stage, such as `capture`."""
    name: str
    """Name of the task within its stage."""
    key: str
    """Key of its artifact."""
    seconds: float
    """Wall-clock seconds when the artifact was computed."""
    reused: bool
    """Whether the artifact existed before this run."""
    concurrent: int = 1
    """Largest number of tasks that ran at the same time as this one, itself included."""


class Finding(_Model):
    """A sentence of the answer."""

    text: str
    """The sentence, plain text."""
    figure: str
    """Name of the figure, or id of the section of the page, that shows its numbers."""


class Conclusion(_Model):
    """The smallest sufficient depth, by non-inferiority tests on paired test examples."""

    reference: str
    """Method that the others are compared with."""
    margin: float
    """Loss of accuracy that still counts as none."""
    alpha: float
    """One-sided level of each test."""
    smallest: str | None
    """Shallowest method that was shown to be sufficient, None if there is none."""
    undecided: str | None
    """Deepest method that was shown to be neither sufficient nor inferior, None if there is none."""
    needed: int | None
    """Number of test examples that could decide about `undecided`."""
    sentence: str
    """The conclusion in words."""
    n: int
    """Number of test examples."""
    seeds: int
    """Number of training seeds."""
    conditional_on_seeds: bool
    """Whether intervals cover these seeds only, and not further trainings."""
    critical_value: float | None = None
    """Critical value of each test, of the t distribution with `df` degrees of freedom, else of the normal one."""
    df: int | None = None
    """Number of seeds minus 1; None if conditional on seeds."""
    order: list[str] = []
    """Methods in the order in which they were tested."""
    frozen: str | None = None
    """The model without a trained block that is best on held-out training examples, None if there is none."""
    left_out: dict[str, str]
    """Methods that were not compared, with the reason."""


class TableRecord(_Model):
    """One table of a run."""

    description: str
    """What one row is."""
    columns: dict[str, str]
    """Meaning of each column, in the order of the table; empty if it is not documented."""
    rows: int
    """Number of rows."""
    sha256: str
    """Checksum of the Parquet file."""

    def __str__(self) -> str:
        lines = [f"{self.description} ({self.rows:,} rows)"]
        width = max(map(len, self.columns), default=0)
        return "\n".join([*lines, *(f"  {name:{width}}  {meaning}" for name, meaning in self.columns.items())])

    __repr__ = __str__


class MeasureRecord(_Model):
    """A similarity measure, as far as figures and sentences depend on it."""

    name: str
    """Name of the function in `layerprobe.similarity`, and value of the column `measure`."""
    label: str
    """Name on axes."""
    kind: Literal["similarity", "distance"]
    """Whether larger values mean more alike or more different."""
    low: float | None
    """Smallest possible value, None if there is no bound."""
    high: float | None
    """Largest possible value, None if there is no bound."""
    symmetric: bool
    """Whether the order of the two sides is irrelevant."""
    exact: bool = True
    """Whether identical sides give exactly the value of no change; not so for a measure that is fitted and cross-validated."""
    baseline_of: str | None = None
    """The measure whose value on unrelated rows this is, None for a measure of its own."""
    citation: str
    """Source of the definition."""

    @property
    def unchanged(self) -> float:
        """The value of identical sides."""
        return 0.0 if self.kind == "distance" else 1.0


class MethodRecord(_Model):
    """An adaptation method of the study."""

    name: str
    """Name in the study, and value of the column `method`."""
    label: str | None = None
    """Short name for axes where the name is long, such as that of a checkpoint's path."""
    depth: int | None
    """Number of top blocks that are trained: 0 for `head`, L for `full`; None for a method without a depth."""
    trains_embeddings: bool = False
    """Whether the embeddings are trained, which distinguishes `full` from `top:L`."""
    is_control: bool = False
    """Whether it is a control that learns no task."""
    uses_seed: bool = True
    """Whether a training seed changes the result."""
    changes_body: bool = True
    """Whether any layer of the body can change."""

    @property
    def is_full(self) -> bool:
        """Whether it is full fine-tuning: every block and the embeddings."""
        return self.depth is not None and self.trains_embeddings


class ArtifactRecord(_Model):
    """A folder in the artifact store that can be opened on its own."""

    stage: str
    """Stage that wrote it: `adapt` (a checkpoint for transformers), `capture` (an activation store), `sae` (for sae-lens)."""
    name: str
    """Name of the task."""
    folder: str
    """Absolute path of the folder to open."""


class RunRecord(_Model):
    """The content of `run.json`."""

    schema_version: Literal[2] = Field(default=SCHEMA, alias="schema")
    """Version of this record, `schema` in the file."""
    status: Literal["running", "complete", "failed", "interrupted"] = "running"
    """State of the run: `interrupted` by Ctrl-C or SIGTERM, `failed` by an error; still `running` if the process was killed."""
    name: str
    """Name of the study."""
    question: str
    """Question of the study."""
    study: StudyRecord
    """The study as given and as resolved."""
    command: str
    """Command that repeats the run."""
    provenance: Provenance
    """How the run came about."""
    data: DataRecord | None = None
    """The data set, None until it is read."""
    encoder: EncoderRecord | None = None
    """The pretrained model, None until it is read."""
    tasks: list[TaskRecord] = []
    """Finished tasks in order."""
    findings: list[Finding] = []
    """The answer in sentences."""
    error: str | None = None
    """Why the run failed, None if it did not."""
    recomputed: list[str] = []
    """Damaged artifacts that were computed again."""
    sufficiency: Conclusion | None = None
    """Conclusion about depth, None if methods were not compared."""
    tables: dict[str, TableRecord] = {}
    """Tables of the run by name."""
    measures: list[MeasureRecord] = []
    """Similarity measures that were computed, baselines included."""
    methods: list[MethodRecord] = []
    """Adaptation methods of the study; baselines in the table `adaptation` are not among them."""
    artifacts: list[ArtifactRecord] = []
    """Folders of adapted models, SAEs and activations."""

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values, as `run.json` holds them."""
        return self.model_dump(mode="json", by_alias=True)

    def write(self, path: Path) -> None:
        """Write `run.json`, with a checksum of its own content under the key `checksum`."""
        content = self.to_json()
        write_json(path, {**content, CHECKSUM: digest(content)})

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Read `run.json`.

        Raises:
            FileNotFoundError: if there is no such file.
            StorageError: if it is damaged or of another schema; the message names the command that repeats the run.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(f"{os_problem(error, path)}; run the study again.") from None
        except RecursionError:
            raise StorageError(f"{path} is damaged (it is nested too deeply); run the study again.") from None
        except ValueError as error:
            raise StorageError(f"{path} is damaged ({error}); run the study again.") from None
        command = value.get("command") if isinstance(value, dict) else None
        repeat = f"repeat the run with: {command}" if isinstance(command, str) and command else "run the study again."
        version = value.get("schema") if isinstance(value, dict) else None
        if version != SCHEMA or isinstance(version, bool | float):
            raise StorageError(f"{path} has schema {version!r:.40}, but this version reads schema {SCHEMA}; {repeat}")
        # Records of earlier versions have no checksum.
        expected = value.pop(CHECKSUM, None)
        try:
            record = cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise StorageError(f"{path} is damaged at {where:.200} ({first['msg']}); {repeat}") from None
        if expected is not None and digest(value) != expected:
            raise StorageError(f"{path} is damaged (it does not match its checksum); {repeat}")
        return record
