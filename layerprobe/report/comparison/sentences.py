"""Which methods of the runs are compared, and which settings differ."""

from __future__ import annotations

from layerprobe.report.comparison.tables import Comparison


def match_notes(comparison: Comparison) -> list[str]:
    """Which methods are compared: those of one name, then pairs of other names."""
    common = [match.name for match in comparison.matches if match.same_name]
    notes = [f"Methods that all runs have: {', '.join(common) or 'none'}."]
    for match in comparison.matches:
        if not match.same_name:
            pairs = zip(comparison.runs, match.methods, strict=True)
            listed = "; ".join(f"{run.label}: {method}" for run, method in pairs)
            notes.append(f"Compared as {match.name}: {listed}.")
    return notes


def setting_notes(comparison: Comparison) -> list[str]:
    """A sentence per setting that differs between the runs and matters for comparing them."""
    records = [run.record for run in comparison.runs]
    studies = [record.study.resolved for record in records]
    adaptation = [study.get("adaptation", {}) for study in studies]
    settings: dict[str, list[object]] = {
        "margins": [record.sufficiency and record.sufficiency.margin for record in records],
        "heads (adaptation.pooling)": [study.get("pooling") for study in adaptation],
        "epochs": [study.get("epochs") for study in adaptation],
        "numbers of training examples": [record.data and record.data.n_train for record in records],
        "seeds": [", ".join(map(str, study.get("seeds", ()))) or None for study in studies],
        "machines, so that seconds, memory and energy are not comparable": [
            f"{record.provenance.platform}, {record.provenance.device}" for record in records
        ],
    }
    notes = []
    for name, values in settings.items():
        if len(set(values)) > 1:
            pairs = zip(comparison.labels, values, strict=True)
            listed = "; ".join(f"{label}: {'not recorded' if value is None else value}" for label, value in pairs)
            notes.append(f"The runs differ in their {name} ({listed}).")
    return notes
