"""Examples as inputs of an encoder's learner, from their tokens or from a cached layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from layerprobe.metalearning._encoder import Batch
from layerprobe.metalearning._episodes import Episode
from layerprobe.metalearning._inner import Task
from layerprobe.metalearning._learner import Learner, Parameters, State
from layerprobe.progress import track

if TYPE_CHECKING:
    from layerprobe.data import Examples
    from layerprobe.encoder import Encoder

GROUP_COST = 64
"""Tokens that a further group costs, in calls on small batches."""


def groups_of_similar_length(lengths: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """Divide examples so that padding each group to its longest example, and the calls for each group, cost least."""
    order = np.argsort(lengths, kind="stable")
    ordered = np.asarray(lengths)[order]
    # Least cost of the first `end` examples, and where their last group starts.
    least, starts = [0.0], [0]
    for end in range(1, len(order) + 1):
        costs = [least[start] + GROUP_COST + (end - start) * ordered[end - 1] for start in range(end)]
        starts.append(int(np.argmin(costs)))
        least.append(float(costs[starts[-1]]))
    groups, end = [], len(order)
    while end:
        groups.append(order[starts[end] : end])
        end = starts[end]
    return groups[::-1]


class TextInputs:
    """Examples as inputs of an encoder's learner, by row; with a cached prefix, from the layer below the trained blocks.

    Args:
        encoder: the encoder that the learner was made from.
        examples: the examples.
        max_length: longest input in tokens; longer examples are truncated.
        device: where the learner computes.
    """

    def __init__(self, encoder: Encoder, examples: Examples, *, max_length: int, device: str = "cpu") -> None:
        self.encoder, self.device = encoder, device
        self.examples, self.max_length = examples, max_length
        self._encodings: dict[int, dict[str, list[int]]] = {}
        self.level = 0
        self._cached: dict[int, Tensor] = {}
        self._embeddings: Learner | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def encodings(self, rows: Sequence[int] | np.ndarray) -> list[dict[str, list[int]]]:
        """Tokens of these examples, not padded. An example is tokenized when it is first asked for: a study draws few of many."""
        from layerprobe.encoder import tokenize

        rows = [int(row) for row in rows]
        new = [row for row in dict.fromkeys(rows) if row not in self._encodings]
        if new:
            found = tokenize(self.encoder, self.examples.take(new), self.max_length)
            self._encodings.update(zip(new, found, strict=True))
        return [self._encodings[row] for row in rows]

    def state(self, rows: Sequence[int] | np.ndarray, *, divided: bool = True) -> State:
        """The input of these examples, a `Batch`: tokens, or the cached values of the frozen prefix.

        Args:
            rows: the examples.
            divided: whether to divide them into groups of similar length, which saves padding; on a CPU alone.
        """
        from layerprobe.encoder import collate

        flat = np.asarray(rows).ravel()
        encodings = self.encodings(flat)
        groups = [np.arange(len(flat))]
        if divided and self.device == "cpu":
            groups = groups_of_similar_length([len(encoding["input_ids"]) for encoding in encodings])
        inputs = tuple(
            {key: value.to(self.device) for key, value in collate(self.encoder, encodings, group).items()}
            for group in groups
        )
        batch = Batch(inputs, torch.from_numpy(np.argsort(np.concatenate(groups))).to(self.device))
        if self._embeddings is None:
            return State(0, batch)
        with torch.no_grad():
            # The embeddings are looked up for the masks; their values are replaced by those of the cached layer.
            embedded: Batch = self._embeddings.apply(self._embeddings.parameters(), State(0, batch), to=1).value
            filled = []
            for state, group in zip(embedded.groups, groups, strict=True):
                hidden = torch.zeros_like(state.hidden)
                for i, row in enumerate(flat[group]):
                    value = self._cached[int(row)]
                    hidden[i, : len(value)] = value
                filled.append(replace(state, hidden=hidden))
        return State(self.level, replace(embedded, groups=tuple(filled)))

    def batches(self, rows: Sequence[int] | np.ndarray, batch_size: int = 64) -> Iterator[np.ndarray]:
        """Rows in batches of similar length."""
        from layerprobe.encoder import length_sorted_batches

        rows = np.asarray(rows)
        lengths = [len(encoding["input_ids"]) for encoding in self.encodings(rows)]
        for batch in length_sorted_batches(lengths, batch_size):
            yield rows[batch]

    def cache(self, learner: Learner, *, depth: int, rows: Sequence[int] | np.ndarray) -> None:
        """Compute the layer below the top `depth` blocks once for these rows, so that later passes start there.

        Args:
            learner: the model as it was loaded; its lower blocks must not change afterwards.
            depth: number of top blocks above the prefix.
            rows: the rows that will be used.
        """
        self._embeddings, self._cached = None, {}
        level, parameters = learner.n_layers + 1 - depth, learner.parameters()
        with torch.no_grad():
            for batch in track(list(self.batches(np.unique(rows))), "frozen blocks"):
                state = learner.apply(parameters, self.state(batch, divided=False), to=level)
                (tokens,) = state.value.groups
                for row, values, mask in zip(batch, tokens.hidden, tokens.mask, strict=True):
                    self._cached[int(row)] = values[mask.bool()].clone()
        self._embeddings, self.level = learner, level

    def save_cache(self, folder: Path) -> None:
        """Write the cached values as `values.npy` (tokens x width), `rows.npy` and `lengths.npy`."""
        rows = np.array(sorted(self._cached))
        np.save(folder / "rows.npy", rows)
        np.save(folder / "lengths.npy", np.array([len(self._cached[row]) for row in rows]))
        np.save(folder / "values.npy", torch.cat([self._cached[row] for row in rows]).cpu().numpy())

    def open_cache(self, folder: Path, learner: Learner, *, depth: int) -> None:
        """Use the values that `save_cache` wrote; they stay on disk."""
        rows, lengths, values = (
            np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False) for name in ("rows", "lengths", "values")
        )
        ends = np.cumsum(lengths)
        self._cached = {
            int(row): torch.from_numpy(values[end - length : end]).to(self.device)
            for row, length, end in zip(rows, lengths, ends, strict=True)
        }
        self._embeddings, self.level = learner, learner.n_layers + 1 - depth

    def task(self, episode: Episode) -> Task:
        """The support and query examples of an episode."""
        labels = np.repeat(np.arange(len(episode.classes))[:, None], episode.support.shape[1], axis=1).ravel()
        asked = np.repeat(np.arange(len(episode.classes))[:, None], episode.query.shape[1], axis=1).ravel()
        return Task(
            self.state(episode.support),
            torch.from_numpy(labels).to(self.device),
            self.state(episode.query),
            torch.from_numpy(asked).to(self.device),
        )

    def layers(
        self, learner: Learner, parameters: Parameters, rows: Sequence[int] | np.ndarray
    ) -> dict[int, Float[np.ndarray, "rows width"]]:
        """Mean over real tokens of each layer, from the lowest that is not below a cached prefix (0 = embeddings)."""
        rows = np.asarray(rows)
        position = {int(row): i for i, row in enumerate(rows)}
        layers: dict[int, np.ndarray] = {}
        with torch.no_grad():
            for batch in track(list(self.batches(rows)), "layers of the probe examples"):
                state = self.state(batch, divided=False)
                for layer in range(max(0, self.level - 1), learner.n_layers + 1):
                    state = learner.apply(parameters, state, to=layer + 1)
                    (tokens,) = state.value.groups
                    mask = tokens.mask.unsqueeze(-1).to(tokens.hidden.dtype)
                    means = ((tokens.hidden * mask).sum(1) / mask.sum(1)).cpu().numpy()
                    into = layers.setdefault(layer, np.empty((len(rows), means.shape[1]), dtype=means.dtype))
                    into[[position[int(row)] for row in batch]] = means
        return layers

    def vectors(
        self, learner: Learner, parameters: Parameters, rows: Sequence[int] | np.ndarray
    ) -> Float[np.ndarray, "rows width"]:
        """What the head reads of each example."""
        rows = np.asarray(rows)
        position = {int(row): i for i, row in enumerate(rows)}
        found: np.ndarray | None = None
        with torch.no_grad():
            for batch in track(list(self.batches(rows)), "vectors"):
                values = learner.vectors(parameters, self.state(batch)).cpu().numpy()
                if found is None:
                    found = np.empty((len(rows), values.shape[1]), dtype=values.dtype)
                found[[position[int(row)] for row in batch]] = values
        assert found is not None
        return found
