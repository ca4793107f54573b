"""Transitions of latents on the page: counts reach the diagram, and claims need an excess at all layers at once."""

import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from fabricated import complete, record
from test_report import EVIL, page, similarity

from layerprobe.report import figure_function
from layerprobe.report.sections.transitions import SECTION
from layerprobe.report.sections.transitions.sentences import transition_sentence

KINDS = ("task", "general", "both", "unexplained")
LABEL = "task or both"


def rows(method="full", seed=0, excess=(0.0, 0.2), reach=0.05, n=200):
    """Two layers in which half of the latents are general; `excess` of these became `task` on top of 5% in the null."""
    frames = []
    for layer, more in zip((1, 2), excess, strict=True):
        for matches, size in (("all", n), ("close", n // 2)):
            for before in ("general", "unexplained"):
                half = size // 2
                moved = round(half * (0.05 + more)) if before == "general" else 0
                for after in (*KINDS, LABEL):
                    count = moved if after in ("task", LABEL) else half - moved if after == before else 0
                    null = round(half * 0.05) if after in ("task", LABEL) and before == "general" else 0
                    value = (count - null) / half
                    frames.append(
                        {"layer": layer, "matches": matches, "kind_base": before, "kind_adapted": after}
                        | {"latents": half, "left_out": 3, "count": count, "null_count": null, "rate": count / half}
                        | {"null_rate": null / half, "excess": value, "low": value - reach, "high": value + reach}
                        | {"all_low": value - 1.2 * reach, "all_high": value + 1.2 * reach}
                    )
    return pd.DataFrame(frames).assign(method=method, seed=seed)


def study(*tables):
    table = pd.concat(tables or [rows(), rows("shuffled-labels"), rows("head", excess=(0, 0))])
    drift = [similarity([1, 0.5]), similarity([1, 0.9], "shuffled-labels"), similarity([1, 1], "head", reach=0)]
    return complete({"transitions": table, "similarity": pd.concat(drift)}, record())


def bands(figure, axis):
    """Latents by flow in one diagram, read off the heights of the bands at both ends, and the text of each band."""
    drawn = [trace for trace in figure.data if trace.xaxis == axis]
    # A bar's height is its kind's count times the unit of the diagram; all bars of one side are all latents.
    tall = {trace.name: trace.y[0] for trace in drawn if trace.type == "bar"}
    kinds = {
        name: int(re.search(r": ([\d,]+) latents", trace.hovertemplate).group(1))
        for trace in drawn
        for name in [trace.name]
        if trace.type == "bar"
    }
    unit = sum(tall.values()) / sum(kinds.values())
    assert tall == pytest.approx({name: count * unit for name, count in kinds.items()})
    flows, texts = {}, {}
    for trace in drawn:
        if trace.type == "scatter":
            y, half = np.array(trace.y), len(trace.y) // 2
            left, right = y[-1] - y[0], y[half] - y[half - 1]
            assert left == pytest.approx(right)
            flows[trace.name], texts[trace.name] = round(left / unit), trace.text
    return flows, texts


def test_bands_are_the_counts_of_each_layer_and_add_up():
    figure = figure_function("transitions")(*study())
    flows, texts = bands(figure, "x2")
    assert flows == {"general to task": 25, "general to general": 75, "unexplained to unexplained": 100}
    assert texts["general to task"] == (
        "general → task<br>25 latents: 25.0%, null 5.0%<br>excess +20.0% (+15.0% to +25.0%)"
    )
    assert sum(bands(figure, "x")[0].values()) == 200
    titles = [note.text for note in figure.layout.annotations if note.text.startswith("layer")]
    assert titles == ["layer 1: base → adapted", "layer 2: base → adapted"]
    labels = {note.text for note in figure.layout.annotations if note.xref == "x2"}
    assert labels == {"general 100", "unexplained 100", "task 25", "general 75"}
    assert sum(bands(figure_function("transitions")(*study(), matches="close"), "x")[0].values()) == 100


def test_bands_and_bars_stay_within_their_diagram_and_do_not_overlap_where_they_begin():
    drawn = figure_function("transitions")(*study()).data
    scatters = [trace for trace in drawn if trace.xaxis == "x2" and trace.type == "scatter"]
    assert all(min(trace.y) >= 0 and max(trace.y) <= 1.000001 for trace in scatters)
    edges = sorted((trace.y[0], trace.y[-1]) for trace in scatters)
    assert all(bottom <= top + 1e-9 for (_, bottom), (top, _) in pairwise(edges))


def test_many_layers_are_drawn_in_lines_that_do_not_overlap():
    table = pd.concat([rows().query("layer == 1").assign(layer=layer) for layer in range(7)])
    figure = figure_function("transitions")(*study(table))
    numbers = ["", *range(2, 8)]
    boxes = [(*figure.layout[f"xaxis{n}"].domain, *figure.layout[f"yaxis{n}"].domain) for n in numbers]
    assert figure.layout.height == 900
    for i, (left, right, bottom, top) in enumerate(boxes):
        assert 0 <= left < right <= 1 and 0 <= bottom < top <= 1
        for other in boxes[:i]:
            assert right <= other[0] or other[1] <= left or top <= other[2] or other[3] <= bottom


def test_the_excess_is_drawn_with_simultaneous_intervals_for_each_seed():
    figure = figure_function("transition_excess")(*study(rows(), rows(seed=1, excess=(0.0, 0.1))))
    traces = {trace.name: trace for trace in figure.data}
    one = traces["general to associated with a label, training seed 0"]
    assert list(one.y) == pytest.approx([0, 0.2]) and np.allclose(one.error_y.array, 0.06)
    assert list(traces["general to associated with a label, training seed 1"].y) == pytest.approx([0, 0.1])


def test_an_excess_over_the_null_is_claimed_with_its_null_and_interval():
    (finding,) = SECTION.sentences(*study())
    assert finding.text == (
        "Under full, 25% of layer 2's 100 matched general latents became associated with a label, compared with 5% between "
        "base and base trained in another order: an excess of 20 points (95% interval for all layers at once 14 to 26, given "
        "these dictionaries and examples). Among those whose match is as close as 95% of matches in base, 24% of 50 did, "
        "compared with 4%."
    )


def test_where_few_matches_are_close_that_is_said_in_place_of_their_rate():
    table = rows(n=200)
    few = table.assign(latents=table.latents.where(table.matches == "all", 4))
    for part, words in ((few, "Of these latents, 4 have a match"), (table[table.matches == "all"], "none has a match")):
        text = transition_sentence(*study(part), "full")
        assert words in text and text.endswith("so a match here may be another feature.") and "Among" not in text


@pytest.mark.parametrize(
    "table",
    [
        rows(excess=(0.0, 0.05)),  # the lower end is below 0
        pd.concat([rows(), rows(seed=1, excess=(0.0, 0.02))]),  # not in every training seed
    ],
    ids=["interval", "seeds"],
)
def test_nothing_is_claimed_unless_every_seed_exceeds_the_null(table):
    text = transition_sentence(*study(table), "full")
    assert "in no layer with dictionaries is it shown" in text and "5% between base and base" in text


def test_over_training_seeds_the_rate_has_a_range():
    text = transition_sentence(*study(rows(), rows(seed=1, excess=(0.0, 0.3))), "full")
    assert "30% (25% to 35% over 2 training seeds) of layer 2's 100" in text and "an excess of 25 points" in text
    assert "widest of 2 training seeds 14 to 36" in text


def test_the_page_offers_methods_and_matches_and_escapes_names(tmp_path):
    html = page(tmp_path, *study())
    section = re.search(r'<section id="transitions">(.*?)</section>', html, flags=re.S).group(1)
    assert set(re.findall(r'data-figure="([^"]+)"', section)) == {"transitions", "transition_excess"}
    assert "only close matches" in section and section.count("<select") == 4
    assert "Under shuffled-labels" in section and "Under head" not in section
    tables, _ = study(rows(EVIL))
    html = page(tmp_path, {name: table.drop(columns="depth", errors="ignore") for name, table in tables.items()})
    assert "<script>alert" not in html and "<img src=x" not in html


def test_without_transitions_nothing_is_drawn():
    assert SECTION.sentences({}, record()) == []
    assert all(draw({}, record()) is None for draw in SECTION.figures.values())
