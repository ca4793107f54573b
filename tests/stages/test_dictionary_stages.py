"""Stages about sparse autoencoders: trained, encoded, compared and described."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from bench import FULL, HEAD

from layerprobe import sae
from layerprobe.sae import Crosscoder as JointDictionary
from layerprobe.sae import load_codes
from layerprobe.stages import associations as stored
from layerprobe.stages.aligned import Aligned
from layerprobe.stages.associations import Associations
from layerprobe.stages.capture import Capture, CaptureSae
from layerprobe.stages.crosscoder import Crosscoder
from layerprobe.stages.crossing import Crossing
from layerprobe.stages.encode import Encode
from layerprobe.stages.exclusive import CensusNull, Exclusive
from layerprobe.stages.exhibit import Exhibit
from layerprobe.stages.latents import Latents
from layerprobe.stages.match import Match, null_matching
from layerprobe.stages.sae import Sae, steps_of
from layerprobe.stages.sentence_latents import SentenceLatents
from layerprobe.stages.stability import Stability
from layerprobe.stages.steps import Steps
from layerprobe.stages.transfer import Transfer
from layerprobe.stages.transitions import Transitions

pytestmark = pytest.mark.numerical

CONTROLS = ("untrained", "frozen-decoder", "second-seed")
BASE, ADAPTED = Sae(layer=2), Sae(FULL, 0, 2)


def codes(bench, task):
    return load_codes(bench.get(task).folder / "codes")


def latents(method):
    return Latents(method, 0, 2, CONTROLS, True)


def test_a_dictionary_is_in_the_format_of_sae_lens(bench):
    from sae_lens import SAE

    built = bench.build(BASE)
    loaded = SAE.load_from_disk(built.folder / "dictionary")
    rows = torch.from_numpy(np.array(bench.rows(CaptureSae.of_base()).tokens(2)))
    active = (loaded.encode(rows) > 0).sum(1)
    assert int(active.max()) <= 4
    errors, spread = (rows - loaded(rows)).square().sum(), (rows - rows.mean(0)).square().sum()
    assert 1 - errors / spread > 0.2  # better than the mean
    again = bench.dictionary(BASE)  # trained once more, by the worker
    assert torch.equal(again.decoder, loaded.W_dec)


def test_controls_differ_from_the_trained_dictionary_as_they_should(bench):
    base = bench.dictionary(BASE)
    other = {
        variant: sae.load(bench.build(Sae(layer=2, variant=variant)).folder / "dictionary")
        for variant in ("other-order", "second-seed", "frozen-decoder", "untrained")
    }

    def cosine(one, two):
        unit = [torch.nn.functional.normalize(dictionary.decoder, dim=1) for dictionary in (one, two)]
        return float((unit[0] * unit[1]).sum(1).mean())

    # Continued in another order, from another seed, and with the random directions that a dictionary starts from.
    assert cosine(base, other["other-order"]) > cosine(base, other["untrained"]) > 0.2
    assert abs(cosine(base, other["second-seed"])) < 0.2
    assert cosine(other["frozen-decoder"], other["untrained"]) == pytest.approx(1, abs=1e-5)
    assert not torch.allclose(other["frozen-decoder"].sae.W_enc, other["untrained"].sae.W_enc)
    assert all(one.d_sae == base.d_sae for one in other.values())


def test_base_and_adapted_have_the_same_training(bench):
    """One start and one continuation on each side; only the rows and their order differ."""
    tasks = [Sae(*side, 2, variant) for side in ((None, None), (FULL, 0)) for variant in ("trained", "second-seed")]
    tasks += [Sae(layer=2, variant="other-order"), Sae(layer=2, variant="frozen-decoder")]
    tasks += [Sae(FULL, 0, 2, "frozen-decoder")]
    # Four batches of 75 rows per pass: 32 passes, and a continuation of 100 steps.
    assert {steps_of(bench.get(task)) for task in tasks} == {32 * 4 + 100}
    assert BASE.start == ADAPTED.start == Sae(layer=2, variant="start") != Sae(layer=2, variant="second-seed").start
    logs = {task: pd.read_parquet(bench.get(task).folder / "dictionary" / "history.parquet") for task in tasks}
    for task, log in logs.items():
        assert log.step.tolist() == list(range(228)), task
    one, other = logs[BASE], logs[ADAPTED]
    assert one[:128].equals(other[:128]) and not one[128:].equals(other[128:])
    assert not one[128:].equals(logs[Sae(layer=2, variant="other-order")][128:])
    # The adapted side reads its rows in the order of the null.
    metas = {role: bench.get(parent).meta for role, parent in ADAPTED.parents().items()}
    identities = [task.identity(bench.resolved, metas) for task in (ADAPTED, Sae(layer=2, variant="other-order"))]
    assert [identity["other order"] for identity in identities] == [True, True]
    assert not BASE.identity(bench.resolved, metas | {"rows": metas["base rows"]})["other order"]


def test_equal_rows_have_one_dictionary_and_one_encoding(bench):
    head = Sae(HEAD, 0, 2)
    assert bench.get(head).key == bench.get(BASE).key != bench.get(ADAPTED).key
    # Whichever of the two is computed, the dictionary is the same.
    assert torch.equal(sae.load(bench.build(head).folder / "dictionary").decoder, bench.dictionary(BASE).decoder)
    one, other = Encode(BASE, Capture.of_base()), Encode(head, Capture(HEAD, 0))
    assert bench.get(one).key == bench.get(other).key


def test_codes_are_those_of_the_dictionary_and_decode_to_its_reconstruction(bench):
    built = bench.build(Encode(BASE, Capture.of_base()))
    read, dictionary = load_codes(built.folder / "codes"), bench.dictionary(BASE)
    rows = torch.from_numpy(np.array(bench.rows(Capture.of_base()).tokens(2)))
    dense = torch.from_numpy(read.toarray())
    torch.testing.assert_close(dense, dictionary.encode(rows).clamp(min=0))
    torch.testing.assert_close(dictionary.decode(dense, rows), dictionary.sae(rows).detach(), rtol=1e-4, atol=1e-5)
    assert np.diff(read.tocsr().indptr).max() <= 4


def test_a_crosscoder_is_trained_where_the_rows_differ(bench):
    assert not (bench.build(Crosscoder(HEAD, 0, 2)).folder / "crosscoder").exists()
    joint = JointDictionary.load(bench.build(Crosscoder(FULL, 0, 2)).folder / "crosscoder")
    base, adapted = bench.rows(CaptureSae.of_base()).tokens(2), bench.rows(CaptureSae(FULL, 0)).tokens(2)
    variance = joint.explained_variance(base, adapted, joint.encode(base, adapted))
    assert min(variance) > 0.2


def test_associations_describe_each_latent_of_the_codes(bench):
    built = bench.build(Associations(BASE))
    table, shares = (pd.read_parquet(built.folder / name) for name in (stored.TABLE, stored.SHARES))
    active = codes(bench, Encode(BASE, Capture.of_base()))
    assert table.density.to_numpy() == pytest.approx(np.diff(active.indptr) / active.shape[0])
    assert shares.latents.item() == len(table) == active.shape[1]
    assert shares.dead.item() == (table.kind == "dead").sum()


def test_matches_of_the_null_are_better_for_an_equal_start(bench):
    built = bench.build(Match(layer=2, controls=CONTROLS))
    means = {
        variant: pd.read_parquet(built.folder / f"{variant}.parquet").cosine.mean()
        for variant in ("other-order", "second-seed")
    }
    assert 1 >= means["other-order"] > means["second-seed"] > 0
    matching = null_matching(bench.get(Match(layer=2, controls=CONTROLS)), "other-order")
    pairs = matching.table.dropna(subset="partner").set_index("latent").partner
    back = matching.reverse.dropna(subset="partner").set_index("latent").partner
    assert all(back[partner] == latent for latent, partner in pairs.items())


def test_transfer_evaluates_each_dictionary_on_each_side(bench):
    (task,) = [one for one in Transfer.tasks(bench.resolved.shape) if one.method == FULL and one.seed == 0]
    built = bench.build(task)
    table = built.table("sae").set_index(["trained_on", "kind", "evaluated_on"]).sort_index()
    rows = np.asarray(bench.rows(Capture.of_base()).tokens(2), dtype=np.float64)
    dense = torch.from_numpy(codes(bench, Encode(BASE, Capture.of_base())).toarray())
    rebuilt = bench.dictionary(BASE).decode(dense, torch.from_numpy(rows).float()).double().numpy()
    expected = 1 - np.square(rows - rebuilt).sum() / np.square(rows - rows.mean(0)).sum()
    assert table.explained_variance["base", "trained", "base"] == pytest.approx(expected, abs=1e-6)
    # The base's dictionaries on both sides, controls among them; controls of the adapted model on their own.
    assert table.base_excess["base", "trained", "adapted"] == 0
    for kind in ("trained", "other-order", "second-seed", "frozen-decoder", "untrained"):
        assert set(table.loc[("base", kind)].index) == {"base", "adapted"}
    assert set(table.loc[("adapted", "trained")].index) == {"base", "adapted"}
    assert set(table.loc[("adapted", "untrained")].index) == {"adapted"}
    assert set(table.index[table.task_loss.notna()]) >= {
        ("base", "untrained", "adapted"),
        ("base", "trained", "adapted"),
    }
    control = table.loc[("base", "frozen-decoder", "adapted")]
    trained = table.explained_variance["base", "trained", "adapted"]
    assert control.base_excess == pytest.approx(trained - control.explained_variance)
    assert control.base_excess_low < control.base_excess < control.base_excess_high
    assert table.explained_variance["base", "trained", "base"] > table.explained_variance["base", "untrained", "base"]
    first = np.flatnonzero(bench.rows(Capture.of_base()).rows.token_index == 0)
    errors, part = np.square(rows[first] - rebuilt[first]).sum(), rows[first]
    head = table.loc[("base", "trained", "base")]
    assert head.ev_head_rows == pytest.approx(1 - errors / np.square(part - part.mean(0)).sum(), abs=1e-6)
    assert head.head_rows == len(first) == head.examples
    keys = ["trained_on", "kind", "evaluated_on"]
    assert (built.table("sae_densities").groupby(keys).latents.sum() == table.d_sae.iloc[0]).all()
    assert table.loss_recovered.notna().any() or table.why.str.len().max() > 0
    assert (
        set(table.steps.drop("untrained", level="kind")) == {228} and (table.steps.xs("untrained", level=1) == 0).all()
    )


def test_latents_of_an_unchanged_layer_match_themselves(bench):
    head = bench.build(latents(HEAD))
    table = head.table("latents")
    live = table.dropna(subset="partner")
    assert (live.partner == live.latent).all() and live.cosine.min() > 1 - 1e-6 and not table.unmatched.any()
    assert "census" not in head.tables
    full = bench.build(latents(FULL))
    matching = full.table("matching").set_index(["start", "on"])
    matched = full.table("latents").query("side == 'base'")
    assert matching["mean"]["same start", "cosine"] == pytest.approx(matched.cosine.mean())
    census = full.table("census")
    assert census.energy_share.sum() == pytest.approx(1, abs=1e-6) and census.delta.between(0, 1).all()
    assert set(full.table("latent_shares").dictionary) == {"first", "second-seed"}


def test_sentence_latents_are_the_codes_of_the_shown_tokens(bench):
    table = bench.build(SentenceLatents(FULL, 0, 2)).table("sentence_latents")
    row = table.query("side == 'adapted' and on == 'base'").iloc[3]
    store = bench.rows(Capture.of_base())
    at = (store.example_ids[store.rows["example"]] == row.example_id) & (store.rows["token_index"] == row.token_index)
    read = codes(bench, Encode(ADAPTED, Capture.of_base()))
    assert row.activation == pytest.approx(read[:, [row.latent]].toarray()[np.flatnonzero(at)[0], 0])
    assert set(bench.build(SentenceLatents(HEAD, 0, 2)).table("sentence_latents").side) == {"base"}


def test_exhibit_counts_every_token_once(bench):
    built = bench.build(Exhibit(FULL, 0, 2, CONTROLS, True))
    histograms = built.table("latent_histograms")
    totals = histograms.groupby(["side", "latent", "on"]).tokens.sum()
    assert (totals == bench.rows(Capture.of_base()).n_rows).all()
    assert set(histograms.on) == {"base", "adapted", "match"}
    shown = built.table("latent_examples").query("side == 'base' and choice == 'top' and rank == 0")
    peak = shown.groupby("latent").base.max()
    largest = bench.get(latents(FULL)).table("latents").query("side == 'base'").set_index("latent").max_activation
    assert peak.to_numpy() == pytest.approx(largest[peak.index].to_numpy())
    assert set(bench.build(Exhibit(HEAD, 0, 2, CONTROLS, True)).table("latent_histograms").on) == {"base"}


def test_exhibit_lists_what_every_live_latent_is_active_on(bench):
    built = bench.build(Exhibit(FULL, 0, 2, CONTROLS, True))
    table = bench.get(latents(FULL)).table("latents")
    live = table[table.kind != "dead"].set_index(["side", "latent"]).max_activation
    peaks = built.table("latent_peaks").groupby(["side", "latent"]).activation.max()
    assert peaks.index.sort_values().equals(live.index.sort_values())
    assert peaks.to_numpy() == pytest.approx(live[peaks.index].to_numpy())
    tokens = built.table("latent_tokens")
    top = tokens[tokens["rank"] == 0].iloc[3]
    read = codes(
        bench, Encode(BASE if top.side == "base" else ADAPTED, Capture() if top.side == "base" else Capture(FULL, 0))
    )
    values = pd.Series(read[:, [top.latent]].toarray()[:, 0].astype(float))
    sums = values.groupby(bench.rows(Capture.of_base()).rows["token"].str.removeprefix("##").to_numpy()).sum()
    assert top.token == sums.idxmax() and top.share == pytest.approx(sums.max() / sums.sum())
    assert set(bench.build(Exhibit(HEAD, 0, 2, CONTROLS, True)).table("latent_peaks").side) == {"base"}


def test_crossing_compares_label_effects_over_seeds_of_both_kinds(bench):
    tasks = [latents(HEAD), latents(FULL), replace(latents(FULL), seed=1)]
    built = bench.build(Crossing(tuple(tasks)))
    table = built.table("crossing").set_index(["method", "quantity"])
    assert (table.verdict["head"] == "flat").all() and set(table.verdict["full"][1:]) == {"description"}
    assert table.verdict["full", "label_effect"] in ("onset", "none") and (table.dictionaries == 2).all()
    assert table.runs["full", "label_effect"] == 2 and table.note["head", "label_effect"] == "only one training run"
    by_layer = built.table("crossing_layers").set_index(["method", "quantity"])
    assert (by_layer.loc["head"][["difference", "lowest", "highest"]] == 0).all(axis=None)
    row = by_layer.loc[("full", "label_effect")]
    labels = bench.context.corpus.test.labels[:30]

    def effect(task, capture):
        example = bench.rows(capture).rows["example"].to_numpy()
        return sae.label_effect(codes(bench, Encode(task, capture)), example, labels).value

    expected = [
        effect(Sae(FULL, seed, 2, variant), Capture(FULL, seed)) - effect(Sae(layer=2, variant=variant), Capture())
        for seed in (0, 1)
        for variant in ("trained", "second-seed")
    ]
    assert row.difference == pytest.approx(np.mean(expected)) and row.low < row.difference < row.high
    assert (row.lowest, row.highest) == pytest.approx((min(expected), max(expected)))
    assert row.dictionary_error > 0 and row.run_error > 0 and row.example_error > 0


def test_transitions_count_matched_latents_and_there_are_none_in_an_unchanged_layer(bench):
    task = Transitions(FULL, 0, (latents(FULL),))
    table = bench.build(task).table("transitions")
    dictionaries = BASE, ADAPTED, Sae(layer=2, variant="other-order")
    tables = [pd.read_parquet(bench.get(Associations(one)).folder / stored.TABLE) for one in dictionaries]
    kinds = sae.comparable_kinds(tables)
    pairs = bench.get(latents(FULL)).table("latents").query("side == 'base'").set_index("latent")
    null = null_matching(bench.get(Match(layer=2, controls=CONTROLS)), "other-order").table.set_index("latent")
    counted = {}
    for latent in pairs.index:
        partners = [latent, pairs.partner[latent], null.partner[latent]]
        if any(pd.isna(partner) for partner in partners):
            continue
        three = [side[partner] for side, partner in zip(kinds, partners, strict=True)]
        if None not in three:
            counted[three[0], three[1]] = counted.get((three[0], three[1]), 0) + 1
    rows = table[(table.matches == "all") & (table.kind_adapted != "task or both")]
    found = rows[rows["count"] > 0].set_index(["kind_base", "kind_adapted"])["count"]
    assert found.to_dict() == counted and sum(counted.values()) > 10
    close = table[(table.matches == "close") & (table.kind_adapted != "task or both")]
    assert close["count"].sum() < rows["count"].sum()
    judged = pd.Series(kinds[0]).value_counts()
    for part in (rows, close):
        sizes = part.drop_duplicates("kind_base").set_index("kind_base")
        assert (sizes.latents + sizes.left_out).to_dict() == judged[sizes.index].to_dict()
    unchanged = bench.build(Transitions(HEAD, 0, (latents(HEAD),))).table("transitions")
    assert (unchanged.excess == 0).all() and (unchanged.rate == unchanged.null_rate).all()
    same = unchanged.kind_base == unchanged.kind_adapted
    assert (unchanged.rate[same] == 1).all()


def test_steps_begin_at_the_base_and_end_at_the_adapted_model(bench):
    (task,) = [one for one in Steps.tasks(bench.resolved.shape) if one.method == FULL and one.seed == 0]
    table = bench.build(task).table("transfer_steps").set_index(["step", "trained_on"])
    (transfer,) = [one for one in Transfer.tasks(bench.resolved.shape) if one.method == FULL and one.seed == 0]
    at_ends = bench.get(transfer).table("sae").query("kind == 'trained'")
    at_ends = at_ends.set_index(["evaluated_on", "trained_on"]).explained_variance
    last = max(step for step, _ in table.index)
    assert last == 5 and len({step for step, _ in table.index}) == 4  # two checkpoints between the ends
    for side in ("base", "adapted"):
        assert table.explained_variance[0, side] == pytest.approx(at_ends["base", side])
        assert table.explained_variance[last, side] == pytest.approx(at_ends["adapted", side])
    assert table.accuracy[0].isna().all() and table.accuracy[last].between(0, 1).all()


def test_alignment_is_fitted_on_training_tokens_and_starts_from_the_transfer(bench):
    (task,) = [one for one in Aligned.tasks(bench.resolved.shape) if one.method == FULL and one.seed == 0]
    built = bench.build(task)
    table = built.table("aligned_transfer").set_index(["kind", "alignment"])
    (transfer,) = [one for one in Transfer.tasks(bench.resolved.shape) if one.method == FULL and one.seed == 0]
    read = bench.get(transfer).table("sae").query("evaluated_on == 'adapted'").set_index(["trained_on", "kind"])
    for kind in ("trained", "untrained", "frozen-decoder"):
        found = table.explained_variance[kind, "none"]
        assert found == pytest.approx(read.explained_variance["base", kind], abs=1e-5)
    assert table.home.to_numpy() == pytest.approx(read.explained_variance["adapted", "trained"], abs=1e-6)
    rows, adapted = (
        np.asarray(bench.rows(one).tokens(2), dtype=np.float64) for one in (CaptureSae.of_base(), CaptureSae(FULL, 0))
    )
    means = rows.mean(0), adapted.mean(0)
    test = np.asarray(bench.rows(Capture(FULL, 0)).tokens(2), dtype=np.float64)
    moved = torch.from_numpy(test - means[1] + means[0]).float()
    rebuilt = bench.dictionary(BASE).sae(moved).detach().double().numpy() - means[0] + means[1]
    expected = 1 - np.square(test - rebuilt).sum() / np.square(test - test.mean(0)).sum()
    assert table.explained_variance["trained", "mean"] == pytest.approx(expected, abs=1e-4)
    components = built.table("difference_pca")
    assert components.explained_variance.is_monotonic_increasing
    assert components.explained_variance.iloc[-1] == pytest.approx(1, abs=1e-6)
    assert components.coefficients.sum() == 1 and components.joint.nunique() == 1
    unchanged = [one for one in Aligned.tasks(bench.resolved.shape) if one.method == HEAD]
    assert not unchanged


def test_exclusive_latents_are_compared_with_noise_and_with_training_seeds(make_bench):
    own = make_bench(sae={"layers": [2], "k": 4, "rows": 300, "controls": [], "census_nulls": 1})
    tasks = [one for one in Exclusive.tasks(own.resolved.shape) if one.method == FULL]
    assert [one.seed for one in tasks] == [0, 1] and not [
        one for one in Exclusive.tasks(own.resolved.shape) if one.method == HEAD
    ]
    table = own.build(tasks[0]).table("exclusive").set_index("null")
    assert list(table.index) == ["noise", "seeds"] and (table.nulls == 1).all()
    assert (table.found <= table.candidates).all() and (table.base_only + table.adapted_only <= table.found).all()
    # The second model of one null, and the first model of the other side, are those of the pair.
    pair = tasks[0].nulls["seeds"][0]
    assert (pair.seed, pair.other_seed) == (0, 1) and tasks[1].nulls["seeds"] == (pair,)
    assert pair.parents()["adapted"] == Capture(FULL, 1) and pair.parents()["base"] == Capture(FULL, 0)
    assert tasks[0].nulls["noise"] == (CensusNull(FULL, 0, 2, draw=0),)
    noise = pd.read_parquet(own.get(tasks[0].nulls["noise"][0]).folder / "census.parquet")
    assert len(noise) >= table.live.iloc[0] and "nu_statistic" in noise


def test_ablating_nothing_is_the_transfer_and_groups_have_equal_energy(bench):
    (task,) = [one for one in Stability.tasks(bench.resolved.shape) if one.method == FULL and one.seed == 0]
    built = bench.build(task)
    overlap = built.table("subspace_overlap").iloc[0]
    assert 0 <= overlap.overlap <= 1 and overlap.null_mean <= overlap.null_high
    matching = sae.match(
        *(bench.dictionary(one.dictionary) for one in task.encodes), *(codes(bench, one) for one in task.encodes)
    )
    unstable = matching.table.live & ~(matching.table.cosine >= 0.7)
    assert overlap.latents == unstable.sum()
    table = built.table("stability").set_index("ablated")
    (transfer,) = [one for one in Transfer.tasks(bench.resolved.shape) if one.method == FULL and one.seed == 0]
    whole = (
        bench.get(transfer)
        .table("sae")
        .query("kind == 'trained' and trained_on == 'adapted' and evaluated_on == 'adapted'")
    )
    assert table.task_loss["none"] == pytest.approx(whole.task_loss.item(), abs=1e-6)
    assert table.of["stable"] + table.of["unstable"] == matching.table.live.sum()


def test_task_losses_that_another_method_has_computed_are_the_same(bench, monkeypatch):
    """The base's classifier and its dictionaries belong to every method."""
    calls, task_costs = [], sae.task_costs

    def counted(model, encoder, examples, layer, dictionaries, **options):
        calls.append((len(dictionaries), options["ablated"]))
        return task_costs(model, encoder, examples, layer, dictionaries, **options)

    monkeypatch.setattr(sae, "task_costs", counted)
    tasks = {one.method: one for one in Transfer.tasks(bench.resolved.shape) if one.seed == 0}
    bench.context.shared.clear()
    alone = bench.build(tasks[FULL]).table("sae")
    assert len(calls) == 2 and all(ablated for _, ablated in calls)  # the base's classifier, and that of full
    bench.context.shared.clear()
    calls.clear()
    bench.build(tasks[HEAD])
    assert len(calls) == 1  # head has one classifier for both sides
    after = bench.build(tasks[FULL]).table("sae")
    assert calls[1] == (1, False) and len(calls) == 3  # of the base's classifier, the dictionary of full alone
    assert alone.equals(after)
