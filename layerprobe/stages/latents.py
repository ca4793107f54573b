"""The stages that say what each latent is about, which were lost or are new, and how the kinds shift."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.inputs import Inputs
from layerprobe.stages.dictionaries import dictionary_of
from layerprobe.stages.files import Build, pair_of, save
from layerprobe.task import Parents

if TYPE_CHECKING:
    from layerprobe.adaptation import Method
    from layerprobe.sae import Matching

ABOUT, SHARES = "associations.parquet", "shares.parquet"


def associate(inputs: Inputs, layer: int, capture: str, sae_task: str) -> Build:
    """What each latent of one dictionary goes with, on the test texts, and how many would with labels permuted."""

    def build(folder: Path, done: Parents) -> None:
        from layerprobe import sae
        from layerprobe.activations import ActivationStore

        store = ActivationStore.open(done[capture].folder / "rows")
        example = store.groups("token")
        labels = inputs.corpus.test.labels[: int(example.max()) + 1]
        codes = sae.encode(dictionary_of(inputs, done, sae_task), store.tokens(layer), progress=inputs.progress)
        table = sae.associations(codes, store.rows, labels, inputs.corpus.label_names)
        null = sae.label_null(codes, example, labels, seed=inputs.study.seeds[0])
        table.to_parquet(folder / ABOUT, index=False)
        sae.latent_shares(table, codes, example, null).to_parquet(folder / SHARES, index=False)

    return build


def match_bases(inputs: Inputs, layer: int, tasks: Mapping[str, str]) -> Build:
    """The nulls of matching: the base's dictionary beside those that differ from it by chance alone.

    Args:
        tasks: dictionaries by role: base, `base:other-order` and, where there is one, `base:second-seed`.
    """

    def build(folder: Path, done: Parents) -> None:
        from layerprobe import sae
        from layerprobe.activations import ActivationStore

        rows = ActivationStore.open(done["capture: base"].folder / "rows").tokens(layer)
        base = dictionary_of(inputs, done, tasks["base"])
        base_codes = sae.encode(base, rows, progress=inputs.progress)
        for role in [role for role in tasks if role != "base"]:
            other = dictionary_of(inputs, done, tasks[role])
            found = sae.match(base, other, base_codes, sae.encode(other, rows, progress=inputs.progress))
            name = role.partition(":")[2]
            found.table.to_parquet(folder / f"{name}.parquet", index=False)
            found.reverse.to_parquet(folder / f"{name}-reverse.parquet", index=False)

    return build


def _null(done: Parents, task: str, name: str) -> Matching:
    import pandas as pd

    from layerprobe.sae import Matching

    folder = done[task].folder
    return Matching(pd.read_parquet(folder / f"{name}.parquet"), pd.read_parquet(folder / f"{name}-reverse.parquet"))


def latents(
    inputs: Inputs,
    method: Method,
    seed: int,
    layer: int,
    capture: str,
    tasks: Mapping[str, str],
    abouts: Mapping[str, str],
    nulls: str,
    crosscoder: str | None,
) -> Build:
    """Both sides' latents side by side: kinds and their shift, matches beside their null, and the joint census.

    Args:
        tasks: dictionaries by role, as in `transfer`, with `base:other-order`.
        abouts: associations by role.
        nulls: matches among the base's dictionaries.
        crosscoder: the joint dictionary, where one was trained.
    """

    def build(folder: Path, done: Parents) -> None:
        import pandas as pd

        from layerprobe import sae

        named: dict[str, Any] = {"method": method.name, "seed": seed, "layer": layer}
        base, adapted = pair_of(done, capture)
        tokens = {"base": base.tokens(layer), "adapted": adapted.tokens(layer)}
        read = {role: dictionary_of(inputs, done, task) for role, task in tasks.items()}

        base_codes = sae.encode(read["base"], tokens["base"], progress=inputs.progress)

        def matched(other: str) -> Matching:
            codes = sae.encode(read[other], tokens["adapted"], progress=inputs.progress)
            return sae.match(read["base"], read[other], base_codes, codes)

        own, null = matched("adapted"), _null(done, nulls, "other-order")
        pairs = [("same start", own, null)]
        if "adapted:second-seed" in read:
            pairs.append(("different starts", matched("adapted:second-seed"), _null(done, nulls, "second-seed")))
        rows = []
        for start, match, beside in pairs:
            for on in ("cosine", "correlation"):
                compared = sae.compare_to_null(match, beside, on=on, seed=inputs.study.seeds[0])
                fields = {k: v for k, v in vars(compared).items() if k not in ("lost", "kept", "new")}
                rows.append({**named, "start": start, **fields})
        save(folder, "matching", pd.DataFrame(rows))
        census = None
        if crosscoder is not None and (done[crosscoder].folder / "crosscoder").is_dir():
            joint = sae.Crosscoder.load(done[crosscoder].folder / "crosscoder", device=inputs.device)
            joint_codes = joint.encode(tokens["base"], tokens["adapted"])
            census = sae.census(joint, tokens["base"], tokens["adapted"], joint_codes)
            variance = joint.explained_variance(tokens["base"], tokens["adapted"], joint_codes)
            about = {"ev_base": variance[0], "ev_adapted": variance[1], "d_sae": joint.d_sae, "k": joint.k}
            save(folder, "census", census.assign(**named, **about))
        against = sae.compare_to_null(own, null, seed=inputs.study.seeds[0])
        lost, new = set(against.lost), set(against.new)
        frames = []
        for side, partners, gone in (("base", own.table, lost), ("adapted", own.reverse, new)):
            table = pd.read_parquet(done[abouts[side]].folder / ABOUT)
            table = table.merge(partners.drop(columns=["density", "live"]), on="latent", how="left")
            table["unmatched"] = table["latent"].isin(gone)
            if census is not None:
                table = table.join(_placed(joint, census, read[side], side))
            frames.append(table.assign(**named, side=side))
        save(folder, "latents", pd.concat(frames, ignore_index=True))
        shares = []
        for role, task in abouts.items():
            side, _, kind = role.partition(":")
            found = pd.read_parquet(done[task].folder / SHARES)
            shares.append(found.assign(**named, side=side, dictionary=kind or "first"))
        save(folder, "latent_shares", pd.concat(shares, ignore_index=True))

    return build


def _placed(joint: Any, census: Any, dictionary: Any, side: str) -> Any:
    """For each latent of one side's dictionary, the joint latent whose direction on that side is nearest, and its Delta."""
    import numpy as np
    import pandas as pd

    live = np.flatnonzero(census["kind"] != "dead")
    theirs = joint.decoder[live, 0 if side == "base" else 1].astype(np.float64)
    own = dictionary.decoder.cpu().numpy().astype(np.float64)
    theirs, own = (z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12) for z in (theirs, own))
    cosine = own @ theirs.T
    nearest = cosine.argmax(1)
    about = census.iloc[live[nearest]]
    return pd.DataFrame(
        {
            "joint": about["latent"].to_numpy(),
            "joint_cosine": cosine.max(1),
            "delta": about["delta"].to_numpy(),
            "joint_kind": about["kind"].to_numpy(),
        }
    )


def crossing(inputs: Inputs, parents: tuple[str, ...]) -> Build:
    """For each method, the first layer at which the adapted model's share of task latents is beyond base's."""

    def build(folder: Path, done: Parents) -> None:
        import pandas as pd

        from layerprobe import sae

        table = pd.concat(
            [pd.read_parquet(done[name].folder / "tables" / "latent_shares.parquet") for name in parents],
            ignore_index=True,
        )
        seeds = {"first": 0, "second-seed": 1}
        rows = table[table.dictionary.isin(seeds)].assign(sae_seed=lambda t: t.dictionary.map(seeds))
        both = rows.groupby(["method", "seed", "layer", "sae_seed"]).side.transform("nunique") == 2
        save(folder, "crossing", sae.crossing(rows[both]))

    return build
