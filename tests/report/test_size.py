"""Sizes of pages, with tables as large as those of studies that people run."""

import json

import numpy as np
import pandas as pd
import pytest
from fabricated import complete, depth_study, record, tokens_of
from test_features import everything
from test_page import embedded

from layerprobe.record import Conclusion
from layerprobe.report.page import render_page

LATENTS, DEAD, LAYERS = 1536, 120, (3, 6)
"""Latents per dictionary of the quickstart, those that are dead, and its layers with dictionaries."""
EXAMPLES, SHOWN = 500, 100
"""Test examples, and those that are shown token by token."""


def word_list(n):
    """Words of 2 to 9 letters."""
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(2, 10))) for _ in range(n)]


def texts(n):
    """Texts about as long as tweets, with words as uneven as those of a language."""
    rng, words = np.random.default_rng(1), word_list(4000)
    ranks = (rng.pareto(1.0, (n, 30)) * 8).astype(int) % len(words)
    lengths = rng.integers(8, 30, n)
    return {f"test-{i}": " ".join(words[j] for j in ranks[i, : lengths[i]]) for i in range(n)}


def examples_of(written, labels):
    """The tables `examples` and `tokens`."""
    examples = pd.DataFrame({"example_id": list(written), "text": written.values(), "split": "test"})
    return {"examples": examples.assign(label=np.resize(labels, len(examples))), "tokens": tokens_of(written)}


def sentences(tokens, runs, layers):
    """Changes of every token of the first examples in every layer."""
    rng = np.random.default_rng(2)
    shown = tokens[tokens.example_id.isin(tokens.example_id.unique()[:SHOWN])].drop(columns=["start", "end"])
    frames = [
        shown.assign(layer=layer, change=rng.uniform(0, 0.2 * layer, len(shown)), method=method, seed=seed)
        for method, seed in runs
        for layer in range(layers)
    ]
    return pd.concat(frames, ignore_index=True)


def dictionary(keys, tokens, seed):
    """Tables about the latents of one dictionary: 40 of them with a page, all live ones with top tokens and examples."""
    rng = np.random.default_rng(seed)
    number = np.arange(LATENTS)
    live = number < LATENTS - DEAD
    known = rng.uniform(0.5, 1, LATENTS)
    partner = pd.array(rng.permutation(LATENTS), dtype="Int64")
    latents = pd.DataFrame({"latent": number, "kind": np.where(live, rng.choice(["task", "general"], LATENTS), "dead")})
    latents = latents.assign(
        density=np.where(live, rng.lognormal(-4.5, 1, LATENTS), 0),
        active_examples=np.where(live, rng.integers(1, 300, LATENTS), 0),
        max_activation=np.where(live, rng.uniform(0.5, 9, LATENTS), 0),
        label=rng.choice(["negative", "neutral", "positive"], LATENTS),
        auroc=known,
        effect=2 * known - 1,
        task=live,
        property=rng.choice(["token", "position", "frequency"], LATENTS),
        property_value=rng.choice(word_list(300), LATENTS),
        property_effect=rng.uniform(0, 1, LATENTS),
        partner=partner,
        cosine=rng.uniform(0, 1, LATENTS),
        nearest=partner,
        nearest_cosine=rng.uniform(0, 1, LATENTS),
        unmatched=rng.uniform(size=LATENTS) < 0.05,
        delta=rng.uniform(0, 1, LATENTS),
        joint_kind="shared",
        mutual_information=0.1,
    )
    alive = number[live]
    top = pd.DataFrame({"latent": np.repeat(alive, 5), "rank": np.tile(range(5), len(alive))})
    top = top.assign(token=rng.choice(tokens.token, len(top)), share=rng.uniform(0, 0.4, len(top)), active=5)
    lengths = rng.integers(1, 5, 3 * len(alive))
    ids = rng.choice(tokens.example_id.unique()[:300], 3 * len(alive))
    peaks = pd.DataFrame({"latent": np.repeat(alive, 3), "rank": np.tile(range(3), len(alive)), "example_id": ids})
    peaks = peaks.loc[peaks.index.repeat(lengths)].assign(activation=rng.uniform(0.1, 0.5, lengths.sum()))
    peaks["token_index"] = 1 + peaks.groupby(["latent", "rank"]).cumcount() * 2
    pages = alive[:40]
    bars = pd.DataFrame(
        [
            {"latent": latent, "on": on, "low": low / 2, "high": (low + 1) / 2, "tokens": int(count)}
            for latent in pages
            for on in ("base", "adapted", "match")
            for low, count in enumerate(rng.integers(0, 900, 21))
        ]
    )
    means = pd.DataFrame(
        [
            {"latent": latent, "on": on, "label": label, "n": 120}
            for latent in pages
            for on in ("base", "adapted", "match")
            for label in ("negative", "neutral", "positive")
        ]
    )
    for name in ("mean", "low", "high", "active"):
        means[name] = rng.uniform(size=len(means))
    size = len(pages) * 9 * 20
    examples = pd.DataFrame({"latent": np.repeat(pages, 180), "rank": np.tile(np.repeat(range(9), 20), len(pages))})
    examples = examples.assign(
        example_id=np.repeat(rng.choice(tokens.example_id.unique()[:300], size // 20), 20),
        token_index=np.tile(range(20), size // 20),
        token="word",
        choice="top",
        level=0.5,
    )
    for name in ("base", "adapted", "match"):
        examples[name] = np.where(rng.uniform(size=size) < 0.15, rng.uniform(0, 9, size), 0)
    shown = np.repeat(rng.choice(tokens.example_id.unique()[:SHOWN], 12 * 200), 2)
    colours = pd.DataFrame({"latent": np.resize(alive[:12], len(shown)), "example_id": shown})
    colours = colours.assign(token_index=rng.integers(1, 8, len(shown)), activation=rng.uniform(0, 9, len(shown)))
    colours = pd.concat([colours.assign(on=on) for on in ("base", "adapted")], ignore_index=True)
    made = {"latents": latents, "latent_tokens": top, "latent_peaks": peaks, "latent_histograms": bars}
    made |= {"latent_classes": means, "latent_examples": examples, "sentence_latents": colours}
    return {name: table.assign(**keys) for name, table in made.items()}


@pytest.fixture(scope="module")
def quickstart():
    """The page of a study as large as `analyses/quickstart.toml`."""
    made, about = everything()
    deep, conclusion = depth_study(methods=("head", "full"), seeds=(0,), n=EXAMPLES)
    made |= complete(deep, about)[0] | examples_of(texts(EXAMPLES), ["negative", "neutral", "positive"])
    made["sentences"] = sentences(made["tokens"], [("head", 0), ("full", 0)], 7)
    parts = []
    for layer in LAYERS:
        for place, side in enumerate(("base", "adapted")):
            keys = {"seed": 0, "layer": layer, "side": side}
            parts.append(dictionary({"method": "full", **keys}, made["tokens"], seed=10 * layer + place))
        # The head changes no layer: its base dictionary is that of the other method, and there is no other.
        parts.append(
            dictionary({"method": "head", "seed": 0, "layer": layer, "side": "base"}, made["tokens"], 10 * layer)
        )
    made |= {name: pd.concat([part[name] for part in parts], ignore_index=True) for name in parts[0]}
    made, about = complete(made, about)
    return render_page(made, about.model_copy(update={"sufficiency": Conclusion.model_validate(conclusion)}))


def test_a_page_like_the_quickstarts_is_small_and_every_live_latent_opens(quickstart):
    data = embedded(quickstart)["data-tokens"]
    catalogue = data["explorer"]
    assert len(catalogue["groups"]) == 3 * len(LAYERS)
    for group in catalogue["groups"]:
        listing = catalogue["listings"][group["listing"]]
        assert len(listing) == LATENTS - DEAD == len(group["columns"]["latent"]) and group["left_out"] == 0
        assert {len(peaks) for _, peaks in listing.values()} == {3} and len(group["pages"]) == 40
    assert len(catalogue["listings"]) == 2 * len(LAYERS)  # those of base under both methods are kept once
    # Figures of the real page have more numbers than these: half a megabyte is left for them.
    assert len(quickstart.encode()) < 5_500_000, {name: len(json.dumps(part)) for name, part in catalogue.items()}


def test_a_page_without_dictionaries_is_small_however_many_models_it_shows():
    methods, seeds = ("head", "top:1", "top:2", "top:3", "full"), range(5)
    made, conclusion = depth_study(methods=methods, seeds=seeds, n=1000, n_layers=12)
    made |= examples_of(texts(EXAMPLES), ["negative", "neutral", "positive"])
    made["sentences"] = sentences(made["tokens"], [(method, seed) for method in methods for seed in seeds], 13)
    encoder = record().encoder.model_copy(update={"n_layers": 12})
    made, about = complete(made, record().model_copy(update={"encoder": encoder}))
    html = render_page(made, about.model_copy(update={"sufficiency": Conclusion.model_validate(conclusion)}))
    data = embedded(html)["data-tokens"]["tokens"]
    assert len(data["change"]) == len(methods) * len(seeds) and 5 <= len(data["shown"]) < SHOWN
    assert len(html.encode()) < 3_000_000
