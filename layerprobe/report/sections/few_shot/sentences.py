"""What a few-shot study shows: whether the head is enough, whether meta-training helped, what the inner loop changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from layerprobe.record import Finding, RunRecord
from layerprobe.report.queries import having, records_of
from layerprobe.report.section import Tables
from layerprobe.report.sections.few_shot.figures import READERS
from layerprobe.report.sections.few_shot.queries import (
    Gain,
    change_of,
    chosen_rates,
    depths,
    gains,
    is_by_group,
    test_labels,
)
from layerprobe.stats import mean_interval

OUTCOMES = {
    "sufficient": "is enough",
    "inferior": "is not enough",
    "undecided": "is not shown to be enough, nor to be too little",
    "not tested": "was not tested, since a deeper inner loop was not shown to be enough",
}
"""Outcome of a non-inferiority test in words."""
ALGORITHMS = {"head": " (ANIL)", "full": " (MAML)", "body": " (BOIL)"}
"""Names of inner depths in the literature."""


def sentences(tables: Tables, record: RunRecord) -> list[Finding]:
    """The head against the deepest inner loop, meta-training against none, and layers before and after the inner loop."""
    return [Finding(text=text, figure="few_shot") for texts in by_part(tables, record).values() for text in texts]


def by_part(tables: Tables, record: RunRecord) -> dict[str, list[str]]:
    """The sentences of each part of the section."""
    return {
        "depths": depth_sentences(tables, record),
        "gains": gain_sentences(tables, record),
        "layers": layer_sentences(tables, record),
        "dictionaries": dictionary_sentences(tables, record),
        "rates": rate_sentences(tables, record),
        "convergence": convergence_sentences(tables),
    }


def covers(record: RunRecord, groups: int | None, seeds: int) -> str:
    """What an interval covers."""
    labels = test_labels(record)
    further = "chapters" if labels == "chapters" else "groups of classes"
    classes = f"further {further}" if groups else f"further episodes of these test {labels} only"
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
        # The test is one-sided, so that it may reject a loss of the margin that the two-sided interval contains.
        test = (
            ""
            if row.outcome == "not tested" or row.p != row.p
            else f"; one-sided test against a loss of the margin: p = {row.p:.2g}"
        )
        texts.append(
            f"{subject} {OUTCOMES[str(row.outcome)]} compared with `{row.reference}`: its accuracy differs by "
            f"{points(row.difference)} ({interval(row.ci_low, row.ci_high)}; margin {100 * row.margin:.3g} point{'' if row.margin == 0.01 else 's'}{test}); "
            f"{covers(record, groups, row.seeds)}."
        )
    return texts


def gain_sentences(tables: Tables, record: RunRecord) -> list[str]:
    """Meta-trained against pretrained with the same inner loop, and the best reader without meta-training."""
    texts = [
        f"Meta-trained, the inner loop `{gain.inner}`{ALGORITHMS.get(gain.inner, '')} {verdict(gain)} that of the pretrained body on "
        f"meta-test {test_labels(record)}: {gain.accuracy:.1%} against {gain.other:.1%}, {points(gain.value)} "
        f"({interval(gain.low, gain.high)}) over {gain.n} episodes; {covers(record, gain.groups, gain.seeds)}."
        for gain in gains(tables, depths(tables, record))
    ]
    table = having(tables, "few_shot_accuracy")
    rows = None if table is None else table[(table.method == "pretrained") & (table.reader != "inner")]
    if rows is not None and len(rows):
        by_group = is_by_group(tables)
        low, high = ("group_low", "group_high") if by_group else ("ci_low", "ci_high")
        listed = [
            f"{row['accuracy']:.1%}{'' if row[low] is None else f' ({row[low]:.1%} to {row[high]:.1%})'} by "
            f"{READERS.get(row['reader'], row['reader'])}"
            for row in records_of(rows.sort_values("accuracy", ascending=False))
        ]
        over = "groups" if by_group else "episodes"
        texts.append(
            f"Without meta-training and without an inner loop, the pretrained body reaches {', '.join(listed)} (95% intervals over "
            f"{over})."
        )
    return texts


def layer_sentences(tables: Tables, record: RunRecord) -> list[str]:
    """The layer that each inner loop changed most, where the intervals show one, and the head's logits."""
    texts = []
    for depth in depths(tables, record):
        found = change_of(tables, depth)
        if found is None:
            continue
        head, least, logits = found.head, found.least, ""
        if head is not None:
            logits = f"the head's logits have a CKA of {head.value:.3f} ({head.ci_low:.3f} to {head.ci_high:.3f})"
        if least is not None:
            over = f"over {least.episodes} episodes and {least.n:,} probe examples"
            cka = f"CKA {least.value:.3f} ({least.ci_low:.3f} to {least.ci_high:.3f}) {over}"
            if found.ties:
                shown = f"layer {least.layer} is the least similar: {cka}; it is not shown to have changed more than {layers_in_words(found.ties)}, whose intervals overlap its own"
                shown = shown if len(found.ties) > 1 else shown.replace("intervals overlap", "interval overlaps")
            elif found.others:
                shown = f"layer {least.layer} changed most: {cka}; the intervals of all other layers are above its own"
            else:
                shown = f"layer {least.layer} is the only one that can change: {cka}"
            texts.append(f"Before and after the inner loop `{depth}`, {shown}{f'; {logits}' if logits else ''}.")
        elif logits:
            texts.append(
                f"Before and after the inner loop `{depth}`, {logits}; the layers are identical by construction, which was checked and "
                "is not a finding."
            )
    return texts


def layers_in_words(layers: Sequence[int]) -> str:
    """Such as `layer 5`, or `layers 3, 4 and 5`."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    return f"layers {', '.join(map(str, layers[:-1]))} and {layers[-1]}"


def dictionary_sentences(tables: Tables, record: RunRecord) -> list[str]:
    """Lost latents of the last layer's dictionary, with their null, by inner depth."""
    table, texts = having(tables, "few_shot_dictionaries"), []
    if table is None:
        return []
    last = table[table.layer == table.layer.max()]
    for depth in depths(tables, record):
        rows = last[last.inner == depth]
        if rows.empty or (rows.note != "").any():
            continue
        lost, null = (100 * rows[name].mean() for name in ("lost_share", "null_lost_share"))
        low, high = (100 * value for value in (rows.lost_low.min(), rows.lost_high.max()))
        word = "more than" if low > null else "fewer than" if high < null else "not shown to be more than"
        texts.append(
            f"At layer {rows.layer.iloc[0]}, {lost:.0f}% of the latents of the pretrained body's dictionary have no match in that of "
            f"the body meta-trained with `{depth}` (95% interval {low:.0f}% to {high:.0f}% over latents), {word} the {null:.0f}% of two "
            "dictionaries of the pretrained body."
        )
    return texts


def rate_sentences(tables: Tables, record: RunRecord) -> list[str]:
    """The inner rate of each depth, and how it was chosen."""
    order = depths(tables, record)
    rates = [one for one in chosen_rates(tables) if one.method == "pretrained" and one.inner in order]
    if not rates:
        return []
    listed = ", ".join(f"{one.rate:g} for `{one.inner}`" for one in rates)
    counts = {len(one.losses) for one in rates}
    if counts == {0}:
        return [f"The study gives the inner rates: {listed}."]
    how = f"{max(counts)} rates were tried at each depth on the meta-validation episodes before meta-training"
    if len(counts) > 1:
        how = "some are given by the study, the others were chosen on the meta-validation episodes before meta-training"
    ends = [f"{one.rate:g} is the {one.at_end} that was tried for `{one.inner}`" for one in rates if one.at_end]
    further = f" {'; '.join(ends)}: one beyond it may be better." if ends else ""
    return [f"Inner rates: {listed}; {how}.{further}"]


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
        return "is not shown to beat"
    return "beats" if gain.low > 0 else "is less accurate than"


def points(difference: float) -> str:
    return f"{100 * difference + 0.0:+.1f} points"


def interval(low: float, high: float) -> str:
    return "no interval: one group" if low != low else f"95% interval {100 * low + 0.0:+.1f} to {100 * high + 0.0:+.1f}"
