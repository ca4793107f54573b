"""Training low-rank additions to attention matrices: inserted with peft, and merged into the weights after training."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Self

from layerprobe.adaptation.methods._method import Method
from layerprobe.errors import ArgumentError

if TYPE_CHECKING:
    from layerprobe.encoder import Encoder

SCALE = 2
"""lora_alpha / r: the same for every rank, so that the rank does not also set the step size."""


@dataclass(frozen=True)
class Lora(Method):
    """Trains low-rank additions to the query and value matrices, and the head (Hu et al. 2021)."""

    rank: int
    layers: tuple[int, ...] = ()
    """Layers (1 ... L) whose blocks get additions, in increasing order; empty is all."""
    syntax: ClassVar[str] = "lora:r, lora:r@layers"
    # Fewer parameters need larger steps. The published 4e-4 to 5e-4 are for tens of epochs.
    default_rate: ClassVar[float] = 1.5e-3

    @property
    def name(self) -> str:
        runs = groupby(self.layers, lambda layer: layer - self.layers.index(layer))
        ranges = [list(run) for _, run in runs]
        where = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in ranges)
        return f"lora:{self.rank}" + (f"@{where}" if where else "")

    @classmethod
    def parse(cls, text: str, n_layers: int | None) -> Self | None:
        if text.partition(":")[0] != "lora":
            return None
        part = r"\s*\d+(-\d+)?\s*"
        match = re.fullmatch(rf"lora:(?P<rank>\d+)(@(?P<layers>{part}(,{part})*))?", text)
        ends = re.findall(r"(\d+)(?:-(\d+))?", match["layers"] or "") if match else []
        ranges = [range(int(low), int(high or low) + 1) for low, high in ends]
        if not match or int(match["rank"]) < 1 or not all(ranges):
            raise ArgumentError(
                f"The method {text!r} is malformed; write lora:r with a rank r of 1 or more, such as lora:8, or lora:r@layers "
                "with numbers or ranges of layers, such as lora:8@1,4-6.",
                "method",
            )
        layers = sorted({layer for numbers in ranges for layer in numbers})
        wrong = [layer for layer in layers if not 1 <= layer <= (n_layers or layer)]
        if wrong:
            allowed = f"1 to {n_layers}" if n_layers else "1 up to the number of blocks"
            also = " (0 is the embeddings, which have no attention)" if wrong[0] == 0 else ""
            raise ArgumentError(
                f"The method {text!r} names layer {wrong[0]}, which is not the output of a block; "
                f"layers are {allowed}{also}.",
                "method",
            )
        return cls(int(match["rank"]), tuple(layers))

    @property
    def needs_separate_blocks(self) -> bool:
        return bool(self.layers)

    def check(self, encoder: Encoder) -> None:
        super().check(encoder)
        if self.rank > encoder.width:
            raise ArgumentError(
                f"The rank of the method {self.name!r} exceeds that of the matrices of {encoder.name}; "
                f"r is 1 to {encoder.width}.",
                "method",
            )

    def body_parameters(self, model: Any, encoder: Encoder) -> frozenset[str]:
        return frozenset(name for name, _ in model.named_parameters() if ".lora_" in name)

    def frozen_layer(self, n_layers: int) -> int:
        return min(self.layers, default=1) - 1

    def prepare(self, model: Any, encoder: Encoder, seed: int) -> None:
        """Insert the additions, which leave the model's outputs unchanged until they are trained."""
        import torch
        from peft import LoraConfig, inject_adapter_in_model

        from layerprobe.families import FAMILIES

        targets = FAMILIES[encoder.family].lora_targets
        modules = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        if missing := [target for target in targets if target not in modules]:
            raise ArgumentError(
                f"The method {self.name!r} adds to the {missing[0]} map of each block, but the blocks of {encoder.name} "
                f"({encoder.family}) have none; use bitfit or top:k.",
                "method",
            )
        config = LoraConfig(
            r=self.rank,
            lora_alpha=SCALE * self.rank,
            lora_dropout=0.0,
            target_modules=list(targets),
            layers_to_transform=[layer - 1 for layer in self.layers] or None,
            bias="none",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, model)

    def finish(self, model: Any) -> None:
        """Merge the additions into the weights."""
        from peft.tuners.lora import LoraLayer

        for name, module in list(model.named_modules()):
            if isinstance(module, LoraLayer):
                layer: Any = module
                layer.merge(safe_merge=True)
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, layer.get_base_layer())
        # With these attributes, which peft sets, `save_pretrained` would look for adapters.
        for attribute in ("peft_config", "_hf_peft_config_loaded"):
            model.__dict__.pop(attribute, None)
