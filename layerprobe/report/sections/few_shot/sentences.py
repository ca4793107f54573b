"""What a few-shot study shows: whether the head is enough, whether meta-training helped, what the inner loop changed."""

from __future__ import annotations

from typing import Any

from layerprobe.record import Finding, RunRecord
from layerprobe.report.queries import having
from layerprobe.report.section import Tables
from layerprobe.report.sections.few_shot.figures import READERS
from layerprobe.report.sections.few_shot.queries import Gain, depths, gains, layers_of, most_changed, test_labels
from layerprobe.stats import mean_interval

OUTCOMES = {
    "sufficient": "is enough",
    "inferior": "is not enough",
    "undecided": "is not shown to be enough, nor to be too little",
    "not tested": "was not tested, since a deeper inner loop was not shown to be enough",
}
"""Outcome of a non-inferiority test in words."""


def sentences(tables: Tables, record: RunRecord) -> list[Finding]:
    """The head against the deepest inner loop, meta-training against none, and layers before and after the inner loop."""
    texts = [*depth_sentences(tables, record), *gain_sentences(tables, record), *layer_sentences(tables, record)]
    texts += convergence_sentences(tables)
    return [Finding(text=text, figure="few_shot") for text in texts]


def covers(record: RunRecord, groups: int | None, seeds: int) -> str:
    """What an interval covers."""
    classes = "further groups of classes" if groups else f"further episodes of these test {test_labels(record)} only"
    over = f"the interval covers {classes}{f' ({groups} groups)' if groups else ''}"
    return f"{over}, not further trainings ({seeds} seed{'s' * (seeds != 1)})"


def depth_sentences(tables: Tables, record: RunRecord) -> list[str]:
    """Each shallower inner depth against the deepest, the shallowest first."""
    table = having(tables, "few_shot_differences")
    if table is None:
        return []
    texts: list[str] = []
    row: Any
    for row in table.sort_values("order", ascending=False).itertuples():
        groups = int(row.n) if row.covers == "groups" else None
        subject = "Adapting only the head in the inner loop" if row.inner == "head" else f"The inner loop `{row.inner}`"
        texts.append(
            f"{subject} {OUTCOMES[str(row.outcome)]} compared with `{row.reference}`: its accuracy differs by "
            f"{points(row.difference)} ({interval(row.ci_low, row.ci_high)}; margin {100 * row.margin:.3g} point{'' if row.margin == 0.01 else 's'}); "
            f"{covers(record, groups, row.seeds)}."
        )
    return texts


def gain_sentences(tables: Tables, record: RunRecord) -> list[str]:
    """Meta-trained against pretrained with the same inner loop, and the best reader without meta-training."""
    texts = [
        f"Meta-training with the inner loop `{gain.inner}` {verdict(gain)}: {gain.accuracy:.1%} against {gain.other:.1%} of the "
        f"pretrained body with the same inner loop, {points(gain.value)} ({interval(gain.low, gain.high)}) over {gain.n} episodes; "
        f"{covers(record, gain.groups, gain.seeds)}."
        for gain in gains(tables, depths(tables, record))
    ]
    table = having(tables, "few_shot_accuracy")
    rows = None if table is None else table[(table.method == "pretrained") & (table.reader != "inner")]
    if rows is not None and len(rows):
        best: Any = rows.sort_values("accuracy").iloc[-1]
        texts.append(
            f"Without meta-training and without an inner loop, the pretrained body reaches {best.accuracy:.1%} "
            f"({best.ci_low:.1%} to {best.ci_high:.1%}) by {READERS.get(best.reader, best.reader)}, the best of its readers on these "
            "episodes."
        )
    return texts


def layer_sentences(tables: Tables, record: RunRecord) -> list[str]:
    """The layer that each inner loop changed most, as far as intervals show it, and the head's logits."""
    rows, texts = layers_of(tables, "inner loop", "cka"), []
    if rows is None:
        return []
    for depth in depths(tables, record):
        part = rows[(rows.inner == depth) & rows.value.notna()]
        body, head = part[part.part == "layer"], part[part.part == "head"]
        changed = body[~body.note.str.contains("identical")]
        logits = ""
        if len(head):
            one: Any = head.iloc[0]
            logits = f"the head's logits have a CKA of {one.value:.3f} ({one.ci_low:.3f} to {one.ci_high:.3f})"
        if len(changed):
            least: Any = changed.sort_values("value").iloc[0]
            shown = most_changed(body) == least.layer
            start = (
                f"layer {least.layer} changed most"
                if shown
                else f"CKA is lowest at layer {least.layer}, which is not shown to have changed most"
            )
            texts.append(
                f"Before and after the inner loop `{depth}`, {start}: CKA {least.value:.3f} "
                f"({least.ci_low:.3f} to {least.ci_high:.3f}) over {least.episodes} episodes and {least.n:,} probe examples"
                f"{f'; {logits}' if logits else ''}."
            )
        elif len(body) and logits:
            texts.append(
                f"Before and after the inner loop `{depth}`, {logits}; the layers are identical by construction, which was checked and "
                "is not a finding."
            )
    return texts


def convergence_sentences(tables: Tables) -> list[str]:
    """For each geometry, the last validation loss with the most inner steps against that with the fewest."""
    table, texts = having(tables, "few_shot_convergence"), []
    if table is None:
        return []
    for (geometry, choice), rows in table.groupby(["geometry", "rate_choice"], sort=False):
        measured = rows[rows.loss.notna()]
        if measured.empty:
            continue
        last = measured[measured.step == measured.step.max()].pivot_table(
            index="seed", columns="inner_steps", values="loss"
        )
        fewest, most = int(last.columns.min()), int(last.columns.max())
        difference = (last[most] - last[fewest]).dropna().to_numpy()
        if fewest == most or not len(difference):
            continue
        value, low, high = mean_interval(difference)
        word = "is lower" if high < 0 else "is higher" if low > 0 else "is not shown to be lower or higher"
        bounds = f"95% interval {low:+.3f} to {high:+.3f} over {len(difference)} seeds"
        if len(difference) < 2:
            word, bounds = "is lower" if value < 0 else "is higher", "one seed, so that nothing is shown"
        ended = " Some curves ended early because the inner loop diverged." if (rows.note != "").any() else ""
        texts.append(
            f"With a {geometry} inner loss and the {'rate of its own' if choice == 'own' else 'common rate'} "
            f"({rows.inner_rate.iloc[0]:g}), the validation loss after {int(measured.step.max())} outer steps {word} with "
            f"{most} inner steps than with {fewest}: {value:+.3f} nats ({bounds}).{ended}"
        )
    return texts


def verdict(gain: Gain) -> str:
    if not gain.decided:
        return "is not shown to change accuracy"
    return "raised accuracy" if gain.low > 0 else "lowered accuracy"


def points(difference: float) -> str:
    return f"{100 * difference + 0.0:+.1f} points"


def interval(low: float, high: float) -> str:
    return "no interval: one group" if low != low else f"95% interval {100 * low + 0.0:+.1f} to {100 * high + 0.0:+.1f}"
