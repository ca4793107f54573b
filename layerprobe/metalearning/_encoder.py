"""A pretrained encoder as a learner: embeddings, blocks, and the mean over tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from layerprobe.errors import ArgumentError
from layerprobe.families import FAMILIES
from layerprobe.layers import blocks
from layerprobe.metalearning._episodes import Episode
from layerprobe.metalearning._inner import Task
from layerprobe.metalearning._learner import Learner, Parameters, State
from layerprobe.progress import track

if TYPE_CHECKING:
    from layerprobe.data import Examples
    from layerprobe.encoder import Encoder


@dataclass(frozen=True)
class TokenState:
    """The tokens of a batch between two blocks.

    Attributes:
        hidden: values of a layer, `(examples, tokens, width)`.
        mask: 1 for real tokens, 0 for padding, `(examples, tokens)`.
        calls: what each block is called with besides the hidden values.
    """

    hidden: Tensor
    mask: Tensor
    calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]


def encoder_learner(
    encoder: Encoder, *, ways: int, seed: int = 0, random: bool = False, device: str = "cpu"
) -> Learner:
    """A learner from a pretrained encoder: its vectors are means over real tokens, as of `head:mean`.

    Attention is eager, since fused attention has no second derivative. Dropout is off.

    Args:
        encoder: the pretrained encoder.
        ways: number of classes of an episode.
        seed: seed of the head, and of the weights if `random`.
        random: whether all weights are random, as a baseline.
        device: where it computes.

    Raises:
        ArgumentError: if its blocks share their weights, so that top blocks cannot be adapted alone.
    """
    family = FAMILIES[encoder.family]
    if family.shared_blocks:
        raise ArgumentError(
            f"{{encoder}} is {encoder.name} of the family {encoder.family}, whose blocks share their weights; no block can be adapted "
            "alone. Use a model of another family.",
            "encoder",
        )
    model: Any = encoder.classifier(tuple(str(i) for i in range(ways)), seed=seed, pooling="mean")
    body = model.base_model
    body.set_attn_implementation("eager")
    if random:
        _randomise(body, seed)
    body.to(device).requires_grad_(False)
    *parts, pool = _parts(model, encoder)
    return Learner(parts, width=encoder.width, ways=ways, seed=seed, pool=pool)


def load_parameters(model: Any, encoder: Encoder, parameters: Parameters) -> None:
    """Write the parameters of an encoder's learner into a classifier of the same encoder that pools by the mean, in place."""
    *parts, pool = _parts(model, encoder)
    learner = Learner(parts, width=encoder.width, ways=model.classifier.out_features, pool=pool)
    named = {
        f"{name}.{key}": value
        for name, part in zip(learner.names, learner.parts, strict=True)
        for key, value in part.named_parameters()
    }
    named |= {f"head.{key}": value for key, value in model.classifier.named_parameters()}
    with torch.no_grad():
        for name, value in named.items():
            value.copy_(parameters[name])


def _parts(model: Any, encoder: Encoder) -> list[nn.Module]:
    """The body of a classifier as a learner's parts: embeddings, blocks, and the mean over tokens."""
    family, body, stack = FAMILIES[encoder.family], model.base_model, blocks(model)
    norm = body.get_submodule(family.final_norm) if family.final_norm else None
    return [_Embeddings(body, stack), *(_Block(block, i) for i, block in enumerate(stack)), _Pool(norm)]


class _Embeddings(nn.Module):
    """From token ids to the input of the first block, with the masks and positions that the blocks are called with."""

    def __init__(self, body: Any, stack: Sequence[nn.Module]) -> None:
        super().__init__()
        # Only the modules outside the blocks: their parameters are this part's.
        self.outside: tuple[Any, tuple[Any, ...]] = (body, tuple(stack))  # a tuple, so that they are not submodules
        inside = {id(module) for block in stack for module in block.modules()}
        for name, module in body.named_modules():
            if name and id(module) not in inside and any(True for _ in module.parameters(recurse=False)):
                self.add_module(name.replace(".", "_"), module)

    def forward(self, inputs: dict[str, Tensor]) -> TokenState:
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        first: list[Tensor] = []

        def record(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            first.append(hidden)
            calls.append((args[1:], kwargs))
            return hidden

        body, stack = self.outside
        for block in stack:
            block.forward = record
        try:
            body(**inputs)
        finally:
            for block in stack:
                del block.forward
        return TokenState(first[0], inputs["attention_mask"], tuple(calls))


class _Block(nn.Module):
    """One block, from tokens to tokens."""

    def __init__(self, block: nn.Module, number: int) -> None:
        super().__init__()
        self.block, self.number = block, number

    def forward(self, state: TokenState) -> TokenState:
        args, kwargs = state.calls[self.number]
        output = self.block(state.hidden, *args, **kwargs)
        return replace(state, hidden=output[0] if isinstance(output, tuple) else output)


class _Pool(nn.Module):
    """The mean over real tokens, after the final norm of families that have one."""

    def __init__(self, norm: nn.Module | None) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, state: TokenState) -> Tensor:
        hidden = state.hidden if self.norm is None else self.norm(state.hidden)
        mask = state.mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)


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
        found = tokenize(self.encoder, self.examples.take(new), self.max_length)
        self._encodings.update(zip(new, found, strict=True))
        return [self._encodings[row] for row in rows]

    def state(self, rows: Sequence[int] | np.ndarray) -> State:
        """The input of these examples: tokens, or the cached values of the frozen prefix."""
        from layerprobe.encoder import collate

        flat = np.asarray(rows).ravel()
        inputs = {
            key: value.to(self.device)
            for key, value in collate(self.encoder, self.encodings(flat), range(len(flat))).items()
        }
        if self._embeddings is None:
            return State(0, inputs)
        with torch.no_grad():
            # The embeddings are looked up for the masks; their values are replaced by those of the cached layer.
            embedded: TokenState = self._embeddings.apply(self._embeddings.parameters(), State(0, inputs), to=1).value
            hidden = torch.zeros_like(embedded.hidden)
            for i, row in enumerate(flat):
                value = self._cached[int(row)]
                hidden[i, : len(value)] = value
        return State(self.level, replace(embedded, hidden=hidden))

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
                state = learner.apply(parameters, self.state(batch), to=level)
                for row, values, mask in zip(batch, state.value.hidden, state.value.mask, strict=True):
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
                state = self.state(batch)
                for layer in range(max(0, self.level - 1), learner.n_layers + 1):
                    state = learner.apply(parameters, state, to=layer + 1)
                    mask = state.value.mask.unsqueeze(-1).to(state.value.hidden.dtype)
                    means = ((state.value.hidden * mask).sum(1) / mask.sum(1)).cpu().numpy()
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


def _randomise(body: Any, seed: int) -> None:
    """Fresh weights by the model's own initialisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in body.modules():
            vars(module).pop("_is_hf_initialized", None)
            for parameter in module.parameters(recurse=False):
                vars(parameter).pop("_is_hf_initialized", None)
            body._init_weights(module)
