"""The energy sections: planted optima reach figures and sentences, and the page's script computes what Python computes."""

import json
import shutil
import subprocess
from importlib import resources
from itertools import product

import numpy as np
import pandas as pd
import pytest
from chromium import CHROMIUM
from fabricated import complete, depth_study, record
from test_few_shot_section import study as few_shot_study

from layerprobe.energy_section import EnergySection
from layerprobe.report import cards, findings
from layerprobe.report.page import figure_function, render_page
from layerprobe.report.sections.energy.queries import (
    Settings,
    advantage,
    bits,
    curve_of,
    data_of,
    first_cluster,
    joules,
    rows_of,
    settings_of,
    totals,
)
from layerprobe.stages.energy import energy_rows

ROUNDS = {"head": {0: 20, 10: 8, 40: 6}, "top:2": {0: 9, 10: 3, 40: 12}}
"""Mean rounds of adaptation by t0; at t0 = 40 those of `top:2` are a lower bound."""
INPUTS = {
    "joule_per_batch_center": 0.05,
    "query_batches": 2.0,
    "second_order_factor": 1.5,
    "joule_per_batch_device": 0.02,
    "flops_center": 4e9,
    "flops_device": 1e8,
    "energy_note": "floating-point operations were counted, and joule per operation assumed: no counter could be read",
    "parameters_down": 3_550_000,
    "episode_bits": 30_000.0,
    "meta_tasks": 2,
}
EXCHANGED = {"head": 1_925, "top:2": 3_550_000}


def study(censor=True, seeds=2, settings=None, tasks=4):
    """A few-shot study with energy: head and top:2, ring and mesh and server, 2 and 4 devices."""
    energy = EnergySection(**(settings or {}))
    rows, frames = [], []
    for (inner, by_t0), links, devices, seed, task in product(
        ROUNDS.items(), ("ring", "mesh"), (2, 4), range(seeds), range(tasks)
    ):
        for t0, mean in by_t0.items():
            stopped = censor and (inner, t0) == ("top:2", 40) and task == 0
            row = {"inner": inner, "topology": links, "devices": devices, "meta_rounds": t0, "seed": seed, "task": task}
            row |= {"rounds": mean + (task % 2) * 2 - 1 + devices - 2, "censored": stopped, "target": 0.7}
            rows.append(row | {"group": "", "accuracy": 0.71, "disagreement": 0.0})
    rounds = pd.DataFrame(rows)
    for (inner, links, devices), part in rounds.groupby(["inner", "topology", "devices"], sort=False):
        inputs = INPUTS | {"parameters_exchanged": EXCHANGED[inner]}
        for topology in (links, "server") if links == "mesh" else (links,):
            frames.append(energy_rows(part, topology, devices, inputs, energy))
    tables, about = few_shot_study()
    resolved = {**about.study.resolved, "energy": energy.model_dump()}
    about = about.model_copy(update={"study": about.study.model_copy(update={"resolved": resolved})})
    return tables | {"energy_rounds": rounds, "energy": pd.concat(frames, ignore_index=True)}, about


def figure(name, tables, about, **options):
    return figure_function(name)(tables, about, **options)


def traces(drawn, kind):
    return {trace.meta["inner"]: trace for trace in drawn.data if trace.meta["kind"] == kind}


def test_parts_are_stacked_and_the_optimum_is_marked():
    tables, about = study()
    drawn = figure("energy_parts", tables, about, topology="ring", devices=4)
    assert drawn.layout.barmode == "stack"
    table = tables["energy"]
    for inner in ROUNDS:
        rows = table[(table.inner == inner) & (table.topology == "ring") & (table.devices == 4)]
        stacked = sum(
            np.array(traces(drawn, part)[inner].y) for part in ("center", "uplink", "downlink", "devices", "sidelink")
        )
        np.testing.assert_allclose(stacked, rows.total_joule)
        total = traces(drawn, "total")[inner]
        np.testing.assert_allclose(total.y - np.array(total.error_y.arrayminus), rows.total_low)
        np.testing.assert_allclose(total.y + np.array(total.error_y.array), rows.total_high)
        best = traces(drawn, "best")[inner]
        assert [*best.x] == [str(rows.meta_rounds[rows.optimum].iloc[0])]
        assert best.y[0] == rows.total_joule[~rows.censored].min()


def test_a_censored_number_of_rounds_is_hatched_and_never_the_optimum():
    tables, about = study(settings={f"{link}_bit_per_joule": 1e9 for link in ("uplink", "downlink", "sidelink")})
    table = tables["energy"]
    table.loc[table.censored, ["rounds", "rounds_low", "rounds_high"]] = 0.0  # the least by far, if it counted
    drawn = figure("energy_parts", tables, about)
    assert [*traces(drawn, "center")["top:2"].marker.pattern.shape] == ["", "", "/"]
    assert [*traces(drawn, "total")["top:2"].marker.symbol][-1] == "triangle-up"
    assert [*traces(drawn, "best")["top:2"].x] == ["10"]
    rounds = figure("energy_rounds", tables, about)
    assert [*rounds.data[1].marker.symbol] == ["circle", "circle", "triangle-up-open"]
    texts = " ".join(one.text for one in findings(tables, about))
    assert "A t0 that was stopped at the cap might need less." in texts


def test_sentences_hold_the_least_energy_its_interval_and_the_ratio():
    tables, about = study(censor=False)
    table = tables["energy"]
    rows = table[(table.inner == "top:2") & (table.topology == "ring") & (table.devices == 4)]
    best = rows[rows.optimum].iloc[0]
    (text,) = (one.text for one in findings(tables, about) if "Adapting `top:2`" in one.text)
    assert f"after t0 = {best.meta_rounds} rounds of it: {joules(best.total_joule)}" in text
    assert f"{joules(best.total_low)} to {joules(best.total_high)} over 4 tasks and 2 seeds" in text
    assert f"{best.ratio:.3g} times as much without meta-training" in text
    (sizes,) = (one.text for one in findings(tables, about) if "Sending the adapted parameters once" in one.text)
    assert "61.6 kbit (1.23 J) at depth `head` and 114 Mbit (2.27 kJ) at depth `top:2`, 1,844 times" in sizes
    assert "to 10,000 devices over the downlink costs 12.3 kJ and 22.7 MJ." in sizes


def test_when_no_cluster_reaches_the_target_only_lower_bounds_are_named():
    tables, about = study()
    tables["energy"]["censored"] = True
    (text, _) = (one.text for one in findings(tables, about) if "Adapting `" in one.text)
    assert "only lower bounds of the energy are known" in text
    drawn = figure("energy_parts", tables, about)
    assert all(len(trace.x) == 0 for trace in traces(drawn, "best").values())
    assert "–" in render_page(tables, about)


def test_the_map_agrees_with_energies_one_by_one():
    tables, about = study()
    drawn = figure("energy_map", tables, about, inner="top:2")
    rows, settings = rows_of(tables, "top:2", "ring", 4), settings_of(about)
    (shown,) = traces(drawn, "map").values()
    for i, j in ((0, 0), (3, 15), (18, 2)):
        at = Settings(shown.x[j], settings.downlink, shown.y[i], settings.pue, settings.bits)
        total = np.asarray(curve_of(rows, at).energy.total)  # t0 of 0, 10 and, as a lower bound, 40
        if total[1] < total[0]:
            expected = np.log10(total[0] / total[1])
        else:
            expected = np.log10(total[0] / min(total[1:])) if total[0] <= min(total[1:]) else np.nan
        np.testing.assert_allclose(shown.z[i][j], expected)
    undecided = advantage(curve_of(rows.assign(censored=True), settings))
    assert np.isnan(undecided)


def test_the_page_states_what_was_published_both_regimes_and_assumptions():
    html = render_page(*study())
    assert (
        "ours, after Savazzi et al. (2022" in html and "at least halves" in html and "not comparable with ours" in html
    )
    assert "poor links (50 kbit/J)" in html and "good links (1 Gbit/J)" in html
    assert "usual range 2e-11 to 2e-10" in html
    assert "No energy was computed" in render_page(*few_shot_study())


def test_the_first_card_is_the_depth_of_least_energy():
    tables, about = study()
    card, *others = cards(tables, about)
    assert [one.title for one in others] == [
        "Is the head enough?",
        "Did meta-training help?",
        "What the inner loop changed",
    ]
    topology, devices = first_cluster(tables)
    least = {}
    for inner in ("head", "top:2"):
        curve = curve_of(rows_of(tables, inner, topology, devices), settings_of(about))
        least[inner] = (curve.optimum().energy.total, curve.optimum().meta_rounds)
    (best, (energy, t0)), (other, (more, _)) = sorted(least.items(), key=lambda item: item[1])
    assert card.number == f"{joules(energy)} ({best})"
    assert card.claim.startswith(
        f"`{best}`, {f'after {t0} rounds of' if t0 else 'without'} meta-training; next `{other}`"
    )
    assert joules(more) in card.claim and card.badge == "shown"
    assert f"<code>{best}</code>" in render_page(tables, about)
    single, about = study(seeds=1)
    assert cards(single, about)[0].badge == "one seed only"
    # Where no cluster reached the target, nothing is claimed.
    tables["energy"]["censored"] = True
    nothing = cards(tables, about)[0]
    assert nothing.number == "–" and nothing.badge == "undecided"


def test_units():
    assert joules(1234.5) == "1.23 kJ" and joules(0.0012) == "1.2 mJ" and joules(0) == "0 J"
    assert joules(999.96) == "1 kJ" and bits(7.27e8) == "727 Mbit" and joules(float("nan")) == "– J"


# The page's script -----------------------------------------------------------------------------------------------------


def in_javascript(expression, data):
    """The value of an expression after `model.js`, in headless Chromium, else in Node."""
    folder = resources.files("layerprobe.report").joinpath("sections", "energy")
    code = f"{folder.joinpath('model.js').read_text('utf-8')}\nconst data = {json.dumps(data)};"
    if CHROMIUM is not None:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            found = browser.new_page().evaluate(f"() => {{ {code}\nreturn JSON.stringify({expression}); }}")
            browser.close()
        return json.loads(found)
    node = shutil.which("node")
    if node is None:
        pytest.skip("neither Chromium nor Node is installed")
    done = subprocess.run(
        [node, "-e", f"{code}\nconsole.log(JSON.stringify({expression}));"], capture_output=True, check=True
    )
    return json.loads(done.stdout)


def test_javascript_computes_what_python_computes():
    tables, about = study()
    data = json.loads(json.dumps(data_of(tables, about)))
    rng, drawn = np.random.default_rng(0), []
    for number in range(100):
        links = 10 ** rng.uniform(3, 9, 3)
        settings = Settings(*map(float, links), float(rng.uniform(1, 3)), float(rng.choice([8, 16, 32])))
        drawn.append((number % len(data["clusters"]), settings))
    asked = [[index, vars(settings)] for index, settings in drawn]
    found = in_javascript(
        "data.asked.map(([i, s]) => ({curve: curveOf(data.clusters[i], s), advantage: advantageOf(data.clusters[i], s)}))",
        {**data, "asked": asked},
    )
    assert len(found) == 100 and len({index for index, _ in drawn}) == 12
    for (index, settings), given in zip(drawn, found, strict=True):
        cluster = data["clusters"][index]
        rows = rows_of(tables, cluster["inner"], cluster["topology"], cluster["devices"])
        curve, ends = curve_of(rows, settings), totals(rows, settings)
        for i, parts in enumerate(given["curve"]["parts"]):
            for part, value in parts.items():
                assert value == pytest.approx(np.asarray(getattr(curve.energy, part))[i], rel=1e-12)
        np.testing.assert_allclose(given["curve"]["total"], curve.energy.total, rtol=1e-12)
        np.testing.assert_allclose(given["curve"]["low"], ends.low, rtol=1e-12)
        np.testing.assert_allclose(given["curve"]["high"], ends.high, rtol=1e-12)
        assert cluster["t0"][given["curve"]["best"]] == curve.optimum().meta_rounds
        value = float(advantage(curve))
        assert given["advantage"] is None if np.isnan(value) else given["advantage"] == pytest.approx(value, abs=1e-12)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page with")
def test_sliders_recompute_the_figures_offline(tmp_path):
    from playwright.sync_api import sync_playwright

    tables, about = study()
    (tmp_path / "page.html").write_text(render_page(tables, about), encoding="utf-8")
    read = "name => document.querySelector(`[data-figure=${name}]`).data.map(one => [one.meta, one.y, one.z, one.x])"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, seen = browser.new_page(), []
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or seen.append(request.url))
        page.goto(f"file://{tmp_path}/page.html")
        # What is drawn first is what Python drew.
        first = figure("energy_parts", tables, about)
        for trace, (meta, y, _, _) in zip(first.data, page.evaluate(read, "energy_parts"), strict=True):
            assert meta == trace.meta
            np.testing.assert_allclose(y, np.array(trace.y, float), rtol=1e-5)
        words = page.locator("#energy-words")
        before = words.text_content()
        for name, value in (("sidelink", "8"), ("pue", "2"), ("devices", "0")):
            page.locator(f"#energy-{name}").fill(value)
        page.locator("#energy-topology").select_option("mesh")
        page.wait_for_function("old => document.getElementById('energy-words').textContent !== old", arg=before)
        page.wait_for_timeout(100)
        settings = settings_of(about)
        settings = Settings(settings.uplink, settings.downlink, 1e8, 2.0, settings.bits)
        curves = {inner: curve_of(rows_of(tables, inner, "mesh", 2), settings) for inner in ROUNDS}
        for meta, y, _, _ in page.evaluate(read, "energy_parts"):
            if meta["kind"] not in ("best", "total"):
                np.testing.assert_allclose(y, getattr(curves[meta["inner"]].energy, meta["kind"]), rtol=1e-9)
        at = {meta["kind"]: (x, y, z) for meta, y, z, x in page.evaluate(read, "energy_map")}
        assert at["here"][1] == [pytest.approx(1e8)]
        grid = Settings(
            np.array(at["map"][0])[None], settings.downlink, np.array(at["map"][1])[:, None], 2.0, settings.bits
        )
        expected = advantage(curve_of(rows_of(tables, "head", "mesh", 2), grid))
        np.testing.assert_allclose(np.array(at["map"][2], float), expected, atol=1e-4)
        assert page.locator("#energy-sidelink").get_attribute("aria-valuetext") == "100 Mbit/J"
        assert page.locator("#energy-devices").get_attribute("max") == "1"
        browser.close()
    assert not seen


# Ordinary adaptation ---------------------------------------------------------------------------------------------------


def test_shipping_is_training_and_bits_for_every_depth():
    tables, _ = depth_study(methods=("head", "top:2", "full"), seeds=(0,), n=200, ood=False)
    tables, about = complete(tables, record())
    drawn = figure("shipping", tables, about)
    lines = {trace.name: trace for trace in drawn.data}
    assert list(lines) == ["head", "top:2", "full"]
    adaptation = tables["adaptation"]
    for method, trace in lines.items():
        row = adaptation[(adaptation.method == method) & (adaptation.split == "test")].iloc[0]
        expected = 1.5 * row.flops * 5e-11 + np.array(trace.x) * row.trainable_parameters * 32 / 5e4
        np.testing.assert_allclose(trace.y, expected)
    (text,) = (one.text for one in findings(tables, about) if one.figure == "shipping")
    # 1,155 parameters of 32 bits at 50 kbit/J to 10,000 devices are 7.392 kJ, and training is 1.5 x 155 J.
    assert "Training `head` and sending it (37 kbit) to 10,000 devices costs 7.62 kJ" in text
    measured = tables | {"adaptation": adaptation.assign(energy_kind="measured")}
    again = figure("shipping", measured, about)
    head = adaptation[(adaptation.method == "head") & (adaptation.split == "test")].iloc[0]
    assert again.data[0].y[0] == pytest.approx(1.5 * 3600 * head.energy_wh + 1155 * 32 / 5e4)
    assert "read from counters" in render_page(measured, about)
