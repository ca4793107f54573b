"""A pretrained encoder, its tokenizer, and which of a classifier's weights belong to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from layerprobe import hub
from layerprobe.adapters import is_adapter, load_merged
from layerprobe.checkpoints import Checkpoint, check_numbering, check_same_tokenizer, check_tokenizer, quiet, usable
from layerprobe.errors import EncoderError
from layerprobe.families import FAMILIES
from layerprobe.layers import blocks

if TYPE_CHECKING:
    from transformers import BatchEncoding, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from layerprobe.data import Examples
    from layerprobe.pooled import PooledClassifier


@dataclass(frozen=True)
class Encoder:
    """A pretrained encoder whose layer numbering has been checked.

    Layer 0 is the output of the embeddings, layer i the output of block i, and layer `n_layers` the output of the last
    block, before any norm above the blocks.
    """

    name: str
    """As the user wrote it."""
    folder: str
    """Local folder, or Hub id."""
    revision: str | None
    """Commit of a Hub model."""
    fingerprint: str
    """sha256 of the configuration, weights and tokenizer, or `hub:<id>@<commit>`."""
    family: str
    """Key of `layerprobe.families.FAMILIES`."""
    n_layers: int
    width: int
    max_positions: int
    """Longest input, in tokens."""
    tokenizer: PreTrainedTokenizerBase
    trust_remote_code: bool
    pooler: Literal["pretrained", "new", "none"]
    """A pooler between the last block and the classifier: part of the body if its weights are pretrained."""

    def classifier(
        self, label_names: Sequence[str], *, seed: int, pooling: Literal["model", "mean", "cls"] = "model"
    ) -> PreTrainedModel | PooledClassifier:
        """The pretrained body with a new classification head, in float32 and eval mode on the CPU.

        Args:
            label_names: one name per class, in the order of the class numbers.
            seed: seed of the head's initial weights; the global generator is not changed.
            pooling: the family's own head, or one linear layer on the mean over real tokens or on the first token.
        """
        from layerprobe.pooled import PooledClassifier

        labels = dict(enumerate(label_names))
        source = Checkpoint(self.name, self.folder, self.revision, self.trust_remote_code)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, _ = source.classifier(id2label=labels, label2id={name: number for number, name in labels.items()})
            return model if pooling == "model" else PooledClassifier(model.base_model, pooling).eval()


def load_encoder(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Encoder:
    """Load a pretrained encoder and check that its layers are numbered as this package numbers them.

    Args:
        name: `bundled:minilm-l6`, a local folder with safetensors weights, or a Hub id.
        revision: branch, tag or commit of a Hub model.
        trust_remote_code: whether code from the model's folder may run.

    Raises:
        EncoderError: if it is missing, damaged, not an encoder of a supported family, or not numbered as expected.
    """
    source = Checkpoint.locate(name, revision, trust_remote_code)
    if is_adapter(source.folder):
        raise EncoderError(
            f"{name} is a PEFT adapter and not a model; give the model that it was trained on, and the adapter as a method: "
            f"checkpoint:{name}."
        )
    with usable(f"{name} cannot be used as an encoder", "save the model again"):
        return _load_encoder(source)


def _load_encoder(source: Checkpoint) -> Encoder:
    config, name, trust_remote_code = source.config(), source.name, source.trust_remote_code
    commit = getattr(config, "_commit_hash", None) or source.revision
    source = Checkpoint(name, source.folder, commit, trust_remote_code)
    model, missing = source.classifier()
    tokenizer = source.tokenizer()
    check_tokenizer(tokenizer, config.vocab_size, name)
    in_body, in_pooler = _in_body(model, missing)
    if in_body:
        raise EncoderError(
            f"{name} lacks weights of its body ({in_body[0]} and {len(in_body) - 1} more); "
            "it is not a complete checkpoint of this architecture."
        )
    check_numbering(model, name, tokenizer.pad_token_id)
    pooler: Literal["pretrained", "new", "none"] = "none"
    if getattr(model.base_model, "pooler", None) is not None:
        pooler = "new" if in_pooler else "pretrained"
    return Encoder(
        name=name,
        folder=source.folder,
        revision=source.revision,
        fingerprint=source.fingerprint(),
        family=config.model_type,
        n_layers=len(blocks(model)),
        width=config.hidden_size,
        max_positions=_max_positions(config),
        tokenizer=tokenizer,
        trust_remote_code=trust_remote_code,
        pooler=pooler,
    )


def load_classifier(folder: str | Path, encoder: Encoder) -> PreTrainedModel | PooledClassifier:
    """An adapted checkpoint of an encoder, in float32 and eval mode on the CPU.

    Args:
        folder: as `save_pretrained` of its class, of `PooledClassifier` or of a peft model wrote it, with safetensors
            weights. A LoRA adapter is merged into the encoder's weights.
        encoder: the pretrained encoder that it was fine-tuned from.

    Raises:
        EncoderError: if it is missing, damaged, has no classification head, or is not an adaptation of this encoder.
    """
    name = str(folder)
    source = Checkpoint(name, name, trust_remote_code=encoder.trust_remote_code)
    if not source.is_local:
        raise EncoderError(
            f"There is no checkpoint folder {hub.described(name)}; give the folder that `save_pretrained` wrote."
        )
    with usable(f"The checkpoint {name} cannot be used", "save it again"):
        return _load_classifier(source, encoder)


def _load_classifier(source: Checkpoint, encoder: Encoder) -> PreTrainedModel | PooledClassifier:
    from layerprobe.pooled import FIELD, load_pooled

    name = source.name
    if is_adapter(name):
        base = Checkpoint(encoder.name, encoder.folder, encoder.revision, encoder.trust_remote_code)
        if source.has_tokenizer():
            check_same_tokenizer(source.tokenizer(), encoder.tokenizer, f"the adapter {name} and {encoder.name}")
        return load_merged(name, base)
    config = source.config()
    _need_equal(f"is a {config.model_type} model", f"is a {encoder.family} model", name, encoder)
    model, missing = source.classifier()
    shape = f"has {len(blocks(model))} blocks of width {config.hidden_size}"
    _need_equal(shape, f"has {encoder.n_layers} blocks of width {encoder.width}", name, encoder)
    if source.has_tokenizer():
        check_same_tokenizer(source.tokenizer(), encoder.tokenizer, f"the checkpoint {name} and {encoder.name}")
    if config.vocab_size < len(encoder.tokenizer):
        raise EncoderError(
            f"The checkpoint {name} embeds {config.vocab_size} tokens but the tokenizer of {encoder.name} has "
            f"{len(encoder.tokenizer)}; the two do not use the same tokens."
        )
    is_pooled = hasattr(config, FIELD)
    if is_pooled:  # its head is in a file of its own
        missing, _ = _in_body(model, missing)
    if missing:
        raise EncoderError(
            f"The checkpoint {name} has no trained classification head (missing {missing[0]}); "
            "save it from AutoModelForSequenceClassification."
        )
    return load_pooled(model.base_model, name) if is_pooled else model


def head_parameter_names(model: nn.Module, encoder: Encoder) -> frozenset[str]:
    """Names of the parameters above the last block's output, less a pretrained pooler: those that `head` trains."""
    body, norm = f"{model.base_model_prefix}.", FAMILIES[encoder.family].final_norm
    above = tuple(f"{body}{path}." for path in (norm, "pooler" if encoder.pooler == "new" else None) if path)
    return frozenset(
        name for name, _ in model.named_parameters() if not name.startswith(body) or name.startswith(above)
    )


def head_row(model: nn.Module, encoder: Encoder) -> str:
    """Which row of an example the head reads of layer L: that of the pretrained `pooler`, the `mean`, or the first (`cls`).

    A pooler reads the first token too.
    """
    pooling = getattr(model, "pooling", "model")
    if pooling != "model":
        return str(pooling)
    if encoder.pooler == "pretrained":
        return "pooler"
    key = FAMILIES[encoder.family].head_pooling
    return str(getattr(model.config, key)) if key else "cls"


def same_body(one: nn.Module, other: nn.Module, encoder: Encoder) -> bool:
    """Whether two classifiers have equal weights everywhere below the head, and so equal layers."""
    head = head_parameter_names(one, encoder)
    values, others = one.state_dict(), other.state_dict()
    body = [name for name in values if name not in head]
    return all(name in others and torch.equal(values[name], others[name]) for name in body)


# Tokens and batches ---------------------------------------------------------------------------------------------------

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
COUNTED_AT_A_TIME = 1024
"""Examples that `token_counts` tokenizes at a time."""


def tokenize(encoder: Encoder, examples: Examples, max_length: int) -> list[dict[str, list[int]]]:
    """Tokens of each example, truncated to `max_length` (special tokens included) and not padded."""
    if not len(examples):
        return []
    encoded = _encoded(encoder, examples, max_length)
    keys = [key for key in (*_INPUTS, "special_tokens_mask") if key in encoded]
    return [{key: encoded[key][i] for key in keys} for i in range(len(examples))]


def _encoded(encoder: Encoder, examples: Examples, max_length: int, **options: bool) -> BatchEncoding:
    with usable(f"The tokenizer of {encoder.name} cannot tokenize these texts", "save the model's own"), quiet():
        return encoder.tokenizer(
            list(examples.texts),
            list(examples.pairs) if examples.pairs is not None else None,
            truncation=True,
            max_length=min(max_length, encoder.max_positions),
            return_special_tokens_mask=True,
            **options,
        )


def token_counts(encoder: Encoder, examples: Examples, max_length: int) -> np.ndarray:
    """Number of tokens of each example as `tokenize` gives them, without holding the tokens of all examples."""
    counts = np.zeros(len(examples), dtype=np.int64)
    for start in range(0, len(examples), COUNTED_AT_A_TIME):
        part = range(start, min(start + COUNTED_AT_A_TIME, len(examples)))
        counts[part] = [len(one["input_ids"]) for one in tokenize(encoder, examples.take(part), max_length)]
    return counts


def token_spans(encoder: Encoder, examples: Examples, max_length: int) -> list[list[tuple[int, int] | None]]:
    """Where each token that `tokenize` gives is in the text of its example.

    White space around a token is left out. Tokens that are parts of one character, such as the bytes of an emoji, have the
    span of that character.

    Returns:
        Start and end of each token, in characters of `examples.joined`; None for special tokens, and for all tokens of a
        tokenizer that reports no offsets.
    """
    if not len(examples):
        return []
    if not encoder.tokenizer.is_fast:
        return [[None] * len(one["input_ids"]) for one in tokenize(encoder, examples, max_length)]
    encoded = _encoded(encoder, examples, max_length, return_offsets_mapping=True)
    spans = []
    for i, text in enumerate(examples.joined):
        second = len(text) - len(examples.pairs[i]) if examples.pairs is not None else 0
        places = zip(encoded.sequence_ids(i), encoded["offset_mapping"][i], strict=True)
        spans.append(
            [
                None if part is None else _trimmed(text, start + part * second, end + part * second)
                for part, (start, end) in places
            ]
        )
    return spans


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A span without the white space at its ends, unless it holds nothing else."""
    part = text[start:end]
    if not part.strip():
        return start, end
    return end - len(part.lstrip()), start + len(part.rstrip())


def length_sorted_batches(lengths: Sequence[int] | np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Indices in batches of similar length, longest first; ties keep their order, so that batches are reproducible."""
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def collate(
    encoder: Encoder, encodings: Sequence[Mapping[str, list[int]]], indices: Sequence[int] | np.ndarray
) -> dict[str, Tensor]:
    """A batch padded to its longest example, with only the inputs that the model takes."""
    rows = [encodings[int(i)] for i in indices]
    longest = max(len(row["input_ids"]) for row in rows)
    accepted = {"attention_mask", *encoder.tokenizer.model_input_names}
    if not FAMILIES[encoder.family].segments:
        accepted.discard("token_type_ids")
    padding = {"input_ids": encoder.tokenizer.pad_token_id}
    return {
        key: torch.tensor(
            [row[key] + [padding.get(key, 0)] * (longest - len(row[key])) for row in rows], dtype=torch.long
        )
        for key in _INPUTS
        if key in rows[0] and key in accepted
    }


def _in_body(model: nn.Module, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Which of these parameters belong to the body without its pooler, and which to the pooler."""
    pooler = [name for name in names if ".pooler." in name]
    return [name for name in names if name.startswith(f"{model.base_model_prefix}.") and name not in pooler], pooler


def _need_equal(description: str, expected: str, name: str, encoder: Encoder) -> None:
    if description != expected:
        raise EncoderError(
            f"The checkpoint {name} {description} but {encoder.name} {expected}; "
            "give the base model that it was fine-tuned from as {encoder}.",
            "encoder",
        )


def _max_positions(config: PretrainedConfig) -> int:
    unused = config.pad_token_id + 1 if FAMILIES[config.model_type].padded_positions else 0
    return config.max_position_embeddings - unused
