"""What decides each stage's result, besides the parents that it is made from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from layerprobe.artifacts import checksum
from layerprobe.study import Study
from layerprobe.task import Identity, Parents

if TYPE_CHECKING:
    from layerprobe.adaptation import Method
    from layerprobe.data import Corpus, OodSet
    from layerprobe.encoder import Encoder


class Identities:
    """The identities of the stages of one study; `Inputs` gives what they are made of."""

    study: Study
    corpus: Corpus
    encoder: Encoder
    precision: Literal["bf16", "fp32"]
    ood: tuple[OodSet, ...]
    if TYPE_CHECKING:

        @property
        def train_layers(self) -> tuple[int, ...]: ...
        @property
        def sae_layers(self) -> tuple[int, ...]: ...
        @property
        def sae_texts(self) -> str: ...

    @cached_property
    def _texts(self) -> dict[str, Any]:
        asked = self.study.data
        keys = ("text", "label", "train", "test", "max_length")
        # Named apart from a training seed, which stands beside it in some identities.
        found = {"corpus": self.corpus.fingerprint, "split_seed": asked.seed}
        return found | {key: _plain(getattr(asked, key)) for key in keys}

    def adapt_identity(self, method: Method, seed: int) -> Identity:
        identity: dict[str, Any] = {
            "method": method.name,
            "seed": seed,
            "encoder": self.encoder.fingerprint,
            **self._texts,
        }
        from layerprobe.adaptation import method_rate

        if method.kind == "checkpoint":
            assert method.path is not None
            folder = Path(method.path).expanduser()
            identity["checkpoint"] = {p.name: checksum(p) for p in sorted(folder.glob("*")) if p.is_file()}
        else:
            asked = self.study.adaptation
            used = ["pooling"]
            if method.kind in ("head", "lp-ft"):
                used.append("head_learning_rate")
            if method.kind != "head":
                used += ["epochs", "batch_size", "search", "checkpoints"]
                identity["rate"] = method_rate(method, asked.learning_rate, asked.learning_rates)
            identity |= {key: getattr(asked, key) for key in used} | {"precision": self.precision}
        return lambda done: identity

    def capture_identity(self, done: Parents) -> dict[str, Any]:
        asked = self.study.activations
        return {"encoder": self.encoder.fingerprint, "examples": asked.examples, "dtype": asked.dtype, **self._texts}

    def train_identity(self, done: Parents) -> dict[str, Any]:
        return {"encoder": self.encoder.fingerprint, "layers": list(self.train_layers), **self._texts}

    def reference_identity(self, done: Parents) -> dict[str, Any]:
        return {"seed": self.study.seeds[0]}

    def similarity_identity(self, method: Method, seed: int) -> Identity:
        asked = self.study.similarity
        return lambda done: {
            "method": method.name,
            "seed": seed,
            "measures": list(asked.measures),
            "units": list(asked.units),
        }

    def nulls_identity(self, method: Method, seed: int) -> Identity:
        plain = self.similarity_identity(method, seed)
        return lambda done: {**plain(done), "shuffles": self.study.similarity.shuffles}

    def geometry_base_identity(self, done: Parents) -> dict[str, Any]:
        return {"seed": self.study.seeds[0], "units": list(self.study.similarity.units)}

    def geometry_identity(self, method: Method, seed: int) -> Identity:
        return lambda done: {"method": method.name, "seed": seed, "units": list(self.study.similarity.units)}

    def named_identity(self, method: Method, seed: int) -> Identity:
        """Of stages that ask nothing of the study beyond what their parents were made with."""
        return lambda done: {"method": method.name, "seed": seed}

    def interventions_identity(self, method: Method, seed: int) -> Identity:
        return lambda done: {"method": method.name, "seed": seed, "examples": self.study.internals.examples}

    def sae_rows_identity(self, done: Parents) -> dict[str, Any]:
        return {
            "encoder": self.encoder.fingerprint,
            "layers": list(self.sae_layers),
            "rows": self.study.sae.rows,
            "dtype": self.study.activations.dtype,
            "side": self.sae_texts,
            **self._texts,
        }

    def sae_identity(
        self, rows: str, layer: int, *, start: str | None = None, beside: str | None = None, **how: bool
    ) -> Identity:
        """Of a dictionary: the content of its rows, not how they came about, so that equal rows have one dictionary.

        One that starts from the base's, on rows that are the base's own, is the base's.
        """
        from layerprobe.activations import ActivationStore

        asked = self.study.sae
        about = {"architecture": asked.architecture, "expansion": asked.expansion, "k": asked.k}

        def identity(done: Parents) -> dict[str, Any]:
            content, base = (
                ActivationStore.open(done[name].folder / "rows").content(layer) for name in (rows, "capture-sae: base")
            )
            found: dict[str, Any] = {"rows": content, **about, "seed": self.study.seeds[0], **how}
            if beside:
                found["beside"] = base
            if start and (content != base or how.get("other_order")):
                found["start"] = done[start].key
            return found

        return identity

    def about_identity(self, sae: str, layer: int, capture: str) -> Identity:
        """Of what latents are about: the dictionary, the content of the rows that it is read on, and their labels."""
        from layerprobe.activations import ActivationStore

        return lambda done: {
            "dictionary": done[sae].key,
            "rows": ActivationStore.open(done[capture].folder / "rows").content(layer),
            "seed": self.study.seeds[0],
            **self._texts,
        }

    def layer_identity(self, method: Method, seed: int, layer: int) -> Identity:
        return lambda done: {"method": method.name, "seed": seed, "layer": layer}

    def transfer_identity(self, method: Method, seed: int, layer: int | None) -> Identity:
        about = {"controls": sorted(self.study.sae.controls), "examples": self.study.internals.examples}
        return lambda done: {"method": method.name, "seed": seed, "layer": layer, **about}

    def outside_identity(self, method: Method, seed: int) -> Identity:
        sets = [[ood.name, ood.fingerprint, list(ood.classes)] for ood in self.ood]
        return lambda done: {
            "method": method.name,
            "seed": seed,
            "sets": sets,
            "max_length": self.study.data.max_length,
        }

    def depth_identity(self, left_out: Mapping[str, str]) -> Identity:
        return lambda done: {"margin": self.study.adaptation.margin, "left_out": dict(left_out)}

    def nothing_identity(self, done: Parents) -> dict[str, Any]:
        """Of stages that hang on their parents alone."""
        return {}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
