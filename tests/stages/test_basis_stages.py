"""Stages that compare the label effect of dictionaries with that of other bases."""

import numpy as np
import pandas as pd
import pytest
from bench import FULL, HEAD

from layerprobe import sae
from layerprobe.sae import load_codes
from layerprobe.stages.basis_controls import BASE_DICTIONARY, EFFECTS, BasisControls, BasisExcess
from layerprobe.stages.capture import Capture, CaptureTrain
from layerprobe.stages.encode import Encode
from layerprobe.stages.sae import Sae

pytestmark = pytest.mark.numerical

CONTROLS = ("untrained", "frozen-decoder", "second-seed")
KEYS = ["basis", "basis_seed", "side", "projected"]


def controls(method, seed=0, listed=("second-seed",)):
    return BasisControls(method, seed, 2, listed)


@pytest.fixture(scope="module")
def full(bench):
    return bench.build(controls(FULL))


def test_dictionaries_and_controls_are_read_on_both_sides_with_and_without_label_directions(full, bench):
    table = full.table("basis_controls").set_index(KEYS)
    assert table.index.is_unique
    seeds = {"trained": 2, "untrained": 5, "random directions": 3, "neurons": 1, "principal components": 1}
    read = table.groupby(["basis", "side", "projected"]).size()
    for basis, number in seeds.items():
        assert (read[basis] == number).all() and len(read[basis]) == 4
    assert (read[BASE_DICTIONARY, "adapted"] == 2).all() and (BASE_DICTIONARY, "base") not in read.index.droplevel(2)
    assert table.latents.nunique() == 1
    defined = table[table.judged > 0]
    assert (
        (defined.label_effect_low <= defined.label_effect) & (defined.label_effect <= defined.label_effect_high)
    ).all()
    effects = pd.read_parquet(full.folder / EFFECTS).set_index([*KEYS, "estimate"]).value
    assert effects.xs(0, level="estimate")[table.index].to_numpy() == pytest.approx(table.label_effect, nan_ok=True)


def test_the_dictionary_is_read_as_it_was_encoded(full, bench):
    task = Encode(Sae(FULL, 0, 2), Capture(FULL, 0))
    store = bench.rows(Capture(FULL, 0))
    example = store.groups("token")
    labels = bench.context.corpus.test.labels[: example.max() + 1]
    expected = sae.label_effect(load_codes(bench.get(task).folder / "codes"), example, labels)
    row = full.table("basis_controls").set_index(KEYS).loc["trained", 0, "adapted", False]
    assert row.label_effect == pytest.approx(expected.value, abs=1e-6) and row.judged == expected.judged


def test_label_directions_are_those_of_training_examples(full, bench):
    stores = [bench.rows(CaptureTrain.of_base()), bench.rows(CaptureTrain(FULL, 0))]
    labels = bench.context.corpus.train.labels
    found = sae.bases.between_label_directions(
        *((store.unit(unit, 2), labels) for store in stores for unit in ("mean", "cls"))
    )
    for store in stores:
        means = np.stack([store.mean(2)[labels == label].mean(0) for label in np.unique(labels)])
        rest = (means - means[0]) - (means - means[0]) @ found.T @ found
        assert np.abs(rest).max() < 1e-4 * np.abs(store.mean(2)).max()


def test_an_unchanged_layer_has_no_excess(bench):
    head = bench.build(controls(HEAD))
    table = head.table("basis_controls").set_index(KEYS)
    same = table.xs("base", level="side")
    assert set(same.index.get_level_values("basis")) == {"trained"}  # controls are not needed
    assert table.xs("adapted", level="side").label_effect[same.index].equals(same.label_effect)
    built = bench.build(BasisExcess((controls(HEAD), controls(FULL))))
    excess = built.table("basis_excess").set_index("method")[["excess", "excess_low", "excess_high"]]
    assert (excess.loc["head"] == 0).all(axis=None) and (excess.loc["full"] != 0).any(axis=None)
    verdicts = built.table("task_specific").set_index("method").verdict
    assert verdicts["head"] == "unchanged" != verdicts["full"]


def test_the_excess_is_a_difference_of_differences(bench, full):
    task = BasisExcess((controls(FULL), controls(FULL, 1)))
    built = bench.build(task)
    table = built.table("basis_excess").set_index(["control", "projected"])
    both = pd.concat([full.table("basis_controls"), bench.get(controls(FULL, 1)).table("basis_controls")])
    means = both.groupby(["basis", "projected", "side"]).label_effect.mean()
    for control in sae.UNTRAINED_BASES:
        for projected in (False, True):
            rise, other = (
                means[basis, projected, "adapted"] - means[basis, projected, "base"] for basis in ("trained", control)
            )
            row = table.loc[control, projected]
            assert (row.rise, row.control_rise, row.excess) == pytest.approx((rise, other, rise - other))
            assert row.excess_low <= row.excess <= row.excess_high
            assert row.error == pytest.approx(
                np.sqrt((row[["error_examples", "error_dictionaries", "error_bases", "error_training"]] ** 2).sum())
            )
    of_base = table.loc[BASE_DICTIONARY, False]
    assert of_base.excess == pytest.approx(
        means["trained", False, "adapted"] - means[BASE_DICTIONARY, False, "adapted"]
    )
    (verdict,) = built.table("task_specific").itertuples()
    assert verdict.missing == ", ".join(sae.TRAINED_BASES) and not verdict.conditional
    assert (verdict.training_seeds, verdict.dictionary_layers) == (2, "2")


def test_tasks_cover_every_run_and_layer(bench):
    shape = bench.resolved.shape
    tasks = list(BasisControls.tasks(shape))
    assert len(tasks) == len(shape.runs) * len(shape.sae_layers)
    (task,) = BasisExcess.tasks(shape)
    assert task.readings == tuple(tasks)
