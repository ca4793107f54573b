"""The test examples that the section shows: their texts, labels and tokens, each of them once."""

from __future__ import annotations

from typing import Any

from layerprobe.report.section import Tables

LARGEST = 1_500_000
"""Characters of text up to which examples are embedded; those that are asked for first are."""
TAIL = 200
"""Characters that are shown of what follows the last token, where a text was truncated."""


class Texts:
    """Numbers for examples, given out as they are asked for."""

    def __init__(self, tables: Tables) -> None:
        examples, tokens = tables["examples"], tables["tokens"].sort_values("token_index", kind="stable")
        self._examples = dict(zip(examples.example_id, zip(examples.text, examples.label, strict=True), strict=True))
        self._tokens = dict(iter(tokens.groupby("example_id", sort=False)))
        self._numbers: dict[str, int] = {}
        self._labels: dict[str, int] = {}
        self._content: dict[str, list[Any]] = {"text": [], "label": [], "tokens": []}
        self._room = LARGEST

    def number(self, example: Any) -> int | None:
        """The number of an example on the page; None if it has no tokens, or the page has no room for its text."""
        if example in self._numbers:
            return self._numbers[example]
        if example not in self._examples or example not in self._tokens:
            return None
        text, label = self._examples[example]
        tokens, end = _compact(self._tokens[example])
        text = str(text)[: end + TAIL]
        if len(text) > self._room:
            return None
        self._room -= len(text)
        for name, value in (("text", text), ("label", self.label(label)), ("tokens", tokens)):
            self._content[name].append(value)
        return self._numbers.setdefault(example, len(self._numbers))

    def label(self, name: Any) -> int:
        """The number of a label on the page."""
        return self._labels.setdefault(str(name), len(self._labels))

    def content(self) -> dict[str, Any]:
        """JSON values: `text`, `label` and `tokens` of each example, and the `labels` by number.

        Tokens are a flat list. A token in the text is two numbers, the distance of its start from the end of the token before,
        and its length, in characters; a token without a place is a string.
        """
        return {**self._content, "labels": list(self._labels)}


def _compact(tokens: Any) -> tuple[list[Any], int]:
    """Tokens of an example as a flat list, and the end of the last one."""
    flat: list[Any] = []
    last = 0
    for token, start, end, placed in zip(tokens.token, tokens.start, tokens.end, tokens.start.notna(), strict=True):
        if placed:
            flat += (int(start) - last, int(end - start))
            last = int(end)
        else:
            flat.append(str(token))
    return flat, last
