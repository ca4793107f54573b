"""General properties of tokens, computed from the text alone."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from layerprobe.errors import MeasureError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("example", "token_index", "token", "special")
COMMONEST = 256
"""Most tokens whose identity is tested as a property."""
OCCURRENCES = 20
"""Least number of occurrences of such a token, in at least 10 examples."""
EXAMPLES = 10

_ENGLISH = """
    a about above across after against all along although am among an and another any anybody anyone anything
    are around as at be because been before behind being below between both but by can cannot could did do does
    doing don down during each either every everybody everyone everything few for from had has have having he
    her here hers herself him himself his how i if in into is it its itself just may me might mine more most
    much must my myself neither no nobody none nor not nothing of off on once one onto or other others our ours
    ourselves out over own per shall she should since so some somebody someone something such than that the
    their theirs them themselves then there these they this those though through to too toward towards under
    until up upon us very was we were what whatever when where whether which while who whoever whom whose why
    will with within without would yet you your yours yourself yourselves
"""
FUNCTION_WORDS = frozenset(_ENGLISH.split())
"""English function words."""

_PLACEHOLDER = re.compile(r"\[[A-Z]+\d*\]|<[a-z_]+>")
_SPACE_MARKS = ("Ġ", "▁")


@dataclass(frozen=True)
class Properties:
    """Properties of each token, in the order of the table; those that do not vary are left out."""

    binary: dict[str, Bool[np.ndarray, " n"]]
    """continuation, punctuation, capitals, digits, function_word, content_word, special."""
    numeric: dict[str, Float[np.ndarray, " n"]]
    """position (0 for an example's first token), length (tokens of its example), frequency (its count in the examples)."""
    identity: Int[np.ndarray, " n"]
    """Index of the token in `common`; -1 if it is not common."""
    common: tuple[str, ...]
    """The common tokens, most frequent first."""


def token_properties(tokens: pd.DataFrame) -> Properties:
    """Compute general properties of tokens.

    * continuation: a token that continues a word. WordPiece marks it (`##`); with tokenizers that mark a leading space
      instead (`Ġ` or `▁`: RoBERTa, ModernBERT, ALBERT) it is a token without the mark that follows another one that is
      neither special nor punctuation. Left out if the tokens show neither mark.
    * punctuation: only characters of Unicode's categories P and S.
    * capitals, digits: at least one such character. An uncased tokenizer keeps no capitals, so the property is left out.
    * function_word: a whole word of a list of English ones; content_word: any other whole or split word.
    * special: added by the tokenizer, as `[CLS]` is.
    * frequency is counted in these examples; identity is known for the (at most 256) most frequent tokens that occur at
      least 20 times, in at least 10 examples.

    Args:
        tokens: one row per token: example (number), token_index, token, special, as `ActivationStore.rows`.

    Raises:
        MeasureError: if a column is missing or there is no token.
    """
    import pandas as pd

    missing = [column for column in COLUMNS if column not in tokens.columns]
    if missing or not len(tokens):
        what = f"no column `{missing[0]}`" if missing else "no row"
        raise MeasureError(f"The table of tokens has {what}; give the `rows` of an activation store.")
    example = tokens["example"].to_numpy(dtype=np.int64)
    index = tokens["token_index"].to_numpy(dtype=np.int64)
    special = tokens["special"].to_numpy(dtype=bool)
    kind, distinct = pd.factorize(tokens["token"].to_numpy(dtype=object))
    names = [str(name) for name in distinct]
    mark = _mark([name for name, plain in zip(names, _in_text(kind, special), strict=True) if plain])
    surfaces = [_surface(name, mark) for name in names]

    def each(test: list[bool]) -> np.ndarray:
        return np.array(test, dtype=bool)[kind] & ~special

    punctuation = each([bool(t) and all(unicodedata.category(c)[0] in "PS" for c in t) for t in surfaces])
    letters = each([any(c.isalpha() for c in t) for t in surfaces])
    # The neighbours of a token, in the order of the text.
    order = np.lexsort((index, example))
    continuation = np.zeros(len(kind), dtype=bool)
    if mark == "##":
        continuation = each([name.startswith("##") and len(name) > 2 for name in names])
    elif mark:
        unmarked = each([not name.startswith(mark) and bool(text) for name, text in zip(names, surfaces, strict=True)])
        before = np.concatenate([[True], (special | punctuation)[order][:-1] | (np.diff(example[order]) != 0)])
        continuation[order] = (unmarked & ~punctuation)[order] & ~before
    continued = np.zeros(len(kind), dtype=bool)
    continued[order] = np.append(continuation[order][1:] & (np.diff(example[order]) == 0), False)
    function = each([t.lower() in FUNCTION_WORDS for t in surfaces]) & ~continuation & ~continued
    counts = np.bincount(kind)
    binary = {
        "continuation": continuation,
        "punctuation": punctuation,
        "capitals": each([any(c.isupper() for c in t) for t in surfaces]),
        "digits": each([any(c.isdigit() for c in t) for t in surfaces]),
        "function_word": function,
        "content_word": letters & ~function,
        "special": special,
    }
    numeric = {
        "position": index.astype(np.float64),
        "length": np.bincount(example)[example].astype(np.float64),
        "frequency": counts[kind].astype(np.float64),
    }
    pairs = np.unique(kind * (example.max() + 1) + example) // (example.max() + 1)
    wide = np.flatnonzero((counts >= OCCURRENCES) & (np.bincount(pairs) >= EXAMPLES) & (counts < len(kind)))
    common = wide[np.argsort(-counts[wide], kind="stable")][:COMMONEST]
    numbers = np.full(len(names), -1, dtype=np.int64)
    numbers[common] = np.arange(len(common))
    return Properties(
        {name: value for name, value in binary.items() if _varies(value, example)},
        {name: value for name, value in numeric.items() if value.min() < value.max()},
        numbers[kind],
        tuple(names[i] for i in common),
    )


def _in_text(kind: np.ndarray, special: np.ndarray) -> np.ndarray:
    """Which distinct tokens occur as text rather than as special tokens."""
    return np.bincount(kind[~special], minlength=int(kind.max()) + 1) > 0


def _mark(names: list[str]) -> str:
    """How these tokens mark the continuation or the start of a word: `##`, a space mark, or nothing."""
    counts = {"##": sum(name.startswith("##") and name.strip("#") != "" for name in names)}
    counts |= {mark: sum(name.startswith(mark) for name in names) for mark in _SPACE_MARKS}
    best = max(counts, key=lambda mark: counts[mark])
    return best if counts[best] else ""


def _surface(name: str, mark: str) -> str:
    """A token's characters without marks; empty for placeholders such as `[UNK]`."""
    if _PLACEHOLDER.fullmatch(name):
        return ""
    if mark == "Ġ":
        # Byte-level tokens spell each byte as one character.
        from tokenizers.decoders import ByteLevel

        return str(ByteLevel().decode([name])).strip()
    if mark == "##":
        return name[2:] if name.startswith("##") and len(name) > 2 else name
    return name.removeprefix(mark)


def _varies(value: np.ndarray, example: np.ndarray) -> bool:
    """Whether a property holds in at least ten examples, and fails in as many."""
    return min(len(np.unique(example[value])), len(np.unique(example[~value]))) >= EXAMPLES
