"""What did fine-tuning do to every layer of this transformer?

The package root is the table of contents; every name is loaded when first used, so that `import layerprobe` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerprobe import activations, adaptation, internals, sae, similarity, sufficiency
    from layerprobe.data import Corpus, Examples, load_corpus
    from layerprobe.encoder import Encoder, load_encoder
    from layerprobe.errors import DataError, EncoderError, LayerprobeError, MeasureError, StorageError, StudyError
    from layerprobe.pipeline import Plan, plan, run
    from layerprobe.report import write_report
    from layerprobe.runs import Run
    from layerprobe.study import Study

_HOMES = {
    "Corpus": "data",
    "DataError": "errors",
    "Encoder": "encoder",
    "EncoderError": "errors",
    "Examples": "data",
    "LayerprobeError": "errors",
    "MeasureError": "errors",
    "Plan": "pipeline",
    "Run": "runs",
    "StorageError": "errors",
    "Study": "study",
    "StudyError": "errors",
    "load_corpus": "data",
    "load_encoder": "encoder",
    "plan": "pipeline",
    "run": "pipeline",
    "write_report": "report",
}
_PACKAGES = ("activations", "adaptation", "internals", "sae", "similarity", "sufficiency")

__all__ = [
    "Corpus",
    "DataError",
    "Encoder",
    "EncoderError",
    "Examples",
    "LayerprobeError",
    "MeasureError",
    "Plan",
    "Run",
    "StorageError",
    "Study",
    "StudyError",
    "activations",
    "adaptation",
    "internals",
    "load_corpus",
    "load_encoder",
    "plan",
    "run",
    "sae",
    "similarity",
    "sufficiency",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"layerprobe.{_HOMES[name]}"), name)
    if name in _PACKAGES:
        return importlib.import_module(f"layerprobe.{name}")
    raise AttributeError(f"module 'layerprobe' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
