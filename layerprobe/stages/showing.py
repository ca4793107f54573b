"""The stages that keep a few texts for a reader to look at, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.inputs import Inputs
from layerprobe.stages.dictionaries import dictionary_of
from layerprobe.stages.files import Build, pair_of, save
from layerprobe.stages.latents import ABOUT
from layerprobe.task import Parents

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.activations import ActivationStore
    from layerprobe.adaptation import Method

SENTENCES = 100
"""Test texts shown token by token in a report."""
TOP_LATENTS = 12
"""Latents of each layer and side whose activations are shown on those texts."""
SHOWN_LATENTS = 40
"""Latents of each layer and side that a reader can open: histogram, classes and texts."""
LONGEST_SENTENCE = 64
"""Tokens above which a text is too long to show."""


def sentences(inputs: Inputs, method: Method, seed: int, capture: str) -> Build:
    """How far each token of a few test texts moved in each layer: one less the cosine of base and adapted."""

    def build(folder: Path, done: Parents) -> None:
        import numpy as np
        import pandas as pd

        base, adapted = pair_of(done, capture)
        chosen = shown_rows(inputs, base)
        about = base.rows.iloc[chosen]
        frames = []
        for layer in base.layers:
            x, y = (np.asarray(store.tokens(layer)[chosen], dtype=np.float64) for store in (base, adapted))
            cosine = (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
            frames.append(token_frame(base, about).assign(layer=layer, change=1 - np.clip(cosine, -1, 1)))
        save(folder, "sentences", pd.concat(frames, ignore_index=True).assign(method=method.name, seed=seed))

    return build


def sentence_latents(
    inputs: Inputs,
    method: Method,
    seed: int,
    layer: int,
    capture: str,
    tasks: Mapping[str, str],
    abouts: Mapping[str, str],
) -> Build:
    """Activations of each side's foremost latents on the shown texts, in base and in the adapted model.

    Where the two sides are one and the same, base's stand alone.
    """

    def build(folder: Path, done: Parents) -> None:
        import numpy as np
        import pandas as pd

        from layerprobe import sae

        stores = dict(zip(("base", "adapted"), pair_of(done, capture), strict=True))
        chosen = shown_rows(inputs, stores["base"])
        if np.array_equal(stores["base"].tokens(layer), stores["adapted"].tokens(layer)):
            del stores["adapted"]
        shown = []
        for side, task in tasks.items():
            if side not in stores:
                continue
            about = pd.read_parquet(done[abouts[side]].folder / ABOUT)
            judged = about[about.judged].sort_values(["task", "effect"], ascending=False)
            top = judged["latent"].to_numpy()[:TOP_LATENTS]
            for on, store in stores.items():
                dictionary, part = dictionary_of(inputs, done, task), store.tokens(layer)[chosen]
                codes = sae.encode(dictionary, part, progress=inputs.progress)[:, top].toarray()
                row, column = np.nonzero(codes)
                where = token_frame(store, store.rows.iloc[chosen])[["example_id", "token_index"]].iloc[row]
                values = pd.DataFrame({"latent": top[column], "activation": codes[row, column]})
                one = pd.concat([where.reset_index(drop=True), values], axis=1)
                shown.append(one.assign(method=method.name, seed=seed, layer=layer, side=side, on=on))
        save(folder, "sentence_latents", pd.concat(shown, ignore_index=True))

    return build


def exhibit(
    inputs: Inputs,
    method: Method,
    seed: int,
    layer: int,
    capture: str,
    tasks: Mapping[str, str],
    compared: str,
) -> Build:
    """How the foremost latents of each side fire: on their own side, on the other, and beside their matches.

    Where the two sides are one and the same, base's are shown alone.

    Args:
        tasks: dictionaries by side.
        compared: the task whose table `latents` has both sides' latents with their partners.
    """

    def build(folder: Path, done: Parents) -> None:
        import numpy as np
        import pandas as pd

        from layerprobe import sae

        stores = dict(zip(("base", "adapted"), pair_of(done, capture), strict=True))
        rows = {side: store.tokens(layer) for side, store in stores.items()}
        about = stores["base"].rows
        untouched = np.array_equal(rows["base"], rows["adapted"])
        sides = ["base"] if untouched else ["base", "adapted"]
        labels = inputs.corpus.test.labels[: int(about["example"].max()) + 1]
        table = pd.read_parquet(done[compared].folder / "tables" / "latents.parquet")
        codes = {
            (side, on): sae.encode(dictionary_of(inputs, done, tasks[side]), rows[on], progress=inputs.progress)
            for side in sides
            for on in sides
        }
        found: dict[str, list[pd.DataFrame]] = {name: [] for name in ("histograms", "classes", "examples")}
        for side in sides:
            part = table[table["side"] == side]
            latents = sae.top_latents(part, SHOWN_LATENTS)
            readings = {on: codes[side, on][:, latents] for on in sorted(sides, key=lambda on: on != side)}
            if not untouched:
                other = codes["adapted" if side == "base" else "base", "adapted" if side == "base" else "base"]
                readings["match"] = _matches(other, part.set_index("latent").loc[latents, "partner"])
            shown = sae.exhibit(readings, latents, about, labels, inputs.corpus.label_names)
            named = {"method": method.name, "seed": seed, "layer": layer, "side": side}
            for name, frames in found.items():
                frames.append(getattr(shown, name).assign(**named))
        found["examples"] = [
            frame.assign(example_id=stores["base"].example_ids[frame["example"].astype(int)]).drop(columns="example")
            for frame in found["examples"]
        ]
        for name, frames in found.items():
            save(folder, f"latent_{name}", pd.concat(frames, ignore_index=True))

    return build


def _matches(codes: Any, partners: pd.Series) -> Any:
    """Activations of each latent's partner, silent where it has none."""
    import numpy as np
    from scipy.sparse import csc_array

    known = partners.notna().to_numpy()
    places = np.flatnonzero(known)
    pick = csc_array(
        (np.ones(len(places), dtype=np.float32), (partners[known].to_numpy(dtype=np.int64), places)),
        shape=(codes.shape[1], len(partners)),
    )
    return (codes @ pick).tocsc()


def shown_rows(inputs: Inputs, store: ActivationStore) -> Any:
    """Row numbers of the texts to show: short ones, taken from each label in turn."""
    import numpy as np

    example = store.rows["example"].to_numpy()
    lengths = np.bincount(example)
    labels = inputs.corpus.test.labels
    queues = [
        [i for i in range(len(lengths)) if labels[i] == label and 3 < lengths[i] <= LONGEST_SENTENCE]
        for label in range(len(inputs.corpus.label_names))
    ]
    turns = max(len(queue) for queue in queues)
    shown = [queue[i] for i in range(turns) for queue in queues if i < len(queue)][:SENTENCES]
    rows = np.flatnonzero(np.isin(example, shown))
    order = np.lexsort((store.rows["token_index"].to_numpy()[rows], example[rows]))
    return rows[order]


def token_frame(store: ActivationStore, about: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "example_id": store.example_ids[about["example"].to_numpy()],
            "token_index": about["token_index"].to_numpy(),
            "token": about["token"].to_numpy(),
            "special": about["special"].to_numpy(),
        }
    )
