"""A linear classifier on an encoder's pooled last layer: the same head for every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from layerprobe.errors import EncoderError

Pooling = Literal["model", "mean", "cls"]
"""The input of the classification head: that of the family's own head, the mean of the tokens, or the first token."""

FIELD = "layerprobe_pooling"
"""Key of the pooling in a saved config.json; without it the classifier is the family's own."""
HEAD = "classifier.safetensors"
"""File of the classifier's weights, next to those of the body."""


class PooledClassifier(nn.Module):
    """A body under dropout and one linear layer, whose input is the mean of the tokens without padding, or the first token.

    The body has its family's own attribute name and no pooler, and is saved as it would be alone; config.json contains the
    pooling. ModernBERT is pooled after its final norm, which belongs to the head as in its own classifier.
    """

    accepts_loss_kwargs = False
    """Tells the Trainer that the loss is the mean over a batch."""

    def __init__(self, body: Any, pooling: str) -> None:
        super().__init__()
        config = body.config
        if getattr(body, "pooler", None) is not None:
            body.pooler = None
        setattr(config, FIELD, pooling)
        self.base_model_prefix = str(body.base_model_prefix)
        self.pooling = pooling
        setattr(self, self.base_model_prefix, body)
        self.dropout = nn.Dropout(_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        nn.init.normal_(self.classifier.weight, std=config.initializer_range)
        nn.init.zeros_(self.classifier.bias)

    @property
    def base_model(self) -> Any:
        return getattr(self, self.base_model_prefix)

    @property
    def config(self) -> Any:
        return self.base_model.config

    def forward(self, labels: Tensor | None = None, **inputs: Any) -> SequenceClassifierOutput:
        last = self.base_model(**inputs).last_hidden_state
        if self.pooling == "mean":
            mask = inputs["attention_mask"].unsqueeze(-1).to(last.dtype)
            pooled = (last * mask).sum(1) / mask.sum(1)
        else:
            pooled = last[:, 0]
        logits = self.classifier(self.dropout(pooled))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write the body by its own method, and the classifier next to it."""
        from safetensors.torch import save_file

        self.base_model.save_pretrained(folder, **options)
        save_file({k: v.contiguous() for k, v in self.classifier.state_dict().items()}, Path(folder) / HEAD)


def load_pooled(body: Any, folder: str | Path) -> PooledClassifier:
    """The pooled classifier in a folder, given the body loaded from it.

    Raises:
        EncoderError: if its config has an unknown pooling, or the classifier is missing, damaged or of another size.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    pooling = getattr(body.config, FIELD)
    if pooling not in ("mean", "cls"):
        raise EncoderError(f"The config.json of {folder} has {FIELD} = {pooling!r}; it is 'mean' or 'cls'.")
    model = PooledClassifier(body, pooling)
    try:
        model.classifier.load_state_dict(load_file(Path(folder) / HEAD))
    except FileNotFoundError as error:
        raise EncoderError(f"The checkpoint {folder} has no trained classification head (no {HEAD}).") from error
    except (SafetensorError, RuntimeError, OSError) as error:
        raise EncoderError(f"The {HEAD} of {folder} is damaged or of another size; copy or train it again.") from error
    return model.eval()


def _dropout(config: Any) -> float:
    """The dropout rate of the family's classifier, else that of the body."""
    names = ("classifier_dropout", "seq_classif_dropout", "classifier_dropout_prob", "hidden_dropout_prob", "dropout")
    return float(next((rate for name in names if (rate := getattr(config, name, None)) is not None), 0.1))
