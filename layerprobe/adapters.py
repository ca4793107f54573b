"""A PEFT adapter in a folder, merged into the model that it was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.checkpoints import Checkpoint, quiet
from layerprobe.errors import EncoderError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_OUTPUTS = ("classifier.out_proj.weight", "classifier.weight")
"""Weights of the last layer of a classification head, one row per class."""
_MERGE = "load it with peft on its base, call merge_and_unload(), and save the result with save_pretrained"


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (Path(folder) / CONFIG).is_file()


def load_merged(folder: str, base: Checkpoint) -> PreTrainedModel:
    """The classifier that a LoRA adapter makes of its base, with the additions merged into the weights, in float32 and eval
    mode on the CPU.

    Args:
        folder: as `save_pretrained` of a peft model wrote it. Weights are read from safetensors only.
        base: the model that the adapter was trained on.

    Raises:
        EncoderError: if the adapter is incomplete, damaged, not a LoRA, or does not fit the base.
    """
    from peft import LoraConfig, PeftModelForSequenceClassification, set_peft_model_state_dict

    settings, weights = _settings(folder), _weights(folder)
    classes = next((len(weights[_PREFIX + name]) for name in _OUTPUTS if _PREFIX + name in weights), None)
    if classes is None:
        raise EncoderError(
            f"The adapter {folder} has no trained classification head (no {_OUTPUTS[1]}); train it with "
            'task_type="SEQ_CLS", which saves the head.'
        )
    model, missing = base.classifier(num_labels=classes, ignore_mismatched_sizes=True)
    untrained = [name for name in missing if _PREFIX + name not in weights]
    if untrained:
        raise EncoderError(
            f"The adapter {folder} lacks {untrained[0]}, a part of the classification head that {base.name} lacks too; name "
            "it in modules_to_save and train the adapter again."
        )
    try:
        with quiet():
            adapted = PeftModelForSequenceClassification(model, LoraConfig.from_peft_type(**settings))
            loaded: Any = set_peft_model_state_dict(adapted, weights)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise EncoderError(
            f"The adapter {folder} does not fit {base.name} ({reason}); give the base model that it was trained on as "
            "{encoder}.",
            "encoder",
        ) from error
    own = [name for name in loaded.missing_keys if ".lora_" in name or ".modules_to_save." in name]
    if own or loaded.unexpected_keys:
        name = (own or loaded.unexpected_keys)[0]
        raise EncoderError(
            f"The adapter {folder} {'lacks' if own else 'has'} weights of {name}, unlike its {CONFIG}; save it again, or give "
            "the base model that it was trained on as {encoder}.",
            "encoder",
        )
    return adapted.merge_and_unload().float().eval()


def _settings(folder: str) -> dict[str, Any]:
    """The content of the adapter's configuration, if its result depends on these and the weights alone."""
    try:
        settings = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
        kind = str(settings["peft_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EncoderError(f"The {CONFIG} of {folder} cannot be read ({error}); save the adapter again.") from error
    if kind.upper() != "LORA":
        raise EncoderError(f"The adapter {folder} is of the type {kind}; only LORA is merged here: {_MERGE}.")
    # These subtract from the weights of the base before training, or import a module that the file names.
    start = settings.get("init_lora_weights")
    if settings.get("megatron_config") or (isinstance(start, str) and start not in ("gaussian", "orthogonal", "eva")):
        what = "megatron_config" if settings.get("megatron_config") else f"init_lora_weights = {start!r}"
        raise EncoderError(f"The adapter {folder} has {what}, which is not supported here: {_MERGE}.")
    return settings | {"peft_type": "LORA", "task_type": "SEQ_CLS", "init_lora_weights": True, "inference_mode": True}


def _weights(folder: str) -> dict[str, Tensor]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / WEIGHTS
    if not path.is_file():
        if list(Path(folder).glob("*.bin")):
            raise EncoderError(
                f"The weights of the adapter {folder} are a pickle, which is never loaded; convert them to {WEIGHTS}."
            )
        raise EncoderError(f"The adapter {folder} has no {WEIGHTS}; save it again.")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise EncoderError(f"The {WEIGHTS} of {folder} is damaged ({error}); copy or train it again.") from error
    if invalid := [name for name, value in weights.items() if not torch.isfinite(value).all()]:
        raise EncoderError(f"The adapter {folder} contains NaN or infinite values ({invalid[0]}); train it again.")
    return weights
