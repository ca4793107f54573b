"""A study with every table that a section of an adaptation study reads, made up from those of the sections' tests."""

import numpy as np
import pandas as pd
from fabricated import complete
from test_basis_section import study as bases
from test_features import exclusive, looked_up, stability, subspaces
from test_labels import study as labels
from test_page import study as depths
from test_sections import controls, nulls
from test_transitions_section import rows as transitions

ADDED = ["depth", "is_control", "is_reference"]
"""Columns that the pipeline adds, which `complete` makes."""


def whole():
    """Tables and record: three depths with two seeds, dictionaries at two layers, two measures, units and sets of rows."""
    tables, about = depths(("head", "top:2", "full"), seeds=(0, 1))
    features, _ = looked_up()
    tables = {name: table for name, table in features.items() if name not in tables} | tables
    tables |= {"similarity": similarities(tables["similarity"])}
    layers = tables["similarity"].layer.nunique()
    drift = tables["similarity"].query("method == 'full' and seed == 0 and measure == 'cka' and rows == 'all'").value
    high = np.ones(layers)
    tables["similarity_nulls"] = pd.concat(
        [
            nulls(values=0.1 * high),
            nulls(kind="seed", values=0.98 * high),
            nulls(kind="norm-matched", values=0.99 * high),
        ]
    )
    shown = drift.to_numpy()[:layers]
    tables["drift_controls"] = pd.concat(
        [controls("norm-matched", 0.99 * high, drift=shown), controls("shuffled-labels", 0.9 * high, drift=shown)]
    )
    tables |= {"geometry": geometry(layers), "similarity_grid": grid(layers)}
    tables |= {name: table for name, table in bases()[0].items() if name != "similarity"}
    tables["label_variance"] = labels()[0]["label_variance"]
    moved = pd.concat([transitions(), transitions(seed=1)], ignore_index=True)
    # What a picker chooses between differs.
    tables["transitions"] = moved.assign(excess=moved.excess + 0.02 * (moved.matches == "close") + 0.01 * moved.seed)
    matched = tables["matching"]
    more = 0.05 * (matched.on == "correlation") + 0.02 * (matched.start == "different starts")
    tables["matching"] = matched.assign(mean=matched["mean"] + more)
    tables |= {"exclusive": exclusive(), "stability": stability(), "subspace_overlap": subspaces()}
    tables |= {"transfer_steps": steps(), "sae_densities": densities()}
    return complete({name: table.drop(columns=ADDED, errors="ignore") for name, table in tables.items()}, about)


def similarities(table):
    """The similarities of all rows with one more measure and unit, and of two sets of rows."""
    table = table.assign(band_low=table.value - 0.02, band_high=np.minimum(1, table.value + 0.02))
    cka = table[table.measure == "cka"]
    more = [cka.assign(measure="rsa"), cka.assign(unit="mean"), cka.assign(rows="no-special")]
    return pd.concat([table, *more, cka.assign(rows="no-outliers")], ignore_index=True)


def geometry(layers):
    """Three measures of both sides by layer."""
    rows = [
        {"measure": name, "side": side, "layer": layer, "value": layer + more, "ci_low": layer, "ci_high": layer + 1}
        for name in ("anisotropy", "effective_rank", "intrinsic_dimension")
        for side, more in (("base", 0.0), ("adapted", 0.5))
        for layer in range(layers)
    ]
    return pd.DataFrame(rows).assign(method="full", seed=0, unit="token")


def grid(layers):
    """Two measures of every pair of layers under one of the methods."""
    rows = [
        {
            "side_a": a,
            "side_b": b,
            "layer_a": i,
            "layer_b": j,
            "measure": measure,
            "value": (1 - abs(i - j) / layers) ** power,
        }
        for a, b in (("base", "base"), ("base", "adapted"), ("adapted", "adapted"))
        for i in range(layers)
        for j in range(layers)
        for measure, power in (("cka", 1), ("rsa", 2))
    ]
    return pd.DataFrame(rows).assign(method="full", seed=0, unit="token")


def steps():
    """Dictionaries of both sides on three checkpoints."""
    rows = [
        {
            "step": step,
            "layer": layer,
            "trained_on": side,
            "explained_variance": value,
            "ev_low": value,
            "ev_high": value,
        }
        for step, value in ((0, 0.9), (5, 0.7), (10, 0.5))
        for layer in (1, 2)
        for side in ("base", "adapted")
    ]
    return pd.DataFrame(rows).assign(method="full", seed=0)


def densities():
    """Numbers of latents by density on one side."""
    bins = pd.DataFrame({"low": [-np.inf, -2.0, -1.0], "high": [-np.inf, -1.5, -0.5], "latents": [3, 7, 2]})
    return bins.assign(method="full", seed=0, layer=1, trained_on="base", evaluated_on="base", kind="trained")
