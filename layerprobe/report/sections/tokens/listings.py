"""What every latent of the page is active on: its top tokens and the examples with its highest activations, compactly."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from layerprobe.report.queries import having
from layerprobe.report.section import Tables
from layerprobe.report.sections.tokens.texts import Texts

MAX_LISTED = 12_000
"""Latents of which top tokens and examples are on the page, over all methods, seeds, layers and sides."""
Key = tuple[Any, ...]


class Listings:
    """Top tokens and examples of the latents of each group; those of one dictionary under several methods are kept once."""

    def __init__(
        self, tables: Tables, keys: list[str], groups: int, number: Callable[[Any], int], texts: Texts
    ) -> None:
        found = {name: having(tables, f"latent_{name}") for name in ("tokens", "peaks")}
        self._parts = {
            name: {} if table is None else dict(iter(table.groupby(keys, sort=False))) for name, table in found.items()
        }
        self._most = max(1, MAX_LISTED // max(1, groups))
        self._number, self._texts = number, texts
        self._known: dict[str, int] = {}
        self.content: list[dict[str, Any]] = []
        """By number: for each latent, its tokens (names and shares in percent, in turn) and its examples (of each the text,
        then indices of tokens and activations in thousandths of the latent's largest, in turn)."""

    def add(self, key: Key, latents: pd.DataFrame) -> int | None:
        """The number of a group's listing; None without any.

        Args:
            key: of the group.
            latents: its latents in the order in which they are kept, with `max_activation`.
        """
        if not any(key in parts for parts in self._parts.values()):
            return None
        kept = latents[: self._most]
        listing: dict[str, Any] = {str(latent): [[], []] for latent in kept.latent}
        self._add_tokens(listing, self._parts["tokens"].get(key))
        self._add_peaks(
            listing, self._parts["peaks"].get(key), dict(zip(kept.latent, kept.max_activation, strict=True))
        )
        place = self._known.setdefault(json.dumps(listing, sort_keys=True), len(self.content))
        if place == len(self.content):
            self.content.append(listing)
        return place

    def _add_tokens(self, listing: dict[str, Any], table: pd.DataFrame | None) -> None:
        if table is None:
            return
        rows = table.sort_values(["latent", "rank"], kind="stable")
        for latent, token, share in zip(rows.latent.tolist(), rows.token, rows.share.tolist(), strict=True):
            if str(latent) in listing:
                listing[str(latent)][0] += (self._number(token), round(100 * share))

    def _add_peaks(self, listing: dict[str, Any], table: pd.DataFrame | None, largest: Mapping[int, float]) -> None:
        if table is None:
            return
        rows = table.sort_values(["latent", "rank", "token_index"], kind="stable")
        columns = (rows[name].tolist() for name in ("latent", "rank", "example_id", "token_index", "activation"))
        last: tuple[int, int] | None = None
        peak: list[int] = []
        for latent, rank, example, index, activation in zip(*columns, strict=True):
            if str(latent) not in listing:
                continue
            if (latent, rank) != last:
                last, text = (latent, rank), self._texts.number(example)
                peak = [] if text is None else [text]
                if peak:
                    listing[str(latent)][1].append(peak)
            if peak:
                peak += (index, max(1, round(1000 * activation / largest[latent])))
