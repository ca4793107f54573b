"""The stage that finds the tokens of the test examples in their texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from layerprobe.context import Context
from layerprobe.stage import Json, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import rows_of, save
from layerprobe.stages.capture import Capture
from layerprobe.store import Artifact, ArtifactMeta

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.data import Examples

TOKENS = TableSpec(
    "tokens",
    "Tokens of the test examples whose every token is stored: one row per token, in the order of the activations.",
    columns(
        "example_id",
        "token_index",
        "token",
        "special",
        start="first character in `text` of the table `examples`, from 0; missing for special tokens, and where the "
        "tokenizer reports no offsets",
        end="the character after its last one; tokens that are parts of one character have equal spans",
    ),
)


@dataclass(frozen=True)
class Tokens(Stage):
    """Where each token of the captured test examples is in its text."""

    name: ClassVar = "tokens"
    version: ClassVar = 1
    tables: ClassVar = (TOKENS,)
    on_cpu: ClassVar = "places of tokens in their texts"

    @property
    def title(self) -> str:
        return "spans"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        return (cls(),)

    def parents(self) -> Mapping[str, Stage]:
        return {"rows": Capture.of_base()}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return {}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import numpy as np
        import pandas as pd

        from layerprobe.encoder import token_spans

        store = rows_of(parents["rows"])
        example, index = (store.rows[name].to_numpy() for name in ("example", "token_index"))
        captured = context.corpus.test.take(range(int(example.max()) + 1))
        spans = token_spans(context.encoder, captured, context.study.data.max_length)
        places = [spans[i][j] or (-1, -1) for i, j in zip(example.tolist(), index.tolist(), strict=True)]
        start, end = (pd.array(column, dtype="Int32") for column in np.array(places, dtype=np.int32).T)
        start[start < 0] = end[end < 0] = pd.NA
        table = pd.DataFrame(
            {
                "example_id": store.example_ids[example],
                "token_index": index,
                "token": store.rows["token"],
                "special": store.rows["special"],
                "start": start,
                "end": end,
            }
        )
        save(folder, TOKENS.name, table)


def written(tokens: pd.DataFrame, examples: Examples) -> list[str]:
    """Each token of the table as it is in its text, in lower case where the tokenizer ignores case.

    A token without a place in the text is as the tokenizer writes it.
    """
    texts = dict(zip(examples.ids, examples.joined, strict=True))
    placed = tokens["start"].notna().tolist()
    starts, ends = (tokens[name].fillna(0).tolist() for name in ("start", "end"))
    words = []
    for key, token, known, start, end in zip(tokens["example_id"], tokens["token"], placed, starts, ends, strict=True):
        word = texts[key][start:end] if known else ""
        if not word.strip():
            word = token
        elif token == token.lower():
            word = word.lower()
        words.append(word)
    return words
