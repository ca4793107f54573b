"""A card of the answer."""

from __future__ import annotations

from dataclasses import dataclass

from layerprobe.record import Finding
from layerprobe.report.decisions import Badge


@dataclass(frozen=True)
class Card:
    """One claim with one number, how far it is supported, and the full sentences behind it."""

    title: str
    claim: str
    number: str
    badge: Badge
    figure: str
    """Name of the figure, or id of the section, that shows the numbers."""
    details: tuple[Finding, ...] = ()
    """Full sentences, each with its intervals."""

    def __str__(self) -> str:
        title = self.title if self.title.endswith("?") else f"{self.title}:"
        return f"{title} {self.claim}; {self.number} [{self.badge}]"
