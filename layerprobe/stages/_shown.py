"""Which test examples the page shows token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.activations import ActivationStore
    from layerprobe.context import Context

SHOWN_EXAMPLES = 100
LONGEST = 64
"""Tokens above which an example is too long to show."""


def shown_rows(context: Context, store: ActivationStore) -> Any:
    """Row numbers of the tokens to show: of short examples, drawn from each label in turn."""
    example = store.rows["example"].to_numpy()
    lengths = np.bincount(example)
    labels = context.corpus.test.labels
    queues = [
        [i for i in range(len(lengths)) if labels[i] == label and 3 < lengths[i] <= LONGEST]
        for label in range(len(context.corpus.label_names))
    ]
    turns = max(len(queue) for queue in queues)
    shown = [queue[i] for i in range(turns) for queue in queues if i < len(queue)][:SHOWN_EXAMPLES]
    rows = np.flatnonzero(np.isin(example, shown))
    order = np.lexsort((store.rows["token_index"].to_numpy()[rows], example[rows]))
    return rows[order]


def token_table(store: ActivationStore, rows: Any) -> pd.DataFrame:
    """Example, position and text of the tokens in some rows."""
    import pandas as pd

    tokens = store.rows.iloc[rows]
    return pd.DataFrame(
        {
            "example_id": store.example_ids[tokens["example"].to_numpy()],
            "token_index": tokens["token_index"].to_numpy(),
            "token": tokens["token"].to_numpy(),
            "special": tokens["special"].to_numpy(),
        }
    )
