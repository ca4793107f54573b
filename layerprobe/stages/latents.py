"""The stage that compares the latents of both sides: their associations, their matches, and the joint census."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from layerprobe.context import Context
from layerprobe.stage import Json, LayerStage, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages import associations as stored
from layerprobe.stages._artifacts import dictionary_of, paired_rows, save
from layerprobe.stages.associations import Associations
from layerprobe.stages.capture import Capture
from layerprobe.stages.crosscoder import Crosscoder
from layerprobe.stages.encode import Encode, codes_of
from layerprobe.stages.match import Match, null_matching
from layerprobe.stages.sae import Sae
from layerprobe.store import Artifact, ArtifactMeta

MATCHING = TableSpec(
    "matching",
    "How well base latents are matched by adapted ones, compared with a null: one row per method, seed, layer, start and "
    "criterion.",
    columns(
        "method",
        "seed",
        "layer",
        start="`same start` (both dictionaries continue from one start, in two orders of rows; null: both on base rows) or "
        "`different starts` (from starts of two seeds; null: both on base rows)",
        on="criterion of the match: `cosine` of decoder directions or `correlation` of activations",
        threshold="5th percentile of the null's matches",
        lost_share="share of live base latents whose match is below the threshold",
        lost_low="lower end of its 95% interval over latents",
        lost_high="upper end of its 95% interval over latents",
        new_share="share of live adapted latents whose match is below the threshold",
        new_low="lower end of its 95% interval over latents",
        new_high="upper end of its 95% interval over latents",
        null_lost_share="share of lost latents in the null",
        null_new_share="share of new latents in the null",
        mean="mean match of base latents, -1 to 1",
        mean_low="lower end of its 95% interval over latents",
        mean_high="upper end of its 95% interval over latents",
        null_mean="mean match in the null",
        null_low="lower end of its 95% interval over latents",
        null_high="upper end of its 95% interval over latents",
        difference="mean match minus that of the null, over latents that have both",
        difference_low="lower end of its 95% interval over latents",
        difference_high="upper end of its 95% interval over latents",
        n="number of live base latents",
        n_other="number of live adapted latents",
    ),
)
CENSUS = TableSpec(
    "census",
    "Latents of the joint dictionary (crosscoder) of base and adapted: one row per method, seed, layer and latent.",
    columns(
        "method",
        "seed",
        "layer",
        latent="number of the latent",
        delta="relative decoder norm: 0 for base alone, 1/2 for both sides equally, 1 for adapted alone",
        delta_centred="the same after the adapted side is rescaled by the median ratio of norms over activations, which assumes "
        "that most of these are of shared latents",
        nu_error="latent scaling on the residuals: how much of the latent the weaker side's errors contain, 1 for as much as "
        "the stronger side's",
        nu_error_low="lower end of its 95% interval over examples",
        nu_error_high="upper end of its 95% interval over examples",
        nu_statistic="t statistic of nu_error minus .1",
        p_exclusive="p-value of: the weaker side contains at least a tenth of it",
        nu_reconstruction="latent scaling on the reconstructions, likewise",
        cosine="cosine of the latent's two decoder directions, -1 to 1",
        firing_rate="share of tokens on which it is active",
        energy_share="its share of the reconstructed variance of both sides",
        kind="`shared`, `amplified`, `shifted`, `rotated`, `base_only`, `adapted_only` or `dead`",
        ev_base="explained variance of the joint dictionary on base rows",
        ev_adapted="explained variance of the joint dictionary on adapted rows",
        d_sae="number of latents",
        k="active latents per token",
    ),
)
LATENTS = TableSpec(
    "latents",
    "Latents of the dictionaries of both sides: one row per method, seed, layer, side and latent.",
    columns(
        "method",
        "seed",
        "layer",
        "side",
        latent="number of the latent",
        kind="`task`, `general`, `both`, `unexplained` or `dead`",
        density="share of test tokens on which it is active",
        active_examples="number of test examples in which it is active",
        max_activation="largest activation on the test tokens",
        judged="whether it is active in at least 10 examples, and so is tested",
        mutual_information="bits between an example's label and whether the latent is active in it",
        label="label that it is most associated with",
        pooling="how activations are pooled in this comparison: `max` or `mean` over tokens",
        auroc="area under the ROC curve for this label against the rest, 0 to 1",
        effect="|2 AUROC - 1|, 0 to 1",
        p="p value of the comparison",
        q="p value adjusted for the false-discovery rate",
        task="whether an association with a label is a discovery",
        property="token property that it is most associated with",
        property_value="value of the property at which it is more active",
        property_effect="absolute rank correlation with the property, 0 to 1",
        property_auroc="area under the ROC curve for the property; missing for `high` and `low`",
        property_p="p value of the association",
        property_q="p value adjusted for the false-discovery rate",
        general="whether an association with a property is a discovery",
        partner="latent of the other side that it is matched with one to one by decoder direction; missing if there is none",
        cosine="cosine of the two decoder directions, -1 to 1",
        nearest="latent of the other side with the nearest decoder direction",
        nearest_cosine="cosine with its direction",
        partner_by_activation="latent of the other side that it is matched with one to one by activations",
        correlation="correlation of the two latents' activations, -1 to 1",
        unmatched="whether its match is below the 5th percentile of the null",
        joint="latent of the joint dictionary with the nearest direction",
        joint_cosine="cosine with its direction",
        delta="its relative decoder norm: 0 for base alone, 1 for adapted alone",
        joint_kind="its kind, as in `census`",
    ),
)
LATENT_SHARES = TableSpec(
    "latent_shares",
    "Numbers and shares of latents by kind: one row per method, seed, layer, side and dictionary.",
    columns(
        "method",
        "seed",
        "layer",
        "side",
        "n",
        dictionary="`first`, or `second-seed`",
        latents="number of latents",
        task="number of judged latents associated with a label alone",
        general="number of judged latents associated with a token property alone",
        both="number of judged latents associated with both",
        unexplained="number of judged latents associated with neither",
        rare="number of latents that are active, but in fewer than 10 examples",
        dead="number of latents that are active on no test token",
        live="number of judged latents: active in at least 10 examples",
        share_task="share of judged latents that are associated with a label",
        share_low="lower end of its 95% Wilson interval over latents",
        share_high="upper end of its 95% Wilson interval over latents",
        share_general="share of judged latents that are associated with a token property",
        share_both="share of judged latents that are associated with both",
        share_unexplained="share of judged latents that are associated with neither",
        share_permuted="share of task latents under permuted labels, mean over permutations",
        share_permuted_high="its 95th percentile over permutations",
        mass_task="share of the sum of activations that task latents have",
        mass_low="lower end of its 95% interval over examples",
        mass_high="upper end of its 95% interval over examples",
    ),
)


@dataclass(frozen=True)
class Latents(LayerStage):
    """The latents of both sides: associations and their shares, matches compared with their null, and the census."""

    controls: tuple[str, ...] = ()
    crosscoder: bool = True

    name: ClassVar = "latents"
    version: ClassVar = 4
    tables: ClassVar = (MATCHING, CENSUS, LATENTS, LATENT_SHARES)
    accelerator: ClassVar = True
    first_guess: ClassVar = 5.0

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        settings = shape.study.sae
        for method, seed in shape.runs:
            for layer in shape.sae_layers:
                yield cls(method, seed, layer, settings.controls, settings.crosscoder)

    @property
    def dictionaries(self) -> tuple[Sae, ...]:
        """Base and adapted, then from the second seed if there is one."""
        variants = ("trained", "second-seed") if "second-seed" in self.controls else ("trained",)
        sides = (None, None), (self.method, self.seed)
        return tuple(Sae(*side, self.layer, variant) for variant in variants for side in sides)  # type: ignore[arg-type]

    @property
    def captures(self) -> dict[str, Capture]:
        return {"base": Capture.of_base(), "adapted": Capture(self.method, self.seed)}

    def parents(self) -> Mapping[str, Stage]:
        parents: dict[str, Stage] = {**self.captures, "null": Match(layer=self.layer, controls=self.controls)}
        for dictionary in self.dictionaries:
            encode = Encode(dictionary, self.captures[dictionary.side])
            parents |= {dictionary.role: dictionary, encode.role: encode}
            parents[f"{dictionary.role} associations"] = Associations(dictionary)
        if self.crosscoder:
            parents["crosscoder"] = Crosscoder(self.method, self.seed, self.layer)
        return parents

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return self.named

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        from layerprobe import sae

        base, adapted = paired_rows(parents)
        tokens = {"base": base.tokens(self.number), "adapted": adapted.tokens(self.number)}

        def with_codes(task: Sae) -> tuple[Any, Any]:
            codes = codes_of(parents, Encode(task, self.captures[task.side]))
            return dictionary_of(parents[task.role], context.device), codes

        first, *others = self.dictionaries
        loaded = with_codes(first)
        pairs = []
        for task in others:
            if task.side == "adapted":
                variant = {"trained": "other-order", "second-seed": "second-seed"}[task.variant]
                start = {"trained": "same start", "second-seed": "different starts"}[task.variant]
                other = with_codes(task)
                matching = sae.match(loaded[0], other[0], loaded[1], other[1])
                pairs.append((start, matching, null_matching(parents["null"], variant)))
        rows = []
        for start, matching, null in pairs:
            for on in ("cosine", "correlation"):
                compared = sae.compare_to_null(matching, null, on=on, seed=context.seed)
                fields = {key: value for key, value in vars(compared).items() if key not in ("lost", "kept", "new")}
                rows.append({**self.named, "start": start, **fields})
        save(folder, "matching", pd.DataFrame(rows))
        census = self._census(context, parents, tokens, base.groups("token"), folder)
        _, matching, null = pairs[0]
        compared = sae.compare_to_null(matching, null, seed=context.seed)
        tables = []
        for task, partners, unmatched in (
            (self.dictionaries[0], matching.table, set(compared.lost)),
            (self.dictionaries[1], matching.reverse, set(compared.new)),
        ):
            table = pd.read_parquet(parents[f"{task.role} associations"].folder / stored.TABLE)
            table = table.merge(partners.drop(columns=["density", "live"]), on="latent", how="left")
            table["unmatched"] = table["latent"].isin(unmatched)
            if census is not None:
                table = table.join(_nearest_joint(census[0], census[1], dictionary_of(parents[task.role]), task.side))
            tables.append(table.assign(**self.named, side=task.side))
        save(folder, "latents", pd.concat(tables, ignore_index=True))
        shares = []
        for task in self.dictionaries:
            table = pd.read_parquet(parents[f"{task.role} associations"].folder / stored.SHARES)
            dictionary = {"trained": "first", "second-seed": "second-seed"}[task.variant]
            shares.append(table.assign(**self.named, side=task.side, dictionary=dictionary))
        save(folder, "latent_shares", pd.concat(shares, ignore_index=True))

    def _census(
        self,
        context: Context,
        parents: Mapping[str, Artifact],
        tokens: Mapping[str, Any],
        groups: Any,
        folder: Path,
    ) -> Any:
        """The joint dictionary and the census of its latents, which is written; None without a joint dictionary."""
        from layerprobe import sae

        if not self.crosscoder or not (parents["crosscoder"].folder / "crosscoder").is_dir():
            return None
        joint = sae.Crosscoder.load(parents["crosscoder"].folder / "crosscoder", device=context.device)
        codes = joint.encode(tokens["base"], tokens["adapted"])
        census = sae.census(joint, tokens["base"], tokens["adapted"], codes, groups)
        variance = joint.explained_variance(tokens["base"], tokens["adapted"], codes)
        quality = {"ev_base": variance[0], "ev_adapted": variance[1], "d_sae": joint.d_sae, "k": joint.k}
        save(folder, "census", census.assign(**self.named, **quality))
        return joint, census


def _nearest_joint(joint: Any, census: Any, dictionary: Any, side: str) -> Any:
    """For each latent of one side's dictionary, the joint latent whose direction on that side is nearest, and its Delta."""
    import numpy as np
    import pandas as pd

    live = np.flatnonzero(census["kind"] != "dead")
    directions = joint.decoder[live, 0 if side == "base" else 1].astype(np.float64)
    latents = dictionary.decoder.cpu().numpy().astype(np.float64)
    directions, latents = (
        z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12) for z in (directions, latents)
    )
    cosine = latents @ directions.T
    nearest = census.iloc[live[cosine.argmax(1)]]
    return pd.DataFrame(
        {
            "joint": nearest["latent"].to_numpy(),
            "joint_cosine": cosine.max(1),
            "delta": nearest["delta"].to_numpy(),
            "joint_kind": nearest["kind"].to_numpy(),
        }
    )
