"""Near copies: examples of one part of the data that repeat, or almost repeat, an example of another part."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from layerprobe.data._examples import Examples
from layerprobe.files import digest

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLE = 2
"""Words of a shingle. Three words miss a tweet whose link or mention differs; one word ignores the order of words."""
THRESHOLD = 0.7
"""Jaccard similarity of two sets of shingles from which one text is a near copy of the other."""
BANDS, ROWS = 32, 4
"""Bands of the MinHash index and hashes per band: it misses a pair of similarity s with probability
(1 - s^ROWS)^BANDS, .00015 at .7 and less than 1e-7 at .8."""

Kind = Literal["", "text", "tokens", "shingles", "known"]
"""Why an example is a near copy, the strictest reason that holds; empty if it is none."""
Part = Literal["train", "unseen", "out-of-domain"]
Tokens = Callable[[Examples], Sequence[Sequence[int] | np.ndarray]]
"""Token ids of each example, as the model receives them."""


@dataclass(frozen=True)
class Copies:
    """Which of some examples are near copies of some originals."""

    kinds: tuple[Kind, ...]
    """Per example."""
    same_label: np.ndarray
    """Per example, whether one of its originals has its label."""
    originals: frozenset[int]
    """Positions of the originals that have a near copy."""
    n_originals: int
    """Number of originals that were compared."""

    @property
    def mask(self) -> np.ndarray:
        """Which examples are near copies."""
        return np.array([kind != "" for kind in self.kinds], dtype=bool)


@dataclass(frozen=True)
class CopyCount:
    """How many examples of one part of the data are near copies of examples of another part."""

    part: Part
    """Where near copies were searched for; `unseen` are the examples that give the rows for dictionaries."""
    name: str
    """Name of the out-of-domain set; empty for the parts of the corpus."""
    of: str
    """The part that holds the originals: `test`, or `train and test`."""
    n: int
    """Examples of `part` that were compared, as first drawn."""
    n_of: int
    """Examples of `of`."""
    copies: int
    """Examples of `part` that are near copies."""
    originals: int
    """Examples of `of` that have a near copy in `part`."""
    equal_text: int
    """Near copies with equal normalised text."""
    equal_tokens: int
    """Further ones with equal tokens after truncation."""
    similar: int
    """Further ones with similar shingles."""
    same_label: int
    """Near copies that have the label of an original."""
    removed: int
    """Near copies that were removed from `part`."""
    replaced: int
    """How many of those were replaced by other examples; 0 for `unseen`, whose number follows from its tokens."""

    @classmethod
    def of_copies(
        cls, part: Part, copies: Sequence[Copies], *, removed: bool, short: int | None = 0, name: str = ""
    ) -> CopyCount:
        """Counts over one or more comparisons with the same originals.

        Args:
            part: where near copies were searched for.
            copies: the comparisons.
            removed: whether near copies are removed.
            short: how many examples `part` lacks after its near copies were replaced; None if they are not replaced.
            name: name of the out-of-domain set.
        """
        kinds = [kind for one in copies for kind in one.kinds]
        found = sum(kind != "" for kind in kinds)
        return cls(
            part=part,
            name=name,
            of="test" if part == "train" else "train and test",
            n=len(kinds),
            n_of=max((one.n_originals for one in copies), default=0),
            copies=found,
            originals=len(frozenset().union(*(one.originals for one in copies))),
            equal_text=kinds.count("text"),
            equal_tokens=kinds.count("tokens"),
            similar=kinds.count("shingles"),
            same_label=sum(int(one.same_label[one.mask].sum()) for one in copies),
            removed=found if removed else 0,
            replaced=found - short if removed and short is not None else 0,
        )


class Finder(Protocol):
    """Finds near copies of the examples of one or more parts."""

    def of(self, *parts: Examples) -> Callable[[Examples], Copies]:
        """A function that compares examples with those of these parts."""


class KnownCopies:
    """A finder for which the near copies have been found before."""

    def __init__(self, ids: Collection[str] = ()) -> None:
        self.ids = frozenset(ids)

    def of(self, *parts: Examples) -> Callable[[Examples], Copies]:
        def copies(examples: Examples) -> Copies:
            kinds: tuple[Kind, ...] = tuple("known" if one in self.ids else "" for one in examples.ids)
            return Copies(kinds, np.zeros(len(kinds), bool), frozenset(), sum(map(len, parts)))

        return copies


class NearCopies:
    """A finder that compares texts and, where a tokenizer is given, tokens.

    An example is a near copy of another one if
    * their texts are equal after Unicode NFKC, case folding and collapsing white space, or
    * their token ids are equal, after truncation, or
    * their sets of word shingles have a Jaccard similarity of at least `THRESHOLD`; for pairs of texts, those of the first
      texts and those of the second texts. Candidates come from a MinHash index (Broder 1997) and are verified exactly.

    A text without spaces between its words, as in Chinese, is one word here: of the third kind are only near copies that
    keep whole clauses.

    Args:
        tokens: token ids of examples; by default tokens are not compared.
    """

    def __init__(self, tokens: Tokens | None = None) -> None:
        self.tokens = tokens
        self._fingerprints: dict[str, _Fingerprint] = {}

    def of(self, *parts: Examples) -> Callable[[Examples], Copies]:
        from datasketch import MinHashLSH

        originals = [one for part in parts for one in self._fingerprinted(part)]
        labels = np.concatenate([part.labels for part in parts]) if parts else np.zeros(0, np.int64)
        index = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
        texts: dict[str, list[int]] = {}
        tokens: dict[str, list[int]] = {}
        for i, original in enumerate(originals):
            index.insert(i, original.hashes, check_duplication=False)
            texts.setdefault(original.text, []).append(i)
            if original.tokens is not None:
                tokens.setdefault(original.tokens, []).append(i)

        def copies(examples: Examples) -> Copies:
            kinds: list[Kind] = []
            same_label = np.zeros(len(examples), bool)
            found: set[int] = set()
            for number, example in enumerate(self._fingerprinted(examples)):
                by_text = texts.get(example.text, [])
                by_tokens = tokens.get(example.tokens, []) if example.tokens is not None else []
                candidates = sorted(index.query(example.hashes))
                similar = example.similarities([originals[i] for i in candidates]) if candidates else np.zeros(0)
                by_words = [i for i, value in zip(candidates, similar, strict=True) if value >= THRESHOLD]
                kinds.append("text" if by_text else "tokens" if by_tokens else "shingles" if by_words else "")
                matched = {*by_text, *by_tokens, *by_words}
                same_label[number] = any(labels[i] == examples.labels[number] for i in matched)
                found |= matched
            return Copies(tuple(kinds), same_label, frozenset(found), len(originals))

        return copies

    def _fingerprinted(self, examples: Examples) -> list[_Fingerprint]:
        """The fingerprint of each example, computed once."""
        new = [i for i, one in enumerate(examples.ids) if one not in self._fingerprints]
        if new:
            part = examples.take(new)
            self._fingerprints.update(zip(part.ids, _fingerprints(part, self.tokens), strict=True))
        return [self._fingerprints[one] for one in examples.ids]


def normalised(text: str) -> str:
    """A text after Unicode NFKC, case folding and collapsing white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def shingles(text: str) -> set[str]:
    """Runs of `SHINGLE` words of a normalised text, without punctuation; all of a shorter text, or of one without words."""
    words = re.findall(r"\w+", text)
    if len(words) <= SHINGLE:
        return {" ".join(words) or text}
    return {" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}


@dataclass(frozen=True)
class _Fingerprint:
    """What is compared of an example."""

    text: str
    """Digest of its normalised text or texts."""
    tokens: str | None
    """Digest of its token ids."""
    shingles: tuple[np.ndarray, ...]
    """For each of its texts the sorted 32-bit hashes of the shingles."""
    hashes: MinHash
    """Of the shingles of all its texts: where those of each text are similar, those of all are."""

    def similarities(self, others: Sequence[_Fingerprint]) -> np.ndarray:
        """Jaccard similarity of the shingles with those of each other one: of pairs the smaller one of both texts."""
        return np.min(
            [_jaccard(mine, [one.shingles[i] for one in others]) for i, mine in enumerate(self.shingles)], axis=0
        )


def _jaccard(one: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """Jaccard similarity of a set with each of others, all as sorted arrays that are not empty."""
    lengths = np.array([len(other) for other in others])
    values = np.concatenate(others)
    contained = one[np.minimum(np.searchsorted(one, values), len(one) - 1)] == values
    common = np.add.reduceat(contained, np.cumsum(lengths) - lengths, dtype=np.int64)
    return common / (len(one) + lengths - common)


def _fingerprints(examples: Examples, tokens: Tokens | None) -> Iterator[_Fingerprint]:
    from datasketch import MinHash

    columns = [
        [normalised(text) for text in column] for column in (examples.texts, examples.pairs) if column is not None
    ]
    hashed = [[_hashes(text) for text in column] for column in columns]
    # The same words in the first and in the second text of a pair are different elements of its set.
    sets = [
        np.concatenate([values ^ np.uint32(number) for number, values in enumerate(row)]).tolist()
        for row in zip(*hashed, strict=True)
    ]
    minhashes: Any = MinHash.bulk(sets, num_perm=BANDS * ROWS, hashfunc=int)
    ids = tokens(examples) if tokens is not None else [None] * len(examples)
    for text, token_ids, values, minhash in zip(
        zip(*columns, strict=True), ids, zip(*hashed, strict=True), minhashes, strict=True
    ):
        key = None if token_ids is None else digest([int(i) for i in token_ids])
        yield _Fingerprint(digest(list(text)), key, tuple(values), minhash)


def _hashes(text: str) -> np.ndarray:
    return np.unique(np.array([zlib.crc32(one.encode()) for one in shingles(text)], dtype=np.uint32))
