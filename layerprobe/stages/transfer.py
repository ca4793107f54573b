"""The stage that measures how well each dictionary reconstructs both sides, and what that is worth to the classifier."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

from layerprobe.context import Context, relabelled
from layerprobe.stage import Json, LayerStage, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import dictionary_of, paired_rows, rows_of, save
from layerprobe.stages.adapt import Adapt
from layerprobe.stages.capture import Capture, CaptureSae
from layerprobe.stages.encode import Encode, codes_of
from layerprobe.stages.sae import Sae, compared_dictionaries, steps_of
from layerprobe.store import Artifact, ArtifactMeta

TASK_LOSS = ("base trained", "adapted trained", "base untrained", "base frozen-decoder")
"""Roles of the dictionaries with which the classifier is run."""

SAE = TableSpec(
    "sae",
    "Reconstruction by each dictionary on the test tokens of each side: one row per method, seed, layer, dictionary and side.",
    columns(
        "method",
        "seed",
        "layer",
        trained_on="`base` or `adapted`: side that the dictionary was trained on",
        kind="`trained`, or a control: `other-order` (trained on the same rows in another order), `second-seed`, "
        "`frozen-decoder` or `untrained`",
        evaluated_on="`base` or `adapted`: side of the test tokens",
        architecture="kind of sparse autoencoder, as sae-lens names it",
        d_sae="number of latents",
        k="active latents per token, in the TopK family",
        trained_rows="number of token rows that it was trained on",
        steps="number of training steps, those of the start on base rows included; equal for both sides",
        texts="examples that these rows come from: `unseen` or `train`",
        explained_variance="share of the rows' variance that is reconstructed: at most 1, 0 for predicting the mean",
        ev_low="lower end of its 95% interval over examples",
        ev_high="upper end of its 95% interval over examples",
        base_excess="explained variance of the base's trained dictionary on the same rows minus that of this one",
        base_excess_low="lower end of its paired 95% interval over examples, for these dictionaries",
        base_excess_high="upper end of its paired 95% interval over examples, for these dictionaries",
        ev_head_rows="explained variance of the rows that the classifier's head reads; missing below the last layer, and "
        "where the head reads all tokens",
        ev_head_low="lower end of its 95% interval over examples",
        ev_head_high="upper end of its 95% interval over examples",
        head_rows="number of these rows: the first token of each example",
        l0="active latents per token, on average",
        dead_share="share of latents that are active on no test token",
        reconstruction_bias="size of the reconstruction relative to the rows; below 1 where it is too small",
        rows="number of test tokens",
        examples="number of test examples that the tokens come from",
        loss_recovered="share of the loss added by mean-ablating the layer that the reconstruction avoids: at most about 1",
        loss_recovered_low="lower end of its 95% interval over examples",
        loss_recovered_high="upper end of its 95% interval over examples",
        accuracy_recovered="share of the accuracy lost by mean-ablating the layer that the reconstruction keeps",
        accuracy_recovered_low="lower end of its 95% interval over examples",
        accuracy_recovered_high="upper end of its 95% interval over examples",
        why="why a recovered share is undefined; empty if it is defined",
        task_loss="cross-entropy of the classifier with the reconstruction in place of the layer, in nats",
        task_loss_clean="cross-entropy of the unchanged classifier, in nats",
        task_loss_ablated="cross-entropy with the layer replaced by its mean, in nats",
        task_accuracy="accuracy with the reconstruction in place of the layer, 0 to 1",
        task_accuracy_clean="accuracy of the unchanged classifier",
        task_accuracy_ablated="accuracy with the layer replaced by its mean",
        task_texts="number of test examples behind the loss and the accuracy",
    ),
)
SAE_DENSITIES = TableSpec(
    "sae_densities",
    "Histogram of how often latents are active: one row per dictionary, side and bin.",
    columns(
        "method",
        "seed",
        "layer",
        trained_on="as in `sae`",
        kind="as in `sae`",
        evaluated_on="as in `sae`",
        low="lower end of the bin: log10 of the share of tokens; -inf to -inf counts dead latents",
        high="upper end of the bin, inclusive",
        latents="number of latents in the bin",
    ),
)
SAE_LOG = TableSpec(
    "sae_log",
    "Training of each dictionary: one row per dictionary and logged step, measured on the training batch.",
    columns(
        "method",
        "seed",
        "layer",
        side="`base` or `adapted`: side that the dictionary is trained on",
        kind="as in `sae`",
        step="training step; the first ones, on base rows, are of the start that both sides continue from",
        loss="training loss",
        explained_variance="share of the batch's variance that is reconstructed",
        l0="active latents per token",
        dead_share="share of latents that have been inactive for many steps",
    ),
)


@dataclass(frozen=True)
class Transfer(LayerStage):
    """Reconstruction quality of the dictionaries of both sides and their controls, on both sides' test tokens."""

    controls: tuple[str, ...] = ()
    base_classifier: Adapt | None = None
    """The trained head that serves as the base's classifier; None if the study trains none."""

    name: ClassVar = "transfer"
    version: ClassVar = 6
    tables: ClassVar = (SAE, SAE_DENSITIES, SAE_LOG)
    accelerator: ClassVar = True
    first_guess: ClassVar = 20.0

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        controls = shape.study.sae.controls
        for method, seed in shape.runs:
            for layer in shape.sae_layers:
                yield cls(method, seed, layer, controls, base_classifier(shape, seed))

    @property
    def dictionaries(self) -> tuple[Sae, ...]:
        dictionaries = compared_dictionaries(self, self.controls)
        if "untrained" in self.controls:
            untrained = Sae(layer=self.layer, variant="untrained")
            dictionaries += (untrained, Sae(self.method, self.seed, self.layer, "untrained"))
        return dictionaries

    @property
    def captures(self) -> dict[str, Capture]:
        return {"base": Capture.of_base(), "adapted": Capture(self.method, self.seed)}

    @property
    def encodes(self) -> tuple[Encode, ...]:
        """Each dictionary is read on both sides, except the adapted model's controls on base rows."""
        return tuple(
            Encode(dictionary, capture)
            for dictionary in self.dictionaries
            for side, capture in self.captures.items()
            if dictionary.side == "base" or dictionary.variant == "trained" or side == "adapted"
        )

    def parents(self) -> Mapping[str, Stage]:
        parents: dict[str, Stage] = {**self.captures}
        parents |= {"base sae rows": CaptureSae.of_base(), "adapted sae rows": CaptureSae(self.method, self.seed)}
        parents |= {dictionary.role: dictionary for dictionary in self.dictionaries}
        parents |= {encode.role: encode for encode in self.encodes}
        parents["adapted classifier"] = Adapt(self.method, self.seed)
        if self.base_classifier is not None:
            parents["base classifier"] = self.base_classifier
        return parents

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return {**self.named, "controls": sorted(self.controls), "examples": study.study.internals.examples}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import numpy as np
        import pandas as pd

        from layerprobe import sae
        from layerprobe.encoder import head_row

        stores = dict(zip(("base", "adapted"), paired_rows(parents), strict=True))
        tokens = {side: store.tokens(self.number) for side, store in stores.items()}
        groups = stores["base"].groups("token")
        first = np.flatnonzero(stores["base"].rows["token_index"] == 0)
        # Below the last layer, attention mixes all tokens into the first one.
        reads_first = self.number == context.encoder.n_layers and len(first) >= 4
        reads_first = reads_first and head_row(context.base_model(), context.encoder) != "mean"
        loaded = {task.role: dictionary_of(parents[task.role], context.device) for task in self.dictionaries}
        # Equal artifacts, as of a layer that adaptation did not change, are measured once.
        by_key = {parents[role].key: dictionary for role, dictionary in loaded.items()}

        @cache
        def evaluated(encode_key: str, role: str) -> Any:
            encode = next(one for one in self.encodes if one.role == role)
            rows, codes = tokens[encode.capture.side], codes_of(parents, encode)
            dictionary = loaded[encode.dictionary.role]
            whole = sae.evaluate(dictionary, rows, codes, groups)
            if not reads_first:
                return whole, None
            return whole, sae.evaluate(dictionary, rows[first], codes.tocsr()[first].tocsc(), groups[first])

        @cache
        def losses(side: str) -> pd.DataFrame:
            classifier = parents[f"{side} classifier"]
            variants = {parents[role].key: by_key[parents[role].key] for role in TASK_LOSS if role in loaded}
            # The base's classifier and dictionaries are those of every method; head adapts no more than that classifier.
            known = context.shared.setdefault(("task costs", classifier.key, self.number), {})
            if missing := {key: dictionary for key, dictionary in variants.items() if key not in known}:
                known |= sae.task_costs(
                    context.adapted_model(classifier).to(context.device),
                    context.encoder,
                    relabelled(classifier, context.rerun_examples),
                    self.number,
                    missing,
                    max_length=context.study.data.max_length,
                    ablated=sae.ABLATED not in known,
                )
            costs = {key: known[key] for key in (sae.CLEAN, sae.ABLATED, *variants)}
            return sae.task_loss_table(costs).set_index("variant")

        def measured(encode: Encode) -> Any:
            # One evaluation for all encodings with equal codes: the first that has this artifact.
            shared = next(one for one in self.encodes if parents[one.role].key == parents[encode.role].key)
            return evaluated(parents[encode.role].key, shared.role)

        settings = context.study.sae
        base = {side: Encode(Sae(layer=self.layer), capture) for side, capture in self.captures.items()}
        quality, densities, logs = [], [], []
        for encode in self.encodes:
            task, on = encode.dictionary, encode.capture.side
            dictionary, source = loaded[task.role], parents[task.role]
            result, head = measured(encode)
            excess = sae.ev_difference(measured(base[on])[0], result)
            named: dict[str, Any] = {**self.named, "trained_on": task.side, "kind": task.variant}
            row: dict[str, Any] = {
                **named,
                "architecture": settings.architecture,
                "d_sae": dictionary.d_sae,
                "k": settings.k or sae.default_k(dictionary.d_in, dictionary.d_sae),
                "trained_rows": len(rows_of(parents[f"{task.side} sae rows"]).tokens(self.number)),
                "steps": steps_of(source),
                "texts": context.resolved.sae_source,
                "evaluated_on": on,
                **_quality_columns(result),
                "base_excess": excess.value,
                "base_excess_low": excess.low,
                "base_excess_high": excess.high,
            }
            if head is not None:
                row |= {"ev_head_rows": head.explained_variance, "head_rows": head.n}
                row |= {"ev_head_low": head.ev_low, "ev_head_high": head.ev_high}
            if task.role in TASK_LOSS and f"{on} classifier" in parents:
                row |= _task_columns(losses(on), source.key)
            quality.append(row)
            densities.append(result.densities.assign(**named, evaluated_on=on))
        for task in self.dictionaries:
            if task.variant != "untrained":
                history = pd.read_parquet(parents[task.role].folder / "dictionary" / "history.parquet")
                logs.append(history.assign(**self.named, side=task.side, kind=task.variant))
        save(folder, "sae", pd.DataFrame(quality))
        save(folder, "sae_densities", pd.concat(densities, ignore_index=True))
        save(folder, "sae_log", pd.concat(logs, ignore_index=True))


def base_classifier(shape: StudyShape, seed: int) -> Adapt | None:
    """The trained head on the base's own body: of the same seed, else of the first one."""
    method = next((method for method in shape.methods if method.trains and not method.changes_body), None)
    if method is None:
        return None
    seeds = shape.seeds(method)
    return Adapt(method, seed if seed in seeds else seeds[0])


def _quality_columns(result: Any) -> dict[str, Any]:
    names = ("explained_variance", "ev_low", "ev_high", "l0", "dead_share", "reconstruction_bias")
    return {**{name: getattr(result, name) for name in names}, "rows": result.n, "examples": result.examples}


def _task_columns(losses: Any, key: str) -> dict[str, Any]:
    """Loss and accuracy of the classifier with a dictionary's reconstruction in place of the layer."""
    row, clean, ablated = losses.loc[key], losses.loc["clean"], losses.loc["mean_ablated"]
    recovered = ("loss_recovered", "loss_recovered_low", "loss_recovered_high")
    accuracy = ("accuracy_recovered", "accuracy_recovered_low", "accuracy_recovered_high")
    return {
        **{name: row[name] for name in (*recovered, *accuracy, "why")},
        "task_loss": row["loss"],
        "task_loss_clean": clean["loss"],
        "task_loss_ablated": ablated["loss"],
        "task_accuracy": row["accuracy"],
        "task_accuracy_clean": clean["accuracy"],
        "task_accuracy_ablated": ablated["accuracy"],
        "task_texts": row["n"],
    }
