"""What a reader can look up: compact, whole, nothing twice, safe, and readable on coloured tokens."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from fabricated import complete, record, tokens_of
from test_report import EVIL, adaptation, page, similarity

from layerprobe.report.sections import tokens
from layerprobe.report.sections.tokens import examples as examples_module
from layerprobe.report.sections.tokens import explorer as explorer_module
from layerprobe.report.sections.tokens import listings as listings_module
from layerprobe.report.sections.tokens import texts as texts_module
from layerprobe.report.sections.tokens.examples import examples_by_token
from layerprobe.report.sections.tokens.explorer import explorer
from layerprobe.report.sections.tokens.texts import Texts

LATENTS = 6
SCRIPT = EVIL.replace(" ", "")
"""One token of markup."""
TEXTS = {"i": f" {SCRIPT}", "j": "word"}


def latents(side="base", method="full", seed=0, layer=1, shift=0.0):
    return pd.DataFrame(
        {
            "latent": range(LATENTS),
            "kind": ["task", "general", "both", "unexplained", "dead", "general"],
            "density": np.array([0.1, 0.2, 0.3, 0.4, 0.0, 0.5]) + shift,
            "active_examples": [20, 20, 30, 30, 0, 40],
            "max_activation": 2.0,
            "label": ["a", "b", "a", None, None, EVIL],
            "auroc": [0.9, 0.6, 0.8, np.nan, np.nan, 0.55],
            "effect": [0.8, 0.2, 0.6, np.nan, np.nan, 0.1],
            "task": [True, False, True, False, False, False],
            "property": ["token", "position", None, None, None, "token"],
            "property_value": ["the", "high", None, None, None, EVIL],
            "property_effect": [0.123456, 0.5, np.nan, np.nan, np.nan, 0.6],
            "partner": pd.array([1, 0, 2, 3, None, None], dtype="Int64"),
            "cosine": [0.5, 0.5, 0.9, 0.8, np.nan, np.nan],
            "nearest": pd.array([1, 0, 2, 3, None, 2], dtype="Int64"),
            "nearest_cosine": [0.5, 0.5, 0.9, 0.8, np.nan, 0.2],
            "unmatched": [True, False, False, False, False, True],
            "delta": [0.2, 0.5, 0.5, 0.5, np.nan, 0.9],
            "joint_kind": ["shifted", "shared", "shared", "shared", None, "adapted_only"],
            "method": method,
            "seed": seed,
            "layer": layer,
            "side": side,
        }
    )


def shown(side, method="full", chosen=(0, 2), readings=("base", "adapted", "match")):
    keys = {"method": method, "seed": 0, "layer": 1, "side": side}
    bars, classes, examples = [], [], []
    for latent in chosen:
        for on in readings:
            bars += [{"latent": latent, "on": on, "low": 0.0, "high": 0.0, "tokens": 90}]
            bars += [
                {"latent": latent, "on": on, "low": i * 0.5, "high": (i + 1) * 0.5, "tokens": 5 - i} for i in range(4)
            ]
            for label in ("a", "b"):
                mean = {"mean": 0.25, "low": 0.2, "high": 0.3, "active": 0.5, "n": 7}
                classes.append({"latent": latent, "on": on, "label": label, **mean})
        for rank, example in ((0, "i"), (1, "j")):
            for index, token in enumerate(["[CLS]", SCRIPT if example == "i" else "word", "[SEP]"]):
                about = {
                    "latent": latent,
                    "choice": "top",
                    "rank": rank,
                    "level": 0.9 - rank / 2,
                    "example_id": example,
                }
                values = dict.fromkeys(readings, 1.23456 * (index == 1))
                examples.append({**about, "token_index": index, "token": token, "special": index != 1, **values})
    frames = zip(("histograms", "classes", "examples"), (bars, classes, examples), strict=True)
    return {f"latent_{name}": pd.DataFrame(rows).assign(**keys) for name, rows in frames}


def listed(side, method="full"):
    """Top tokens and examples of every live latent: latent n is most active in an example of label a or b, by turns."""
    keys = {"method": method, "seed": 0, "layer": 1, "side": side}
    live = [number for number, kind in enumerate(latents().kind) if kind != "dead"]
    words = [(latent, rank, word) for latent in live for rank, word in enumerate([f"naïve{latent}", "the", SCRIPT])]
    tokens = pd.DataFrame(words, columns=["latent", "rank", "token"]).assign(active=1, occurrences=2)
    shares = {f"naïve{latent}": 0.5 + latent / 100 for latent in live}
    tokens["share"] = [shares.get(word, 0.1) for word in tokens.token]
    peaks = [
        (latent, rank, "ij"[(latent + rank) % 2], 1, 2.0 if rank == 0 else 0.5) for latent in live for rank in (0, 1)
    ]
    columns = ["latent", "rank", "example_id", "token_index", "activation"]
    tables = {"latent_tokens": tokens, "latent_peaks": pd.DataFrame(peaks, columns=columns)}
    return {name: table.assign(**keys) for name, table in tables.items()}


def tables():
    both = [shown("base"), shown("adapted", chosen=(1,))]
    data = {name: pd.concat([one[name] for one in both], ignore_index=True) for name in both[0]}
    head = shown("base", "head", readings=("base",))
    data = {name: pd.concat([table, head[name]], ignore_index=True) for name, table in data.items()}
    lists = [listed("base"), listed("adapted"), listed("base", "head")]
    data |= {name: pd.concat([one[name] for one in lists], ignore_index=True) for name in lists[0]}
    sides = [latents(), latents("adapted", shift=0.01), latents(method="head"), latents("adapted", "head")]
    sentences = [
        pd.DataFrame(
            {
                "example_id": "i",
                "layer": layer,
                "token_index": range(3),
                "token": ["[CLS]", SCRIPT, "[SEP]"],
                "special": [True, False, True],
                "change": [0.0, 0.25, 0.5],
                "method": "full",
                "seed": 0,
            }
        )
        for layer in (0, 1)
    ]
    activations = pd.DataFrame(
        {"example_id": "i", "token_index": [1], "latent": 0, "activation": 2.0, "on": "base", "side": "base"}
    ).assign(method="full", seed=0, layer=1)
    return {
        "adaptation": adaptation(full=0.8),
        "similarity": similarity([1, 0.5]),
        "examples": pd.DataFrame(
            {"example_id": list(TEXTS), "text": TEXTS.values(), "label": ["a", "b"], "split": "test"}
        ),
        "tokens": tokens_of(TEXTS),
        "latents": pd.concat(sides, ignore_index=True),
        "sentences": pd.concat(sentences, ignore_index=True),
        "sentence_latents": activations,
        **data,
    }


def looked_up():
    """The tables and the texts of a page."""
    some = tables()
    return some, Texts(some)


def groups(data):
    return {(group["run"], group["side"]): group for group in data["groups"]}


def test_columns_hold_the_live_latents_of_the_table():
    data = explorer(*looked_up())
    group = groups(data)["full · seed 0", "base"]
    columns, names = group["columns"], data["names"]
    assert group["latents"] == LATENTS and group["dead"] == 1 and group["left_out"] == 0
    assert columns["latent"] == [0, 2, 5, 3, 1]  # those with a page first, then lost ones, then the most active
    at = columns["latent"].index(0)
    assert [names[columns[name][at]] for name in ("kind", "label", "property", "property_value", "joint_kind")] == [
        "task",
        "a",
        "token",
        "the",
        "shifted",
    ]
    assert columns["property_effect"][at] == 0.1235 and columns["partner"][at] == 1 and columns["unmatched"][at] == 1
    missing = columns["latent"].index(3)
    assert columns["label"][missing] is None and columns["auroc"][missing] is None
    json.dumps(data, allow_nan=False)


def test_a_page_holds_histograms_classes_and_examples():
    some, texts = looked_up()
    data = explorer(some, texts)
    opened = groups(data)["full · seed 0", "base"]["pages"]
    assert list(opened) == ["0", "2"]
    assert opened["0"]["bars"]["match"] == [90, 5, 4, 3, 2] and opened["0"]["top"] == 2.0
    row = opened["0"]["classes"]["adapted"][1]
    assert [data["names"][row[0]], *row[1:]] == ["b", 0.25, 0.2, 0.3, 0.5, 7]
    rank, level, text, first, count, values = opened["2"]["examples"][1]
    assert (rank, level, first, count) == (1, None, 0, 3) and values == {
        on: [1, 1.23] for on in ("base", "adapted", "match")
    }
    content = texts.content()
    assert content["text"][text] == "word" and content["labels"][content["label"][text]] == "b"
    assert content["tokens"][text] == ["[CLS]", 0, 4, "[SEP]"]
    assert len(content["text"]) == 2  # each once, however many latents show it


def test_every_live_latent_has_its_top_tokens_and_examples():
    some, texts = looked_up()
    data = explorer(some, texts)
    group = groups(data)["full · seed 0", "base"]
    listing = data["listings"][group["listing"]]
    assert set(listing) == {str(latent) for latent in group["columns"]["latent"]}
    words, peaks = listing["3"]
    assert [data["names"][word] for word in words[::2]] == ["naïve3", "the", SCRIPT] and words[1::2] == [53, 10, 10]
    content = texts.content()
    assert [content["text"][text] for text, *_ in peaks] == ["word", f" {SCRIPT}"]
    assert [rest for _, *rest in peaks] == [[1, 1000], [1, 250]]  # thousandths of the largest activation, 2
    # One dictionary under two methods is kept once.
    assert {group["listing"] for group in data["groups"]} == {0} and len(data["listings"]) == 1


def test_listings_are_those_of_the_first_latents_of_large_studies(monkeypatch):
    some, texts = looked_up()
    monkeypatch.setattr(listings_module, "MAX_LISTED", 6)
    data = explorer(some, texts)
    group = groups(data)["full · seed 0", "base"]
    assert set(data["listings"][group["listing"]]) == {"0", "2"}
    monkeypatch.setattr(texts_module, "LARGEST", 5)  # room for the shorter text
    kept = explorer(some, Texts(some))["listings"][group["listing"]]
    assert [len(peaks) for _, peaks in kept.values()] == [1, 1]
    del some["latent_tokens"], some["latent_peaks"]
    assert groups(explorer(some, Texts(some)))["full · seed 0", "base"]["listing"] is None


def test_sides_that_coincide_are_kept_once():
    data = groups(explorer(*looked_up()))
    assert ("head · seed 0", "adapted") not in data and data["head · seed 0", "base"]["same"]
    assert not data["full · seed 0", "base"]["same"] and ("full · seed 0", "adapted") in data
    assert list(data["head · seed 0", "base"]["pages"]["0"]["bars"]) == ["base"]


def test_large_studies_keep_the_top_latents_and_count_those_left_out(monkeypatch):
    monkeypatch.setattr(explorer_module, "MAX_ROWS", 6)
    monkeypatch.setattr(explorer_module, "MAX_PAGES", 3)
    group = groups(explorer(*looked_up()))["full · seed 0", "base"]
    assert list(group["pages"]) == ["0"]
    assert group["columns"]["latent"] == [0, 2] and group["left_out"] == 3


def test_examples_carry_change_and_activations():
    some, texts = looked_up()
    data = examples_by_token(some, texts)
    assert data["shown"] == [0] and texts.content()["text"] == [f" {SCRIPT}"]
    assert texts.content()["tokens"] == [["[CLS]", 1, len(SCRIPT), "[SEP]"]]
    assert data["layers"] == [0, 1] and data["change"] == {"full · seed 0": [[[0, 250, 500], [0, 250, 500]]]}
    (latent,) = data["latents"]
    assert latent["same"]  # nothing was kept for another side
    assert latent["layer"] == 1 and latent["values"] == {"0": {"base": [1, 2.0]}} and "a (AUROC 0.90)" in latent["name"]
    assert data["predicted"] is None


def test_examples_carry_the_labels_predicted_before_and_after():
    some, texts = looked_up()
    named = {"full": 0, "reference:logistic-mean": 0, "reference:logistic-cls": 0}
    frames = [
        pd.DataFrame({"example_id": ["i", "j"], "label": ["a", "b"], "predicted": predicted, "split": "test"}).assign(
            method=method, seed=seed
        )
        for (method, seed), predicted in zip(named.items(), (["a", "a"], ["b", "b"], ["c", "a"]), strict=True)
    ]
    some["predictions"] = pd.concat([*frames, frames[0].assign(split="reviews", predicted="c")], ignore_index=True)
    predicted = examples_by_token(some, texts)["predicted"]
    labels = texts.content()["labels"]
    # Logistic regression on the mean is right more often than on the first token.
    assert "mean over tokens of the frozen base encoder" in predicted["classifier"]
    assert [labels[number] for number in predicted["before"]["full · seed 0"]] == ["b"]
    assert [labels[number] for number in predicted["after"]["full · seed 0"]] == ["a"]


def test_large_studies_show_fewer_examples_and_shorter_texts(monkeypatch):
    some, _ = looked_up()
    keys = [f"e{i}" for i in range(20)]
    one = some["sentences"]
    some["sentences"] = pd.concat([one.assign(example_id=key) for key in keys], ignore_index=True)
    some["examples"] = pd.DataFrame({"example_id": keys, "text": "word " + 500 * "x", "label": "a", "split": "test"})
    some["tokens"] = tokens_of(dict.fromkeys(keys, "word"))
    monkeypatch.setattr(examples_module, "MAX_CHANGES", 30)
    texts = Texts(some)
    data = examples_by_token(some, texts)
    assert len(data["shown"]) == 5 and data["of"] == 20  # 6 values each
    assert {len(text) for text in texts.content()["text"]} == {4 + 200}
    monkeypatch.setattr(texts_module, "LARGEST", 3 * 204)
    assert len(examples_by_token(some, Texts(some))["shown"]) == 3


def test_examples_are_coloured_by_the_top_latents_of_each_group(monkeypatch):
    some = tables()
    one = some["sentence_latents"]
    rows = [one.assign(latent=latent, on=on) for latent in (1, 2, 0) for on in ("base", "adapted")]
    some["sentence_latents"] = pd.concat(rows, ignore_index=True)
    data = examples_by_token(some, Texts(some))["latents"]
    assert [latent["name"].split(",")[0] for latent in data] == ["base latent 0", "base latent 2", "base latent 1"]
    assert not any(latent["same"] for latent in data) and data[0]["values"]["0"]["adapted"] == [1, 2.0]
    monkeypatch.setattr(examples_module, "MAX_COLOURS", 2)
    assert len(examples_by_token(some, Texts(some))["latents"]) == 2


@pytest.mark.parametrize(
    "missing", ["latents", "latent_examples", "sentences", "sentence_latents", "examples", "tokens"]
)
def test_a_page_without_a_table_gives_the_reason(missing, tmp_path):
    some = {name: table for name, table in tables().items() if name != missing}
    html = page(tmp_path / "run", some)
    reasons = {
        "latents": "no latents to look up",
        "sentences": "No test example was short enough",
        "examples": "The run has no table of the tokens of its test examples",
        "tokens": "The run has no table of the tokens of its test examples",
    }
    assert reasons.get(missing, 'id="ex-table"') in html
    assert (missing in ("examples", "tokens")) == ("data-tokens" not in html)


def test_the_page_opens_with_the_main_method():
    study = complete(tables(), record())
    assert tokens.SECTION.context(*study)["data"]["run"] == "full · seed 0"
    assert (
        tokens.SECTION.context({name: study[0][name] for name in ("examples", "tokens")}, study[1])["data"]["run"]
        is None
    )


def test_names_and_tokens_stay_data(tmp_path):
    html = page(tmp_path / "run", tables(), record(name=EVIL))
    assert "<script>alert" not in html and "<img src=x" not in html
    script = re.findall(r"<script>(?!/\*\*)(.*?)</script>", html, flags=re.S)[-1]
    assert "data-tokens" in script and not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script
    )


def luminance(colour):
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return np.dot(linear, [0.2126, 0.7152, 0.0722])


def hexadecimal(text):
    text = "".join(2 * c for c in text) if len(text) == 3 else text
    return [int(text[i : i + 2], 16) for i in (0, 2, 4)]


def test_words_on_the_strongest_colour_keep_a_contrast_of_four_and_a_half(tmp_path):
    html = page(tmp_path / "run", tables())
    themes = re.findall(r":root \{([^}]*)\}", html)
    assert len(themes) == 3  # light, dark and print
    for theme in themes:
        values = dict(re.findall(r"--([\w-]+): ([^;]+);", theme))
        paper, ink = (hexadecimal(values[name].lstrip("#")) for name in ("page", "ink"))
        heat = [int(v) for v in values["heat"].split(",")]
        for strength in np.linspace(0, float(values["heat-most"]), 7):
            ground = [strength * h + (1 - strength) * p for h, p in zip(heat, paper, strict=True)]
            high, low = sorted((luminance(ground), luminance(ink)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5
