"""The section about basis controls: it says what the decision allows, and draws each basis on both sides."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from fabricated import complete, record
from test_report import EVIL, page, similarity

from layerprobe.report.sections.bases import SECTION
from layerprobe.report.sections.bases.context import context
from layerprobe.report.sections.bases.figures import BASES, basis_effects, basis_excess
from layerprobe.report.sections.bases.sentences import claim
from layerprobe.report.sections.features.sentences import shift_sentence

UNTRAINED = ("untrained", "random directions", "neurons", "principal components")
TRAINED = ("frozen-decoder", "soft-frozen-decoder", "frozen-encoder")
LAYERS = (3, 6)


def readings(method="full", controls=UNTRAINED):
    """The dictionary rises from .1 to .3 at layer 6, controls from .1 to .2; nothing rises where directions are removed."""
    rows = []
    number = {"trained": 2, "base dictionary": 2} | dict.fromkeys(controls, 1)
    for basis, seeds in number.items():
        for layer, projected, seed in itertools.product(LAYERS, (False, True), range(seeds)):
            for side in ("adapted",) if basis == "base dictionary" else ("base", "adapted"):
                moved = side == "adapted" and layer == 6 and not projected
                value = 0.1 + moved * (0.2 if basis == "trained" else 0.1) + 0.02 * seed
                rows.append(
                    {"method": method, "seed": 0, "layer": layer, "basis": basis, "basis_seed": seed}
                    | {"side": side, "projected": projected, "label_effect": value, "n": 300}
                    | {"label_effect_low": value - 0.03, "label_effect_high": value + 0.03}
                    | {"share_task": 0.2 + 0.4 * moved, "latents": 1536, "judged": 700}
                )
    return pd.DataFrame(rows)


def excesses(method="full", controls=UNTRAINED, projected=0.002, reach=0.01):
    rows = []
    for number, control in enumerate((*controls, "base dictionary")):
        for layer in LAYERS:
            for without in (False, True):
                value = (projected if without else 0.1) * (layer == 6) + 0.001 * number
                rows.append(
                    {"method": method, "layer": layer, "control": control, "projected": without, "rise": 0.2}
                    | {"control_rise": 0.2 - value, "excess": value, "excess_low": value - reach}
                    | {
                        "excess_high": value + reach,
                        "error": reach / 3,
                        "training_seeds": 1,
                        "dictionary_seeds": 2,
                        "n": 300,
                    }
                )
    return pd.DataFrame(rows)


def verdict(word, method="full", layers="", controls=UNTRAINED, conditional=False, training_seeds=1):
    missing = [name for name in TRAINED if name not in controls]
    row = {"method": method, "verdict": word, "layers": layers, "dictionary_layers": "3, 6", "n": 300}
    row |= {"controls": ", ".join(controls), "missing": ", ".join(missing), "conditional": conditional}
    return pd.DataFrame([row | {"training_seeds": training_seeds}])


def study(word="not distinguishable", layers="", controls=UNTRAINED, about=None, **excess):
    tables = {
        "similarity": pd.concat([similarity([1.0] * 3 + [0.9] * 4), similarity([1.0] * 7, "head", reach=0)]),
        "basis_controls": readings(controls=controls),
        "basis_excess": excesses(controls=controls, **excess),
        "task_specific": pd.concat(
            [verdict(word, layers=layers, controls=controls, **(about or {})), verdict("unchanged", "head")]
        ),
    }
    return complete(tables, record())


def test_no_excess_is_not_reported_as_no_task_specific_features():
    text = claim(*study(), "full")
    assert text == (
        "Under full, task-specific features are not distinguishable from a layer-wide label shift at layers 3, 6: without "
        "the directions between the labels' means, the latents' association with labels rises 0.002 (95% interval -0.008 "
        "to 0.012, simultaneous over layers) more than in untrained dictionary at layer 6, the control that it exceeds "
        "least there."
    )
    assert [finding.text for finding in SECTION.sentences(*study())] == [text]


def test_features_are_called_task_specific_only_if_trained_controls_were_run():
    some = claim(*study("beyond untrained bases", "6", projected=0.05), "full")
    assert "became task-specific at" not in some and "does not show that features became task-specific" in some
    assert "(frozen random decoder, soft-frozen random decoder, frozen random encoder) were not run" in some
    every = claim(*study("task-specific", "6", UNTRAINED + TRAINED, projected=0.05), "full")
    assert every.startswith(
        "Under full, features became task-specific at layer 6 of the layers tested (3, 6): beyond a"
    )
    assert "at least 0.050 (95% interval 0.040 to 0.060, simultaneous over layers)" in every
    assert every.endswith("for this training run.")
    conditional = claim(
        *study("task-specific", "6", UNTRAINED + TRAINED, {"conditional": True, "training_seeds": 3}), "full"
    )
    assert conditional.endswith("for these dictionaries, since there is one dictionary seed.")


def test_an_unchanged_method_and_an_undefined_effect_are_named_as_such():
    assert claim(*study(), "head") == "Under head, base and adapted are equal in every layer with dictionaries."
    tables, about = study("undefined")
    assert "undefined: too few latents" in claim(tables, about, "full")
    assert claim({}, about, "full") is None and claim(tables, about, "other") is None
    assert SECTION.sentences({}, about) == []


def test_each_basis_is_a_row_of_each_layer_from_base_to_adapted():
    tables, about = study()
    shown = basis_effects(tables, about, rows="all")
    assert [note.text for note in shown.layout.annotations[:2]] == ["layer 3", "layer 6"]
    dots = {
        (row, trace.name, trace.xaxis): value
        for trace in shown.data
        if trace.mode == "markers"
        for row, value in zip(trace.y, trace.x, strict=True)
    }
    name = BASES["trained"]
    # Means over two dictionary seeds.
    assert dots[name, "base", "x"] == dots[name, "adapted", "x"] == dots[name, "base", "x2"] == pytest.approx(0.11)
    assert dots[name, "adapted", "x2"] == pytest.approx(0.31) and dots["neurons", "adapted", "x2"] == pytest.approx(0.2)
    assert {row for row, _, _ in dots} == {BASES[basis] for basis in ("trained", "base dictionary", *UNTRAINED)}
    marks = [trace for trace in shown.data if trace.mode == "markers"]
    assert {trace.marker.symbol for trace in marks} == {"circle", "circle-open"}
    assert all(np.allclose(trace.error_x.array, 0.03) for trace in marks)
    lines = [trace for trace in shown.data if trace.mode == "lines"]
    assert list(lines[1].x[:2]) == pytest.approx([0.11, 0.31]) and list(lines[1].y[:2]) == [name] * 2
    assert shown.layout.yaxis.categoryarray[-1] == name  # on top
    removed = basis_effects(tables, about)
    assert next(
        trace.x[0] for trace in removed.data if (trace.name, trace.xaxis) == ("adapted", "x2")
    ) == pytest.approx(0.11)
    assert basis_effects(tables, about, method="other") is None


def test_the_excess_over_each_control_is_drawn_for_both_kinds_of_rows():
    tables, about = study()
    for rows, value in (("all", 0.102), ("projected", 0.004)):
        shown = basis_excess(tables, about, rows=rows)
        last = next(trace for trace in shown.data if trace.xaxis == "x2")
        assert dict(zip(last.y, last.x, strict=True))["neurons"] == pytest.approx(value)
        assert np.allclose(last.error_x.arrayminus, 0.01)


def test_the_page_shows_claims_shares_and_what_is_missing(tmp_path):
    tables, _ = study()
    text = page(tmp_path / "run", tables)
    assert "Did features become task-specific?" in text and "not distinguishable from a layer-wide label shift" in text
    assert re.search(r"<td>6</td><td>random directions</td><td>0.200 of 700</td><td>0.600 of 700</td>", text)
    assert "Only one training seed" in text and "the seed of the dictionaries (2)" in text
    without = page(tmp_path / "other", {"similarity": tables["similarity"]})
    assert (
        "no basis controls, so that a rise of label associations cannot be distinguished from a label shift" in without
    )


def test_names_from_outside_are_escaped(tmp_path):
    tables, _ = study()
    renamed = {
        name: table.assign(method=table.method.replace("full", f"checkpoint:{EVIL}")) for name, table in tables.items()
    }
    text = page(tmp_path / "run", renamed)
    assert EVIL not in text and "not distinguishable" in text


def test_the_share_of_task_latents_is_a_description_with_that_of_random_directions():
    tables, about = study()
    shares = pd.DataFrame(
        [
            {
                "method": "full",
                "seed": 0,
                "layer": 6,
                "side": side,
                "dictionary": "first",
                "live": 100,
                "share_task": share,
            }
            | {"share_low": share, "share_high": share, "share_permuted_high": np.nan}
            for side, share in (("base", 0.15), ("adapted", 0.28))
        ]
    )
    tables = {**tables, "latent_shares": shares}
    text = shift_sentence(tables, about, "full")
    assert "in random directions of the same densities, 20% and 60%" in text
    del tables["basis_controls"]
    assert "a label shift of the whole layer may explain it" in shift_sentence(tables, about, "full")


def test_panels_are_of_methods_that_changed_a_layer():
    found = context(*study())
    assert [panel["method"] for panel in found["panels"]] == ["full"] and len(found["unchanged"]) == 1
    assert found["panels"][0]["n"] == 300 and found["panels"][0]["dictionary_seeds"] == 2
