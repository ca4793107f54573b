"""A pretrained encoder, its tokenizer and its numbered layers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from layerprobe.errors import EncoderError
from layerprobe.layers import FAMILIES, blocks, edited, forward, same_layer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from layerprobe.data import Examples
    from layerprobe.pooled import PooledClassifier

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_PROBE = "It's 1984: Äpfel und ÉTÉ, naïve WORDS; don't! 東京"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer_config.json")


@dataclass(frozen=True)
class Encoder:
    """A pretrained encoder whose layer numbering has been checked.

    Layer 0 is the embeddings' output, layer i the output of block i, and layer `n_layers` the last block's own output,
    before any norm that stands above the blocks.
    """

    name: str
    """As it was asked for."""
    folder: str
    """Local folder, or Hub id."""
    revision: str | None
    """Commit of a Hub model."""
    fingerprint: str
    """sha256 of the configuration, weights and tokenizer, or `hub:<id>@<commit>`."""
    family: str
    n_layers: int
    width: int
    max_positions: int
    """Longest input, in word pieces."""
    tokenizer: PreTrainedTokenizerBase
    trust_remote_code: bool
    pooler: Literal["pretrained", "new", "none"]
    """A pooler between the last block and the classifier: part of the body if its weights are pretrained."""

    def classifier(
        self, label_names: Sequence[str], *, seed: int, pooling: Literal["model", "mean", "cls"] = "model"
    ) -> PreTrainedModel | PooledClassifier:
        """The pretrained body under a fresh classification head, in float32 and eval mode on the CPU.

        Args:
            label_names: one name a class, in the order of the class numbers.
            seed: decides the head's initial weights; the global generator is left as it was.
            pooling: the family's own head, or one linear layer on the mean of the real tokens or on the first token.
        """
        from layerprobe.pooled import PooledClassifier

        labels = dict(enumerate(label_names))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, _ = _load(
                self.folder,
                self.name,
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
                id2label=labels,
                label2id={name: number for number, name in labels.items()},
            )
            return model if pooling == "model" else PooledClassifier(model.base_model, pooling).eval()


def load_encoder(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Encoder:
    """Find a pretrained encoder, load it once, and check that its layers are numbered as this package numbers them.

    Args:
        name: `bundled:minilm-l6`, a local folder with safetensors weights, or a Hub id.
        revision: branch, tag or commit of a Hub model.
        trust_remote_code: whether code from the model's folder may run.

    Raises:
        EncoderError: if it is missing, damaged, not an encoder of a known family, or not numbered as expected.
    """
    folder = _resolve(name)
    config = _config(folder, name, revision=revision, trust_remote_code=trust_remote_code)
    commit = getattr(config, "_commit_hash", None)
    model, missing = _load(folder, name, revision=commit or revision, trust_remote_code=trust_remote_code)
    tokenizer = _tokenizer(folder, name, revision=commit or revision, trust_remote_code=trust_remote_code)
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # Without a vocabulary transformers makes an empty tokenizer, to which every word is unknown.
        raise EncoderError(f"{name} has no tokenizer vocabulary; save its tokenizer beside the model.")
    if tokenizer.pad_token_id is None:
        raise EncoderError(f"The tokenizer of {name} has no padding token; set `pad_token` and save it again.")
    if len(tokenizer) > config.vocab_size:
        raise EncoderError(
            f"The tokenizer of {name} has {len(tokenizer)} tokens but the model embeds {config.vocab_size}; "
            "save the tokenizer that the model was trained with."
        )
    pooler: Literal["pretrained", "new", "none"] = "none"
    if getattr(model.base_model, "pooler", None) is not None:
        pooler = "new" if any(".pooler." in key for key in missing) else "pretrained"
    body_missing = [key for key in missing if key.startswith(f"{model.base_model_prefix}.") and ".pooler." not in key]
    if body_missing:
        raise EncoderError(
            f"{name} lacks weights of its own body ({body_missing[0]} and {len(body_missing) - 1} more); "
            "it is not a whole checkpoint of this architecture."
        )
    _check_numbering(model, name, tokenizer.pad_token_id)
    return Encoder(
        name=name,
        folder=folder,
        revision=commit or revision,
        fingerprint=_fingerprint(folder) if Path(folder).is_dir() else f"hub:{folder}@{commit}",
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
        folder: as `save_pretrained` of its class or of `PooledClassifier` wrote it, with safetensors weights.
        encoder: the pretrained encoder that it was adapted from.

    Raises:
        EncoderError: if it is missing, damaged, has no classification head, or is not an adaptation of this encoder.
    """
    from layerprobe.pooled import FIELD, load_pooled

    name = str(folder)
    if not Path(folder).is_dir():
        raise EncoderError(f"There is no checkpoint folder {name}; name the folder that `save_pretrained` wrote.")
    config = _config(name, name, revision=None, trust_remote_code=encoder.trust_remote_code)
    if config.model_type != encoder.family:
        raise EncoderError(
            f"The checkpoint {name} is a {config.model_type} model but {encoder.name} is {encoder.family}; "
            "give the base model that it was fine-tuned from as model.name."
        )
    model, missing = _load(name, name, revision=None, trust_remote_code=encoder.trust_remote_code)
    shape = (len(blocks(model)), config.hidden_size)
    if shape != (encoder.n_layers, encoder.width):
        raise EncoderError(
            f"The checkpoint {name} has {shape[0]} blocks of width {shape[1]} but {encoder.name} has {encoder.n_layers} "
            f"of width {encoder.width}; give the base model that it was fine-tuned from as model.name."
        )
    _check_tokenizer(folder, encoder)
    if config.vocab_size < len(encoder.tokenizer):
        raise EncoderError(
            f"The checkpoint {name} embeds {config.vocab_size} tokens but the tokenizer of {encoder.name} has "
            f"{len(encoder.tokenizer)}; the two do not read the same tokens."
        )
    if hasattr(config, FIELD):
        prefix = f"{model.base_model_prefix}."
        missing = [key for key in missing if key.startswith(prefix) and ".pooler." not in key]
    if missing:
        raise EncoderError(
            f"The checkpoint {name} has no trained classification head (missing {missing[0]}); "
            "save it from AutoModelForSequenceClassification."
        )
    return load_pooled(model.base_model, name) if hasattr(config, FIELD) else model


def head_parameter_names(model: nn.Module, encoder: Encoder) -> frozenset[str]:
    """Parameters above the last block's output, less a pretrained pooler; these are what `head` trains."""
    body = f"{model.base_model_prefix}."
    above = [f"{body}final_norm."] + ([f"{body}pooler."] if encoder.pooler == "new" else [])
    return frozenset(
        name
        for name, _ in model.named_parameters()
        if not name.startswith(body) or any(name.startswith(prefix) for prefix in above)
    )


def same_body(one: nn.Module, other: nn.Module, encoder: Encoder) -> bool:
    """Whether two classifiers have equal weights in all that stands below the head, and so equal layers."""
    head = head_parameter_names(one, encoder)
    values, others = one.state_dict(), other.state_dict()
    body = [name for name in values if name not in head]
    return all(name in others and torch.equal(values[name], others[name]) for name in body)


def tokenize(encoder: Encoder, examples: Examples, max_length: int) -> list[dict[str, list[int]]]:
    """Word pieces of each example, cut to `max_length` (special tokens included) and not padded."""
    pairs = list(examples.pairs) if examples.pairs is not None else None
    if not len(examples):
        return []
    with quiet():
        encoded = encoder.tokenizer(
            list(examples.texts),
            pairs,
            truncation=True,
            max_length=min(max_length, encoder.max_positions),
            return_special_tokens_mask=True,
        )
    keys = [key for key in (*_INPUTS, "special_tokens_mask") if key in encoded]
    return [{key: encoded[key][i] for key in keys} for i in range(len(examples))]


def length_sorted_batches(lengths: Sequence[int] | np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Indices in batches of like length, longest first; ties keep their order, so the batches are always the same."""
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def collate(
    encoder: Encoder, encodings: Sequence[Mapping[str, list[int]]], indices: Sequence[int] | np.ndarray
) -> dict[str, Tensor]:
    """A batch padded to its longest example, with the model's own inputs only."""
    chosen = [encodings[int(i)] for i in indices]
    longest = max(len(encoding["input_ids"]) for encoding in chosen)
    fill = {"input_ids": encoder.tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": 0}
    accepted = encoder.tokenizer.model_input_names
    keys = [key for key in _INPUTS if key in chosen[0] and (key in accepted or key == "attention_mask")]
    if encoder.family not in ("bert", "electra", "albert"):
        keys = [key for key in keys if key != "token_type_ids"]
    return {
        key: torch.tensor([row[key] + [fill[key]] * (longest - len(row[key])) for row in chosen], dtype=torch.long)
        for key in keys
    }


# Loading --------------------------------------------------------------------------------------------------------------


def _resolve(name: str) -> str:
    if name.startswith("bundled:"):
        from layerprobe.bundled import model_folder

        return str(model_folder(name.removeprefix("bundled:")))
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if path.exists():
        raise EncoderError(f"The model {name} is a file; name the folder that holds config.json and model.safetensors.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise EncoderError(f"There is no model folder {name}; name a folder, a Hub id or bundled:minilm-l6.")
    return name


def _config(folder: str, name: str, *, revision: str | None, trust_remote_code: bool) -> PretrainedConfig:
    """The configuration alone: if that is out of reach, nothing else is tried."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    if Path(folder).is_dir() and not (Path(folder) / "config.json").is_file():
        raise EncoderError(f"{name} holds no config.json; name a folder that `save_pretrained` wrote.")
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        if Path(folder).is_dir():
            raise EncoderError(f"The config.json of {name} cannot be used ({_short(error)}).") from error
        offline = os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True")
        way = (
            "the Hub was not asked, since HF_HUB_OFFLINE is set"
            if offline
            else "the Hub does not have it or is out of reach"
        )
        raise EncoderError(
            f"The model {name!r} is no folder here, and {way}; check the id and the network, or download it and give its folder."
        ) from error
    if config.model_type not in FAMILIES or getattr(config, "is_decoder", False):
        raise EncoderError(
            f"{name} is a {config.model_type} model, not an encoder of a known family; "
            f"the families are {', '.join(FAMILIES)}."
        )
    return config


def _load(
    folder: str, name: str, *, revision: str | None, trust_remote_code: bool, **config: Any
) -> tuple[PreTrainedModel, list[str]]:
    """A classifier in float32 and eval mode, and the names of the weights that the checkpoint lacks."""
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification

    if Path(folder).is_dir() and not list(Path(folder).glob("*.safetensors")):
        pickled = list(Path(folder).glob("*.bin"))
        why = (
            "its weights are a pickle, which is never loaded; convert them to safetensors"
            if pickled
            else "save it again"
        )
        raise EncoderError(f"{name} holds no safetensors weights; {why}.")
    try:
        with quiet():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder,
                revision=revision,
                trust_remote_code=trust_remote_code,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **config,
            )
    except SafetensorError as error:
        raise EncoderError(
            f"The weights of {name} are damaged ({_short(error)}); copy or download them again."
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EncoderError(f"{name} cannot be loaded as a classifier ({_short(error)}).") from error
    spoilt = [key for key, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if spoilt:
        raise EncoderError(
            f"The weights of {name} hold NaN or infinite values ({spoilt[0]} and {len(spoilt) - 1} more); "
            "take a checkpoint from before its training diverged."
        )
    return model.eval(), sorted(info["missing_keys"])


def _tokenizer(folder: str, name: str, *, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EncoderError(
            f"The tokenizer of {name} cannot be loaded ({_short(error)}); save it beside the model."
        ) from error


def _check_tokenizer(folder: str | Path, encoder: Encoder) -> None:
    """Refuse a checkpoint that brings a tokenizer of its own under which texts would read otherwise than under base's."""
    if not any((Path(folder) / name).is_file() for name in _TOKENIZER_FILES if name != "tokenizer_config.json"):
        return
    own = _tokenizer(str(folder), str(folder), revision=None, trust_remote_code=encoder.trust_remote_code)
    theirs, ours = own.get_vocab(), encoder.tokenizer.get_vocab()
    other = next((token for token, number in sorted(ours.items()) if theirs.get(token) != number), None)
    if other is not None:
        is_there = f"is number {theirs[other]}" if other in theirs else "is missing"
        raise EncoderError(
            f"The tokenizer of the checkpoint {folder} is not that of {encoder.name} (token {other!r} {is_there}, not "
            f"number {ours[other]}), so the two do not read the same tokens; give the base model that it was fine-tuned "
            "from as model.name."
        )
    if own(_PROBE)["input_ids"] != encoder.tokenizer(_PROBE)["input_ids"]:
        raise EncoderError(
            f"The tokenizer of the checkpoint {folder} splits texts otherwise than that of {encoder.name} (in case, accents "
            "or special tokens); give the base model that it was fine-tuned from as model.name."
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from reporting on a head that is meant to be new, and from drawing loading bars."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _fingerprint(folder: str) -> str:
    """sha256 over the names and contents of a model's configuration, weights and tokenizer."""
    total = hashlib.sha256()
    paths = [Path(folder) / name for name in ("config.json", *_TOKENIZER_FILES)]
    for path in [*paths, *sorted(Path(folder).glob("*.safetensors"))]:
        if path.is_file():
            with path.open("rb") as file:
                total.update(json.dumps([path.name, hashlib.file_digest(file, "sha256").hexdigest()]).encode())
    return total.hexdigest()


def _max_positions(config: PretrainedConfig) -> int:
    # RoBERTa numbers positions from pad_token_id + 1, so two of its rows are never reached.
    offset = config.pad_token_id + 1 if config.model_type == "roberta" else 0
    return config.max_position_embeddings - offset


# Checking -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _check_numbering(model: PreTrainedModel, name: str, pad: int) -> None:
    """Refuse a model whose hidden states are not its blocks' outputs, or whose layers don't bear on its logits."""
    generator = torch.Generator().manual_seed(0)
    low, high = min(10, model.config.vocab_size - 1), model.config.vocab_size
    ids = torch.randint(low, high, (2, 7), generator=generator)
    ids[ids == pad] = low if low != pad else low + 1
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    layers, logits = forward(model, inputs)
    stack = blocks(model)
    reported = model(**inputs, output_hidden_states=True).hidden_states
    if len(layers) != len(stack) + 1 or len(reported) != len(layers):
        raise EncoderError(
            f"{name} has {len(stack)} blocks but reports {len(reported)} hidden states; its layers can't be numbered."
        )
    last_is_normed = hasattr(model.base_model, "final_norm")
    for layer, (own, given) in enumerate(zip(layers, reported, strict=True)):
        if layer == len(stack) and last_is_normed:
            norm: Any = model.base_model.final_norm
            own = norm(own)
        if not same_layer(own, given):
            raise EncoderError(
                f"Hidden state {layer} of {name} is not the output of its block {layer}; it can't be numbered."
            )
    for layer in range(len(layers)):
        if torch.allclose(_with_noise(model, inputs, layer, generator), logits, atol=0, rtol=0):
            raise EncoderError(
                f"Noise written at layer {layer} of {name} leaves its logits as they are; it can't be numbered."
            )


def _with_noise(model: nn.Module, inputs: Mapping[str, Tensor], layer: int, generator: torch.Generator) -> Tensor:
    """Logits with noise, as large as the layer itself, added to one layer."""

    def noisy(value: Tensor) -> Tensor:
        return value + value.std() * torch.randn(value.shape, generator=generator)

    with edited(model, {layer: noisy}):
        return model(**inputs).logits
