"""What was found and removed as near copies across the parts of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def near_copy_sentences(table: pd.DataFrame) -> list[str]:
    """One sentence per row of the table `near_copies`."""
    sentences = {"train": _in_training, "unseen": _for_dictionaries, "out-of-domain": _out_of_domain}
    return [sentences[str(row.part)](row) for row in table.itertuples()]


def _in_training(row: Any) -> str:
    if not row.copies:
        return f"None of the {row.n_of:,} test examples had a near copy among the training examples."
    labels = "all" if row.same_label == row.copies else f"{row.same_label:,}"
    found = f"near copy among the training examples ({row.copies:,}, {labels} with the label of the test example)"
    which = f"{row.originals:,} of {row.n_of:,} test examples"
    if not row.removed:
        return f"{which} have a {found}; these were kept, so scores on test examples may be too high."
    if row.replaced == row.removed:
        replaced = "replaced by other examples"
    elif row.replaced:
        replaced = f"{row.replaced:,} of them replaced; the source has no more"
    else:
        replaced = "not replaced, since the source has no other examples"
    return f"{which} had a {found}; these near copies were removed from training and {replaced}."


def _for_dictionaries(row: Any) -> str:
    return _of_both(row, f"{row.n:,} unseen examples considered for dictionaries", "")


def _out_of_domain(row: Any) -> str:
    consequence = ", so scores on this set may be too high"
    return _of_both(row, f"{row.n:,} examples of the out-of-domain set {row.name}", consequence)


def _of_both(row: Any, examples: str, consequence: str) -> str:
    """Near copies in a part that should hold none of training or test examples."""
    if not row.copies:
        return f"None of {examples} was a near copy of a training or test example."
    done = "removed" if row.removed else f"kept{consequence}"
    if row.copies == 1:
        return f"Of {examples}, 1 was a near copy of a training or test example; it was {done}."
    return f"Of {examples}, {row.copies:,} were near copies of training or test examples; they were {done}."
