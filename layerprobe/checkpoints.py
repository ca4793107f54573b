"""A model's configuration, weights and tokenizer, read from a folder or the Hub and checked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from layerprobe import hub, interrupt
from layerprobe.errors import EncoderError, LayerprobeError
from layerprobe.families import FAMILIES
from layerprobe.files import checksum, given_path, is_disk_full
from layerprobe.layers import blocks, edited, forward

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt")
_PROBE = "It's 1984: Äpfel und ÉTÉ, naïve WORDS; don't! 東京"


@dataclass(frozen=True)
class Checkpoint:
    """Where a model is read from."""

    name: str
    """As the user wrote it."""
    folder: str
    """Local folder, or Hub id."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    trust_remote_code: bool = False

    @classmethod
    def locate(cls, name: str, revision: str | None = None, trust_remote_code: bool = False) -> Checkpoint:
        """A bundled model, a local folder or a Hub id.

        Raises:
            EncoderError: if the name is that of a missing folder, a file or an unknown bundled model.
        """
        if name.startswith("bundled:"):
            from layerprobe.bundled import model_folder

            return cls(name, str(model_folder(name.removeprefix("bundled:"))), revision, trust_remote_code)
        path = given_path(name)
        if path.is_dir():
            folder = str(path.resolve())
        elif path.exists():
            raise EncoderError(
                f"The model {name} is a file; give the folder that contains config.json and model.safetensors."
            )
        elif hub.is_hub_id(name):
            folder = name
        else:
            raise EncoderError(
                f"There is no model folder {hub.described(name)}; give a folder, a Hub id or bundled:minilm-l6."
            )
        return cls(name, folder, revision, trust_remote_code)

    @property
    def is_local(self) -> bool:
        return Path(self.folder).is_dir()

    def config(self) -> PretrainedConfig:
        """The configuration. It is read first: if it cannot be reached, nothing else is tried.

        Raises:
            EncoderError: if it cannot be read or is not that of an encoder of a known family.
        """
        from transformers import AutoConfig

        if self.is_local and not (Path(self.folder) / "config.json").is_file():
            raise EncoderError(f"{self.name} has no config.json; give a folder that `save_pretrained` wrote.")
        if self.is_local:
            _check_numbers(Path(self.folder) / "config.json")
        try:
            config = self._load(AutoConfig, "config.json", "correct it")
        except EncoderError as error:
            if self.is_local:
                raise
            raise EncoderError(hub.unreachable("model", self.name)) from error
        if config.model_type not in FAMILIES or getattr(config, "is_decoder", False):
            raise EncoderError(
                f"{self.name} is a {config.model_type} model, not an encoder of a supported family; "
                f"the families are {', '.join(FAMILIES)}."
            )
        check_config(config, self.name)
        return config

    def classifier(self, **config: Any) -> tuple[PreTrainedModel, list[str]]:
        """A classifier in float32 and eval mode, and the names of the weights that the checkpoint lacks.

        Raises:
            EncoderError: if the weights are missing, pickled, damaged or not finite.
        """
        from transformers import AutoModelForSequenceClassification

        if self.is_local and not list(Path(self.folder).glob("*.safetensors")):
            if list(Path(self.folder).glob("*.bin")):
                raise EncoderError(
                    f"The weights of {self.name} are a pickle, which is never loaded; convert them to safetensors."
                )
            raise EncoderError(f"{self.name} has no safetensors weights; save the model again.")
        if self.is_local:
            _check_files(Path(self.folder))
        options = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True, **config}
        hint = "if they are damaged, copy or download them again"
        model, info = self._load(AutoModelForSequenceClassification, "weights", hint, **options)
        invalid = [key for key, value in model.state_dict().items() if not torch.isfinite(value).all()]
        if invalid:
            raise EncoderError(
                f"The weights of {self.name} contain NaN or infinite values ({invalid[0]} and {len(invalid) - 1} more); "
                "use a checkpoint from before training diverged."
            )
        return model.eval(), sorted(info["missing_keys"])

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer.

        Raises:
            EncoderError: if it cannot be loaded.
        """
        from transformers import AutoTokenizer

        return self._load(AutoTokenizer, "tokenizer", "save it in the model's folder")

    def has_tokenizer(self) -> bool:
        """Whether a local folder contains a tokenizer."""
        return any((Path(self.folder) / name).is_file() for name in _VOCABULARIES)

    def fingerprint(self) -> str:
        """sha256 over the names and contents of the configuration, weights and tokenizer; of a Hub model, its commit."""
        if not self.is_local:
            return f"hub:{self.folder}@{self.revision}"
        folder, total = Path(self.folder), hashlib.sha256()
        paths = [folder / name for name in ("config.json", *_VOCABULARIES, "tokenizer_config.json")]
        for path in [*paths, *sorted(folder.glob("*.safetensors"))]:
            if path.is_file():
                total.update(json.dumps([path.name, checksum(path)]).encode())
        return total.hexdigest()

    def _load(self, kind: Any, part: str, hint: str, **options: Any) -> Any:
        options |= {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        with usable(f"The {part} of {self.name} cannot be loaded", hint), quiet():
            return kind.from_pretrained(self.folder, **options)


@contextlib.contextmanager
def usable(problem: str, hint: str) -> Iterator[None]:
    """Report whatever libraries raise about the files of a model as one sentence.

    Args:
        problem: its beginning.
        hint: what to do.

    Raises:
        EncoderError: for any error; tokenizers also has one that is no `Exception`.
    """
    try:
        yield
    except (LayerprobeError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if interrupt.heard() or is_disk_full(error):
            raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        if "ignore_mismatched_sizes" in str(error):  # it refers to a report that is not shown
            reason = "weights have other shapes than config.json says"
        raise EncoderError(f"{problem} ({reason}); {hint}.") from error


_MOST = {
    "hidden_size": 2**20,
    "num_hidden_layers": 1000,
    "num_attention_heads": 2**20,
    "vocab_size": 2**31,
    "max_position_embeddings": 2**24,
}
"""Sizes of an encoder, and what none of them exceeds."""
INDEX = "model.safetensors.index.json"


def check_config(config: PretrainedConfig, name: str) -> None:
    """Refuse a configuration with sizes or rates that no encoder has, or of weights that are quantized.

    Raises:
        EncoderError: naming the key and its value.
    """

    def refuse(key: str, value: object, allowed: str) -> None:
        raise EncoderError(f"The config.json of {name} has {key} = {repr(value)[:80]}; {allowed}.")

    if getattr(config, "quantization_config", None) is not None:
        raise EncoderError(f"The weights of {name} are quantized; give the model in full precision.")
    for key, most in _MOST.items():
        value = getattr(config, key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            refuse(key, value, f"it is a whole number from 1 to {most:,}")
    padding = getattr(config, "pad_token_id", None)
    if padding is not None and not (isinstance(padding, int) and 0 <= padding < config.vocab_size):
        refuse("pad_token_id", padding, f"it is a number of a token, 0 to {config.vocab_size - 1}")
    for key, value in vars(config).items():
        if ("dropout" in key or key == "initializer_range") and isinstance(value, float) and not 0 <= value <= 1:
            refuse(key, value, "it is a number from 0 to 1")


def _check_numbers(path: Path) -> None:
    """Refuse a config.json that is no object, or has numbers with which it could not be loaded in any time or memory.

    Raises:
        EncoderError: naming the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise EncoderError(f"{path} cannot be loaded as JSON ({reason}); correct it.") from error
    if not isinstance(content, dict):
        raise EncoderError(f"{path} is not a JSON object; give a folder that `save_pretrained` wrote.")
    for key, value in content.items():
        most = 10**6 if key == "num_labels" else 2**31
        if isinstance(value, int | float) and not -most <= value <= most:
            raise EncoderError(f"{path} has {key[:80]} = {repr(value)[:40]}, which no encoder has; correct it.")


def _check_files(folder: Path) -> None:
    """Refuse weights that cannot be read, and an index of weights that refers to files elsewhere.

    Raises:
        EncoderError: naming the file.
    """
    names = [path.name for path in folder.glob("*.safetensors")]
    for name in names:
        if not os.access(folder / name, os.R_OK):
            raise EncoderError(f"{folder / name} cannot be read (permission denied).")
    path = folder / INDEX
    if not path.exists() or "model.safetensors" in names:  # where both are there, the index is not read
        return
    try:
        files = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EncoderError(
            f"{path} is no index of weights ({type(error).__name__}: {str(error)[:80]}); save the model again."
        ) from error
    for file in files:
        if file not in names:
            raise EncoderError(f"{path} refers to {repr(file)[:80]}, which is not in its folder; save the model again.")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress transformers' reports on new heads, and its progress bars."""
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


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int, name: str) -> None:
    """Refuse a tokenizer without a vocabulary or padding token, or with more tokens than the model embeds."""
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # Without a vocabulary, transformers makes an empty tokenizer that maps every word to the unknown token.
        raise EncoderError(f"{name} has no tokenizer vocabulary; save its tokenizer in the model's folder.")
    if tokenizer.pad_token_id is None:
        raise EncoderError(f"The tokenizer of {name} has no padding token; set `pad_token` and save it again.")
    if len(tokenizer) > vocab_size:
        raise EncoderError(
            f"The tokenizer of {name} has {len(tokenizer)} tokens but the model embeds {vocab_size}; "
            "save the tokenizer that the model was trained with."
        )
    hint = "save the tokenizer that the model was trained with"
    with usable(f"The tokenizer of {name} cannot tokenize a text", hint):
        numbers = [*tokenizer.get_vocab().values(), tokenizer.pad_token_id, *tokenizer(_PROBE)["input_ids"]]
    if max(numbers) >= vocab_size or min(numbers) < 0:
        wrong = next(number for number in numbers if not 0 <= number < vocab_size)
        raise EncoderError(
            f"The tokenizer of {name} has a token of number {wrong}, but the model embeds {vocab_size}; {hint}."
        )


def check_same_tokenizer(tokenizer: PreTrainedTokenizerBase, base: PreTrainedTokenizerBase, names: str) -> None:
    """Refuse a checkpoint whose tokenizer gives other tokens than that of its base.

    Args:
        names: what the two belong to, in words.
    """
    theirs, expected = tokenizer.get_vocab(), base.get_vocab()
    token = next((token for token, number in sorted(expected.items()) if theirs.get(token) != number), None)
    difference = None
    if token is not None:
        number = f"has number {theirs[token]}" if token in theirs else "is missing"
        difference = f"the token {token!r} {number} instead of {expected[token]}"
    elif tokenizer(_PROBE)["input_ids"] != base(_PROBE)["input_ids"]:
        difference = "they differ in case, accents or special tokens"
    if difference is not None:
        raise EncoderError(
            f"The tokenizers of {names} are not the same: {difference}; give the base model that it was fine-tuned from "
            "as {encoder}.",
            "encoder",
        )


@torch.no_grad()
def check_numbering(model: PreTrainedModel, name: str, pad: int) -> None:
    """Refuse a model whose hidden states are not its blocks' outputs, or whose layers do not affect its logits."""
    generator = torch.Generator().manual_seed(0)
    low, high = min(10, model.config.vocab_size - 1), model.config.vocab_size
    ids = torch.randint(low, high, (2, 7), generator=generator)
    ids[ids == pad] = low if low != pad else low + 1
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    layers, logits = forward(model, inputs)
    n_layers = len(blocks(model))
    if not torch.isfinite(logits).all():
        raise EncoderError(f"{name} computes NaN or infinite values; check its config.json and its weights.")
    reported = model(**inputs, output_hidden_states=True).hidden_states
    if len(layers) != n_layers + 1 or len(reported) != len(layers):
        raise EncoderError(
            f"{name} has {n_layers} blocks but reports {len(reported)} hidden states; its layers cannot be numbered."
        )
    norm = FAMILIES[model.config.model_type].final_norm
    last = model.base_model.get_submodule(norm)(layers[-1]) if norm else layers[-1]
    for layer, (value, expected) in enumerate(zip((*layers[:-1], last), reported, strict=True)):
        if not torch.allclose(value, expected, atol=1e-5, rtol=1e-4):
            raise EncoderError(
                f"Hidden state {layer} of {name} is not the output of its block {layer}; its layers cannot be numbered."
            )
    for layer in range(len(layers)):
        if torch.equal(_logits_with_noise(model, inputs, layer, generator), logits):
            raise EncoderError(
                f"Noise added to layer {layer} of {name} does not change its logits; its layers cannot be numbered."
            )


def _logits_with_noise(
    model: nn.Module, inputs: Mapping[str, Tensor], layer: int, generator: torch.Generator
) -> Tensor:
    """Logits with noise of the layer's own standard deviation added to one layer."""

    def noisy(value: Tensor) -> Tensor:
        return value + value.std() * torch.randn(value.shape, generator=generator)

    with edited(model, {layer: noisy}):
        return model(**inputs).logits
