"""Several runs on one page: paired only on the same examples, refused in one sentence where there is nothing to compare."""

import json
import re
import subprocess
import sys
from html import unescape
from io import StringIO
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from fabricated import complete, depth_study, method_record, record
from test_captions import MOST_WORDS, captions
from test_report import EVIL
from typer.testing import CliRunner

from layerprobe.cli import app
from layerprobe.errors import StorageError
from layerprobe.report import compare_runs, findings
from layerprobe.report.comparison import ComparedRun, figures
from layerprobe.report.comparison.answer import cards
from layerprobe.report.comparison.tables import FULL, compare
from layerprobe.runs import Run


def write(folder, name, key, *, n_layers=6, drop=(), change=None, **study):
    """A run of every depth as `layerprobe run` leaves it."""
    tables, kept = depth_study(**{"n": 400, "seeds": (0,), "ood": False, "n_layers": n_layers, **study})
    task = {"stage": "adapt", "name": "head", "key": key, "seconds": 1.0, "reused": False}
    about = record(name=name, sufficiency=kept, tasks=[task])
    about.encoder.n_layers = n_layers
    about.study.resolved |= {"seeds": list(study.get("seeds", (0,))), "adaptation": {"pooling": "model"}}
    if change:
        change(about)
    tables, about = complete(tables, about)
    about.findings = findings(tables, about)
    run = Run.create(folder, about)
    run.save_tables({name: table for name, table in tables.items() if name not in drop})
    run.save()
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on the same examples, of 6 and of 12 blocks, and one on other examples."""
    root = tmp_path_factory.mktemp("runs")
    same = ("head", "top:1", "top:2", "full")
    return [
        write(root / "small", "small", "a", methods=same),
        write(root / "large", "large", "b", methods=("head", "top:2", "top:3", "full"), n_layers=12),
        write(root / "other", "other", "c", methods=("head", "full"), seed=7),
    ]


@pytest.fixture(scope="module")
def html(runs, tmp_path_factory):
    return compare_runs(runs, tmp_path_factory.mktemp("out") / "cmp").read_text(encoding="utf-8")


def compared(runs):
    return [
        ComparedRun(run.record.name, str(run.folder), run.record, {name: run.table(name) for name in run.tables})
        for run in runs
    ]


def cli(*words):
    return CliRunner().invoke(app, ["compare", *[str(word) for word in words]])


def refused(result, *words):
    assert result.exit_code == 2, result.output
    told = [line for line in result.stderr.splitlines() if line.startswith("layerprobe: ")]
    assert len(told) == 1 and "Traceback" not in result.stderr
    for word in words:
        assert word in told[0], told[0]


def download(html, name):
    link = re.search(rf'download="{name}.csv" href="data:text/csv;charset=utf-8,([^"]+)"', html)
    return pd.read_csv(StringIO(unquote(unescape(link.group(1)))))


def test_a_user_gets_a_page_and_may_write_it_again(runs, tmp_path):
    folders = [run.folder for run in runs]
    for _ in range(2):
        result = cli(*folders, "--out", tmp_path / "cmp")
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[-1] == str(tmp_path / "cmp" / "index.html")
    kept = json.loads((tmp_path / "cmp" / "compare.json").read_text())
    assert kept["kind"] == "comparison" and list(kept["runs"]) == ["small", "large", "other"]


def test_only_runs_on_the_same_examples_are_subtracted(runs, html):
    table = download(html, "paired")
    assert set(table.run) == {"large"} and set(table.reference) == {"small"}
    assert set(table.method) == {"head", "top:2", "full"}  # which both have
    right = {
        run.record.name: run.table("predictions").query("method == 'top:2'").set_index("example_id") for run in runs[:2]
    }
    right = {name: (rows.label == rows.predicted).astype(float) for name, rows in right.items()}
    gap = right["large"] - right["small"]
    row = table.set_index("method").loc["top:2"]
    assert row.difference == pytest.approx(gap.mean()) and row.n == 400
    half, widened = (row.ci_high - row.ci_low) / 2, np.append(gap, [-1, 1])
    assert half == pytest.approx(1.96 * widened.std() / np.sqrt(402), rel=1e-3)  # Bonett and Price (2012)
    assert "small, large were evaluated on the same test examples" in html
    assert "The others are separate studies" in html


def test_runs_on_other_examples_are_separate_studies(runs, tmp_path):
    page = compare_runs([runs[0], runs[2]], tmp_path / "cmp").read_text(encoding="utf-8")
    assert "No two of these runs were evaluated on the same test examples" in page
    assert "are not subtracted from one another" in page and "On the same examples" not in page


def test_seeds_that_differ_are_not_paired_and_the_page_says_so(runs, tmp_path):
    other = write(tmp_path / "late", "late", "d", methods=("head", "full"), seeds=(5,))
    page = compare_runs([runs[0], other], tmp_path / "cmp").read_text(encoding="utf-8")
    assert "Not paired: head has no seed in common in small, late." in page
    assert "The runs differ in their seeds (small: 0; late: 5)." in page


def test_the_page_holds_each_run_s_numbers(runs, html):
    quality, gaps = download(html, "quality"), download(html, "differences")
    for run in runs:
        own = run.table("adaptation").query("method == 'full' and split == 'test'")
        shown = quality[(quality.run == run.record.name) & (quality.method == "full")]
        assert shown.accuracy.tolist() == own.accuracy.tolist()
        assert run.record.sufficiency.sentence.replace("'", "&#39;") in html
    assert gaps.query("run == 'large' and method == 'top:3'").trained_share.iloc[0] == 0.25
    shares = quality[quality.run == "small"].set_index("method").trained_share
    assert shares["full"] == FULL and shares["head"] == 0 and shares["top:1"] == pytest.approx(1 / 6)
    drift = download(html, "drift")
    assert drift.query("run == 'large' and layer == 3").share.unique().tolist() == [0.25]
    assert not quality.method.str.startswith("reference:").any()
    for data in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, flags=re.S):
        json.loads(data)
    own = re.sub(r"<script>.*?</script>", "", html, flags=re.S)
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", own)


def test_no_caption_has_more_than_forty_words(html):
    found = captions(html)
    assert len(found) == 4 and all(5 < len(words) <= MOST_WORDS for words in found)


def test_what_differs_and_bears_on_reading_is_listed(runs, tmp_path):
    def change(about):
        about.study.resolved["adaptation"]["pooling"] = "mean"
        about.provenance.device = "cuda"

    other = write(tmp_path / "gpu", "gpu", "e", methods=("head", "full"), margin=0.02, change=change)
    page = compare_runs([runs[0], other], tmp_path / "cmp").read_text(encoding="utf-8")
    assert "differ in their margins (small: 0.01; gpu: 0.02)" in page
    assert "differ in their heads (adaptation.pooling) (small: model; gpu: mean)" in page
    assert "seconds, memory and energy are not comparable" in page


def test_tables_that_some_runs_lack_are_said(runs, tmp_path):
    lacking = ("differences", "sufficiency", "seed_differences", "pareto", "similarity", "predictions")

    def change(about):
        about.sufficiency = None

    older = write(tmp_path / "older", "older", "f", methods=("head", "full"), drop=lacking, change=change)
    page = compare_runs([runs[0], older], tmp_path / "cmp").read_text(encoding="utf-8")
    assert "The runs share no measure of drift" in page and "this run has no conclusion about depth" in page


def test_names_are_distinguished_and_escaped(runs, tmp_path):
    twins = [write(tmp_path / key, "twin", key, methods=("head", "full")) for key in ("g", "h")]
    compare_runs(twins, tmp_path / "cmp")
    labels = list(json.loads((tmp_path / "cmp" / "compare.json").read_text())["runs"])
    assert labels == ["twin · tiny · texts.csv (1)", "twin · tiny · texts.csv (2)"]

    def change(about):
        about.question = EVIL

    evil = write(tmp_path / "evil", EVIL, "i", methods=("head", "full"), change=change)
    page = compare_runs([runs[0], evil], tmp_path / "evil-cmp").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<img src=x" not in page
    assert page.count("</script>") == page.count("<script")


def test_what_is_not_comparable_is_refused_in_one_sentence(runs, tmp_path):
    one, other = runs[0].folder, runs[2].folder
    out = ("--out", tmp_path / "cmp")
    refused(cli(one, *out), "two run folders or more", "small")
    refused(cli(one, one, *out), "given twice")
    refused(cli(one, tmp_path / "nowhere", *out), "nowhere does not exist")
    copy = write(tmp_path / "copy", "copy", "a", methods=("head", "full"))
    refused(cli(one, copy.folder, *out), "the same training", "copy")
    unfinished = write(tmp_path / "unfinished", "unfinished", "j", methods=("head", "full"))
    unfinished.record.status, unfinished.record.error = "failed", "interrupted"
    unfinished.save()
    refused(cli(one, unfinished.folder, *out), "failed (interrupted)", "finish it first with: layerprobe run")
    foreign = write(tmp_path / "foreign", "foreign", "k", methods=("head", "full"))
    path = foreign.folder / "run.json"
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 99'))
    refused(cli(one, foreign.folder, *out), "schema 99", "reads schema 2", "repeat the run with: layerprobe run x.toml")
    bare = write(tmp_path / "bare", "bare", "l", methods=("head", "full"), drop=("adaptation",))
    refused(cli(one, bare.folder, *out), "holds no table of quality")
    refused(cli(f"a={one}", f"a={other}", *out), "both named 'a'", "NAME=RUN_DIR")
    refused(cli(f"small={other}", one, *out), "both named 'small'")

    def few_shot(about):
        about.study.resolved["few_shot"] = {"inner": ["head"]}

    episodes = write(tmp_path / "episodes", "episodes", "m", methods=("head", "full"), change=few_shot)
    refused(cli(one, episodes.folder, *out), "is a few-shot study, which cannot be compared")
    assert not (tmp_path / "cmp").exists()


def test_nothing_else_is_overwritten(runs, tmp_path):
    one, other = runs[0].folder, runs[2].folder
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    refused(cli(one, other, "--out", tmp_path / "mine"), "something other than a comparison")
    refused(cli(one, other, "--out", one), "something other than a comparison")
    refused(cli(one, other, "--out", tmp_path / "mine" / "notes.txt"), "is a file")
    refused(
        cli(one, other, "--out", tmp_path / "mine" / "notes.txt" / "below"), "notes.txt", "a file where a folder should"
    )
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine" and not (one / "index.html").exists()
    with pytest.raises(StorageError):
        compare_runs([], tmp_path / "cmp")


def test_comparing_needs_no_torch(runs, tmp_path):
    code = (  # scipy looks into sys.modules for torch, so a None there would break it
        "import sys, importlib.abc\n"
        "class No(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'transformers', 'sae_lens'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, No())\n"
        "from layerprobe.report import compare_runs\n"
        "from layerprobe.runs import Run\n"
        f"runs = [Run.load({str(runs[0].folder)!r}), Run.load({str(runs[1].folder)!r})]\n"
        f"print(compare_runs(runs, {str(tmp_path / 'cmp')!r}))"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert told.strip() == str(tmp_path / "cmp" / "index.html")


def test_figures_hold_the_numbers_of_every_run(runs):
    tables, comparison = compare(compared(runs))
    assert (comparison.name, [match.name for match in comparison.matches]) == ("3 runs compared", ["head", "full"])
    assert comparison.main.methods == ("full",) * 3
    assert comparison.groups == [["small", "large"]] and not comparison.unpaired
    quality = figures.quality(tables, comparison)
    assert [note.text for note in quality.layout.annotations] == ["texts.csv", "other"]  # a panel per set of examples
    lines = {trace.name: trace for trace in quality.data if "lines" in trace.mode}
    assert (lines["small"].xaxis, lines["large"].xaxis, lines["other"].xaxis) == ("x", "x", "x2")
    right = runs[1].table("adaptation").query("split == 'test' and not is_reference").groupby("method").accuracy.mean()
    assert list(lines["large"].y) == list(right[["head", "top:2", "top:3", "full"]])
    assert list(lines["large"].x) == [0, 2 / 12, 3 / 12, FULL]
    cost = figures.cost(tables, comparison)
    assert cost.layout.annotations[1].text == "training FLOPs" and sum(trace.showlegend for trace in cost.data) == 3
    flops = {trace.name: trace for trace in cost.data if trace.xaxis == "x2"}
    assert flops["small"].y[-1] == 1 and flops["small"].y[0] == pytest.approx(3.1 / 44.1)
    differences = figures.differences(tables, comparison)
    assert [note.text for note in differences.layout.annotations] == ["small", "large", "other"]
    gaps = {trace.name: trace for trace in differences.data}
    planted = runs[0].table("differences").set_index("method").difference
    assert list(gaps["small"].y) == list(planted[["head", "top:1", "top:2"]])
    drawn = figures.drift(tables, comparison)
    assert [note.text for note in drawn.layout.annotations] == ["head", "full"]
    drift = {trace.name: trace for trace in drawn.data if trace.name and trace.xaxis == "x2"}
    cka = runs[1].table("similarity").query("method == 'full' and measure == 'cka'")
    assert list(drift["large"].y) == list(cka.value) and list(drift["large"].x) == [i / 12 for i in range(13)]


def test_seconds_are_compared_only_if_no_run_had_concurrent_tasks(runs, tmp_path):
    busy = compared(runs)[1]
    table = busy.tables["adaptation"].assign(concurrent_tasks=2)
    busy = ComparedRun(busy.label, busy.folder, busy.record, {**busy.tables, "adaptation": table})
    idle = compared(runs)[0]
    tables, comparison = compare([idle, busy])
    assert "seconds" not in tables["cost"] and "energy_wh" not in tables["cost"] and "flops" in tables["cost"]
    titles = [note.text for note in figures.cost(tables, comparison).layout.annotations]
    assert "training FLOPs" in titles and not {"training seconds", "energy"} & set(titles)
    assert "seconds" in compare([idle, compared(runs)[2]])[0]["cost"]
    run = Run.load(runs[1].folder)
    busy = Run.create(tmp_path / "busy", run.record.model_copy(update={"name": "busy", "tasks": []}))
    busy.save_tables({name: run.table(name) for name in run.tables} | {"adaptation": table})
    busy.save()
    page = compare_runs([runs[0], busy], tmp_path / "cmp").read_text(encoding="utf-8")
    assert page.count("Training FLOPs are compared, but not training seconds or energy, because other tasks ran") == 1
    assert '"sort">training seconds<' not in page and '"sort">training FLOPs<' in page


def test_controls_and_methods_without_a_depth_need_no_edit_of_the_page(runs, tmp_path):
    def rename(about):
        about.sufficiency = None

    toy = write(tmp_path / "toy", "toy", "n", methods=("head", "lora:8", "full"), change=rename)
    tables, comparison = compare(compared([runs[0], toy]))
    shares = tables["quality"][tables["quality"].run == "toy"].set_index("method").trained_share
    assert np.isnan(shares["lora:8"]) and shares["full"] == FULL
    assert [match.name for match in comparison.matches] == ["head", "full"]
    page = compare_runs([runs[0], toy], tmp_path / "cmp").read_text(encoding="utf-8")
    assert "<td>toy</td><td>lora:8</td>" in page


def checkpoint_run(folder, name, key, path, *, methods=("head", "full"), seeds=(0,), **study):
    """A run of one finished model, which is `full` of a fabricated study under another name."""
    run = write(folder, name, key, methods=methods, seeds=seeds, **study)
    as_checkpoint = {"method": {"full": f"checkpoint:{path}"}}
    tables = {
        table: run.table(table).query("method == 'full'").replace(as_checkpoint).assign(depth=None)
        for table in ("adaptation", "predictions", "similarity")
    }
    model = method_record("lora:8", 6).model_copy(update={"name": f"checkpoint:{path}", "uses_seed": False})
    run.record.methods, run.record.sufficiency = [model], None
    run.save_tables(tables)
    run.save()
    return run


def test_two_checkpoints_of_one_task_are_compared_example_by_example(runs, tmp_path):
    one = checkpoint_run(tmp_path / "one", "one", "o", "models/one")
    other = checkpoint_run(tmp_path / "other", "other", "p", "models/other", seeds=(3,))  # seeds are no part of them
    tables, comparison = compare(compared([one, other]))
    (match,) = comparison.matches
    assert (match.name, match.methods) == ("checkpoint", ("checkpoint:models/one", "checkpoint:models/other"))
    (row,) = tables["paired"].itertuples()
    right = [run.table("predictions").set_index("example_id").eval("label == predicted") for run in (one, other)]
    assert row.difference == pytest.approx(right[1].mean() - right[0].mean())
    assert (row.method, row.reference_method, row.trainings) == (*match.methods[::-1], 1)
    drawn = figures.quality(tables, comparison)
    assert [(trace.y[0], trace.x[0]) for trace in drawn.data] == [
        (name, pytest.approx(correct.mean())) for name, correct in zip(("one", "other"), right, strict=True)
    ]
    page = compare_runs([one, other], tmp_path / "cmp").read_text(encoding="utf-8")
    assert "Compared as checkpoint: one: checkpoint:models/one; other: checkpoint:models/other." in page


def test_runs_without_a_method_in_common_are_compared_by_their_main_methods(runs, tmp_path):
    """A checkpoint is compared with every seed of a method that depends on one: with the mean accuracy of its seeds."""
    model = checkpoint_run(tmp_path / "model", "model", "q", "models/one")
    trained = write(tmp_path / "trained", "trained", "r", methods=("top:5", "top:6"), seeds=(0, 1, 2))
    tables, comparison = compare(compared([trained, model]))
    assert (comparison.main.name, comparison.main.methods) == ("main method", ("top:6", "checkpoint:models/one"))
    accuracy = {
        name: run.table("predictions").query(f"method == '{method}'").eval("label == predicted").mean()
        for name, run, method in (("trained", trained, "top:6"), ("model", model, "checkpoint:models/one"))
    }
    (row,) = tables["paired"].itertuples()
    assert row.difference == pytest.approx(accuracy["model"] - accuracy["trained"])
    assert (row.seeds, row.trainings) == (3, 1)
    assert cards(tables, comparison)[0].badge in ("one seed only", "undecided")


def with_gap(run, folder, key, gap, seeds=(0,)):
    """The run with this share of full's right predictions made wrong, or (negative) of its wrong ones made right."""
    about = run.record.model_copy(deep=True, update={"name": key})
    about.tasks[0].key = key
    tables = {name: run.table(name) for name in run.tables}
    rows = tables["predictions"].copy()
    full, right = rows.method == "full", rows.label == rows.predicted
    chosen = rows.index[full & (right if gap > 0 else ~right)]
    chosen = chosen[: round(abs(gap) * full.sum())]
    wrong = {"negative": "neutral", "neutral": "positive", "positive": "negative"}
    label = rows.label.loc[chosen]
    rows.loc[chosen, "predicted"] = label.map(wrong) if gap > 0 else label
    changed = Run.create(folder, about)
    changed.save_tables(tables | {"predictions": rows})
    changed.save()
    return changed


@pytest.mark.parametrize(
    ("gap", "claim", "badge"),
    [
        (0.1, "second (", "one seed only"),
        (-0.1, "second (", "one seed only"),
        (0.01, "undecided: second (", "undecided"),
        (0, "right and wrong on the same examples as small", "one seed only"),
    ],
)
def test_the_first_card_says_which_run_is_more_accurate_where_the_band_shows_it(runs, tmp_path, gap, claim, badge):
    small = runs[0]
    second = with_gap(small, tmp_path / "second", "second", gap)
    tables, comparison = compare(compared([small, second]))
    card = cards(tables, comparison)[0]
    assert claim in card.claim and card.badge == badge
    row = tables["paired"].query("role == 'full'").iloc[0]
    decided = row.band_low > 0 or row.band_high < 0
    assert decided == (abs(gap) == 0.1) and ("accurate than" in card.claim) == decided
    assert ("less accurate" in card.claim) == (gap == 0.1) and ("more accurate" in card.claim) == (gap == -0.1)
    assert card.number == f"{-100 * gap + 0.0:+.1f} points (second minus small)"
    assert f"95% band {100 * row.band_low:+.1f} to {100 * row.band_high:+.1f}" in card.details[0].text or gap == 0


def test_the_second_card_names_layers_only_where_bands_are_apart(runs, tmp_path):
    def with_bands(run, key, shift):
        rows = run.table("similarity")
        full = (rows.method == "full") & (rows.measure == "cka")
        value = rows.value.where(~full | (rows.layer < 5), rows.value - shift)
        rows = rows.assign(value=value, band_low=value - 0.02, band_high=value + 0.02)
        about = run.record.model_copy(deep=True, update={"name": key})
        about.tasks[0].key = key
        changed = Run.create(tmp_path / key, about)
        changed.save_tables({name: run.table(name) for name in run.tables} | {"similarity": rows})
        return changed

    small, near, far = (with_bands(runs[0], key, shift) for key, shift in (("a", 0), ("b", 0.03), ("c", 0.05)))
    undecided = cards(*compare(compared([small, near])))[1]
    assert (undecided.claim, undecided.badge) == (
        "Under full, undecided: no difference is shown at any layer",
        "undecided",
    )
    shown = cards(*compare(compared([small, far])))[1]
    assert (
        shown.claim == "Under full, layers 5 to 6 changed more in c than in a; no difference is shown at layers 0 to 4"
    )
    assert (shown.number, shown.badge) == ("2 of 7 layers", "one seed only")
    three = cards(*compare(compared([small, near, far])))[1]
    assert "some of the runs differ at layers 5 to 6" in three.claim
    others = cards(*compare(compared(runs[:2])))[1]
    assert others.claim.startswith("Not compared layer by layer") and others.badge == "undecided"


def test_the_third_card_reports_each_run_s_own_conclusion(runs):
    tables, comparison = compare(compared(runs))
    card = cards(tables, comparison)[2]
    assert all(run.record.name in card.claim for run in runs)
    assert all(any(run.record.sufficiency.sentence in one.text for one in card.details) for run in runs)


def test_labels_are_given_in_python_and_on_the_command_line(runs, tmp_path):
    page = compare_runs({"six blocks": runs[0], "twelve": runs[1]}, tmp_path / "python").read_text(encoding="utf-8")
    assert "six blocks (" in page and list(json.loads((tmp_path / "python" / "compare.json").read_text())["runs"]) == [
        "six blocks",
        "twelve",
    ]
    evil = EVIL.replace("=", "")  # a label ends at the first equals sign
    result = cli(f"{evil}={runs[0].folder}", runs[1].folder, "--out", tmp_path / "cmp")
    assert result.exit_code == 0, result.output
    assert list(json.loads((tmp_path / "cmp" / "compare.json").read_text())["runs"]) == [evil, "large"]
    assert "<script>alert" not in (tmp_path / "cmp" / "index.html").read_text(encoding="utf-8")
    odd = tmp_path / "a=b"
    odd.symlink_to(runs[0].folder)
    result = cli(odd, f"x={runs[1].folder}", "--out", tmp_path / "odd")
    assert result.exit_code == 0, result.output


def test_the_table_of_runs_holds_what_each_is_made_of(runs, html):
    table = re.search(r'<table class="wrap sortable" aria-label="Runs">(.*?)</table>', html, flags=re.S).group(1)
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table, flags=re.S)[1:]]
    assert [row[:3] for row in rows] == [["small", "tiny", "6"], ["large", "tiny", "12"], ["other", "tiny", "6"]]
    own = runs[1].table("adaptation").query("method == 'full' and split == 'test'").accuracy.mean()
    assert rows[1][6:8] == ["full", "1"] and rows[1][8].startswith(f"{own:.1%} (") and f'data-value="{own}"' in table
