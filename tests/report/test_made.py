"""What the page says of how a run was made: near copies across the parts of its data."""

from io import StringIO
from urllib.parse import unquote

import pandas as pd
from fabricated import record

from layerprobe.data._near_copies import SHINGLE, THRESHOLD
from layerprobe.description import NEAR_COPIES
from layerprobe.report import near_copy_sentences
from layerprobe.report.page import render_page
from layerprobe.report.sections import made
from layerprobe.report.sections.made.context import downloads


def row(part, **counts):
    known = dict.fromkeys(NEAR_COPIES.columns, 0) | {"part": part, "name": "", "of": "test", "n": 1700, "n_of": 425}
    return known | counts


def test_sentences_state_what_was_found_and_done():
    found = {"copies": 30, "originals": 26, "same_label": 30}
    table = pd.DataFrame(
        [
            row("train"),
            row("train", **found, removed=30, replaced=30),
            row("train", **found | {"same_label": 28}, removed=30, replaced=4),
            row("train", **found, removed=30),
            row("train", **found),
            row("unseen"),
            row("unseen", **found, removed=30),
            row("out-of-domain", name="<b>", copies=1),
        ]
    )
    had = "26 of 425 test examples had a near copy among the training examples (30, all with the label of the test example)"
    removed = "these near copies were removed from training and"
    assert near_copy_sentences(table) == [
        "None of the 425 test examples had a near copy among the training examples.",
        f"{had}; {removed} replaced by other examples.",
        f"{had}; {removed} 4 of them replaced; the source has no more.".replace("all", "28"),
        f"{had}; {removed} not replaced, since the source has no other examples.",
        f"{had}; these were kept, so scores on test examples may be too high.".replace("had", "have"),
        "None of 1,700 unseen examples considered for dictionaries was a near copy of a training or test example.",
        "Of 1,700 unseen examples considered for dictionaries, 30 were near copies of training or test examples; they were "
        "removed.",
        "Of 1,700 examples of the out-of-domain set <b>, 1 was a near copy of a training or test example; it was kept, so "
        "scores on this set may be too high.",
    ]


def test_downloads_hold_no_formulas_and_change_nothing_else():
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "plain", "a=b", "", None]
    table = pd.DataFrame({"label": texts, "value": [-1.5, -2, 0, 1, 2, 3, 4, 5, None], "=column": "x"})
    (item,) = downloads({"labels": table})
    content = pd.read_csv(StringIO(unquote(item["link"].partition(",")[2])), keep_default_na=False)
    expected = ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\t=1", "plain", "a=b", "", ""]
    assert content.label.tolist() == expected and list(content) == ["label", "value", "'=column"]
    assert content.value.tolist()[:3] == ["-1.5", "-2.0", "0.0"]
    assert list(table) == ["label", "value", "=column"] and table.label[0] == "=1+1"


def test_the_page_lists_what_was_damaged_and_computed_again():
    sentence = "capture/base-0123: rows/mean-layer-00.npy does not match its checksum; computed again"
    html = render_page({}, record(recomputed=[sentence]), [made.SECTION])
    assert f"<li>{sentence}</li>" in html
    assert "damaged" not in render_page({}, record(), [made.SECTION])


def test_the_page_shows_them_where_the_run_has_the_table():
    html = render_page({"near_copies": pd.DataFrame([row("train")])}, record(), [made.SECTION])
    assert "None of the 425 test examples had a near copy among the training examples. A near copy has" in html
    assert "word pairs" in html and SHINGLE == 2 and f"at least {THRESHOLD}".replace("0.", ".") in html
    assert "near copy" not in render_page({}, record(), [made.SECTION])
