"""Tables of a study of every depth, made up with known truths: the deeper, the better, the dearer, the more changed."""

import re

import numpy as np
import pandas as pd

from layerprobe import sufficiency
from layerprobe.record import MeasureRecord, MethodRecord, RunRecord

METHODS = ("head", "top:1", "top:2", "top:3", "top:4", "top:5", "top:6", "full")
RIGHT = {"head": 0.668, "top:1": 0.705, "top:2": 0.728, "top:3": 0.737, "top:4": 0.742, "top:5": 0.744, "top:6": 0.746}
RIGHT |= {"full": 0.747, "lora:8": 0.741}
LABELS = ("negative", "neutral", "positive")

REFERENCES = ("reference:majority", "reference:logistic-mean", "reference:logistic-cls")
PROVENANCE = {
    "python": "3.11",
    "platform": "x",
    "packages": {"torch": "2"},
    "device": "cpu",
    "precision": "fp32",
    "started": "now",
    "finished": "then",
    "seconds": 1.0,
}


def method_record(name, n_layers):
    """What the pipeline records of a method."""
    kind, _, number = name.partition(":")
    depth = {"head": 0, "full": n_layers}.get(kind)
    return MethodRecord(
        name=name,
        depth=int(number) if kind == "top" else depth,
        trains_embeddings=kind in ("full", "lp-ft", "shuffled-labels"),
        is_control=kind == "shuffled-labels",
        changes_body=kind != "head",
        uses_seed=kind != "checkpoint",
    )


def measure_record(name):
    """What the pipeline records of a measure."""
    return MeasureRecord(
        name=name,
        label=f"label of {name}",
        kind="distance" if name in ("cka_angle", "procrustes_angle", "shape_distance") else "similarity",
        low=0.0,
        high=1.0,
        symmetric=True,
        exact=name != "linear_predictivity",
        baseline_of="paired_cosine" if name == "paired_cosine_baseline" else None,
        citation="planted",
    )


def tokens_of(texts):
    """The table `tokens` of texts by example id: a token for each word, between [CLS] and [SEP]."""
    rows = []
    for key, text in texts.items():
        words = [(match.group(), match.start(), match.end()) for match in re.finditer(r"\S+", text)]
        for index, (token, start, end) in enumerate([("[CLS]", None, None), *words, ("[SEP]", None, None)]):
            rows.append({"example_id": key, "token_index": index, "token": token, "start": start, "end": end})
    table = pd.DataFrame(rows).astype({"start": "Int32", "end": "Int32"})
    return table.assign(special=table.start.isna())


def with_method_columns(table, n_layers=6):
    """A table with the columns that the pipeline adds next to `method`."""
    if "method" not in table or "is_control" in table:
        return table
    methods = {name: method_record(name, n_layers) for name in table.method.unique()}
    depths = {name: None if name in REFERENCES else one.depth for name, one in methods.items()}
    return table.assign(
        depth=pd.array([depths[name] for name in table.method], dtype="Int64"),
        is_control=[methods[name].is_control for name in table.method],
        is_reference=table.method.isin(REFERENCES),
    )


def complete(tables, record):
    """Tables and a record as the pipeline leaves them: columns of methods, and what the record says of these tables."""
    n_layers = record.encoder.n_layers
    tables = {name: with_method_columns(table, n_layers) for name, table in tables.items()}
    names = dict.fromkeys(name for table in tables.values() if "method" in table for name in table.method)
    methods = [method_record(name, n_layers) for name in names if name not in REFERENCES]
    columns = [table["measure"] for name, table in tables.items() if name in ("similarity", "similarity_grid")]
    measures = [measure_record(name) for name in dict.fromkeys(name for column in columns for name in column)]
    return tables, record.model_copy(update={"methods": methods, "measures": measures})


def record(**more):
    """The record of a complete run; keyword arguments replace its fields."""
    fields = {
        "status": "complete",
        "name": "planted",
        "question": "What changed?",
        "study": {"given": None, "resolved": {"name": "planted"}},
        "command": "layerprobe run x.toml",
        "provenance": PROVENANCE,
        "data": {
            "name": "texts.csv",
            "label_names": ["a", "b"],
            "n_train": 10,
            "n_test": 50,
            "n_unseen": 0,
            "notes": [],
            "fingerprint": "f",
        },
        "encoder": {
            "name": "tiny",
            "family": "bert",
            "n_layers": 6,
            "width": 8,
            "fingerprint": "e",
            "pooler": "none",
        },
    }
    return RunRecord.model_validate(fields | more)


def reach(value, n):
    half = 1.96 * np.sqrt(value * (1 - value) / n)
    return value - half, value + half


def answers(methods, seeds, n, split="test", shift=0.0, seed=0):
    """Predictions in which methods share most of their mistakes, as neighbouring depths do."""
    rng = np.random.default_rng(seed)
    hard = rng.uniform(size=n)
    label = rng.choice(LABELS, n)
    frames = []
    for method in methods:
        for number in seeds:
            wobble = rng.normal(0, 0.05, n)
            right = hard + wobble < RIGHT[method] - shift + rng.normal(0, 0.001)
            wrong = np.array([LABELS[(LABELS.index(word) + 1) % 3] for word in label])
            frames.append(
                pd.DataFrame(
                    {
                        "method": method,
                        "seed": number,
                        "split": split,
                        "example_id": [f"{split}-{i}" for i in range(n)],
                        "label": label,
                        "predicted": np.where(right, label, wrong),
                        "probability": 0.8,
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


def costs(method, n_layers):
    depth = {"head": 0, "full": n_layers + 1, "lora:8": n_layers}.get(method) or int((method + ":0").split(":")[1])
    depth = n_layers if method == "lora:8" else depth
    share = depth / (n_layers + 1)
    parameters = {"head": 1_155, "lora:8": 148_611}.get(method, 1_155 + 1_774_464 * min(depth, n_layers))
    return {
        "trainable_parameters": parameters + (11_920_512 if method == "full" else 0),
        "total_parameters": 22_713_216,
        "seconds": 4.2 + 55 * share,
        "flops": 3.1e12 + 4.1e13 * share,
        "peak_bytes": 2.1e8 + 6e8 * share,
        "memory_kind": "sampled",
        "bytes_stored": 4.0 * parameters,
        "energy_wh": 0.02 + 0.4 * share,
        "energy_kind": "estimated",
        "energy_note": "CPU time x nominal power",
        "learning_rate": 5e-5,
        "concurrent_tasks": 1,
    }


def quality_rows(predictions, n_layers):
    rows = []
    for (method, seed, split), part in predictions.groupby(["method", "seed", "split"], sort=False):
        value = float((part.label == part.predicted).mean())
        low, high = reach(value, len(part))
        scored = {"macro_f1": value - 0.02, "loss": 1.4 - value, "brier": 0.9 - 0.7 * value, "calibration_error": 0.03}
        named = {"method": method, "seed": seed, "when": "after", "split": split}
        rows.append(
            {**named, "accuracy": value, "accuracy_low": low, "accuracy_high": high, **scored, "n": len(part)}
            | (costs(method, n_layers) if split == "test" else {})
        )
    return rows


def depth_study(methods=METHODS, seeds=(0, 1, 2), n=4000, n_layers=6, margin=0.01, ood=True, seed=0):
    """Tables by name, and what a run's record keeps of the conclusion."""
    predictions = answers(methods, seeds, n, seed=seed)
    everything = [predictions]
    if ood:
        everything.append(answers(methods, seeds, 500, split="reviews", shift=0.08, seed=seed + 1))
    rows = quality_rows(pd.concat(everything), n_layers)
    for name, value in (("logistic-mean", 0.701), ("logistic-cls", 0.662), ("majority", 0.507)):
        low, high = reach(value, n)
        rows.append(
            {"method": f"reference:{name}", "seed": seeds[0], "when": "after", "split": "test", "accuracy": value}
            | {"accuracy_low": low, "accuracy_high": high, "macro_f1": value - 0.05, "loss": 0.8, "brier": 0.5}
            | {"calibration_error": 0.05, "n": n}
        )
    tables = {"adaptation": pd.DataFrame(rows), "predictions": pd.concat(everything, ignore_index=True)}
    tables |= inside(methods, seeds, n_layers)
    results = predictions.assign(correct=predictions.label == predictions.predicted)
    reference = "full" if "full" in methods else methods[-1]
    others = [method for method in methods if method != reference]
    if not others:
        return tables, None
    depths = {name: int(name.removeprefix("top:")) for name in others if name.startswith("top:")}
    depths |= {"head": 0} if "head" in others else {}
    found = sufficiency.smallest_sufficient_depth(results, depths, reference=reference, margin=margin)
    tables["differences"] = sufficiency.differences(results, reference=reference)
    tables["seed_differences"] = sufficiency.seed_differences(results, reference=reference)
    tables["sufficiency"] = found.table.assign(reference=reference, margin=margin)
    test = tables["adaptation"].query("split == 'test' and not method.str.startswith('reference')")
    bought = test.groupby("method", sort=False)[["accuracy", "flops", "seconds", "trainable_parameters"]].mean()
    drift = tables["similarity"].query("measure == 'cka'").groupby("method").value.mean()
    tables["pareto"] = sufficiency.pareto(
        bought.assign(drift=1 - drift).reset_index(), costs=("flops", "seconds", "trainable_parameters", "drift")
    )
    plain = ("reference", "margin", "alpha", "smallest", "undecided", "needed", "sentence", "n", "seeds")
    plain += ("conditional_on_seeds", "critical_value", "df", "order")
    kept = {key: getattr(found, key) for key in plain}
    return tables, kept | {"left_out": {}}


def changed(method, layer, n_layers):
    """How much of a layer's change there is, 0 to 1, under a method."""
    depth = {"head": 0, "full": n_layers + 1, "lora:8": n_layers}.get(method)
    depth = int(method.split(":")[1]) if depth is None else depth
    return max(0.0, layer - (n_layers - depth)) / (n_layers + 1)


def inside(methods, seeds, n_layers):
    rng = np.random.default_rng(5)
    similarity, probes, blocks, weights = [], [], [], []
    for method in methods:
        for seed in seeds:
            named = {"method": method, "seed": seed}
            for layer in range(n_layers + 1):
                moved = changed(method, layer, n_layers)
                value = 1 - 0.75 * moved**1.5 + (rng.normal(0, 0.004) if moved else 0)
                wide = 0.01 * moved
                for measure, shown in (("cka", value), ("paired_cosine", 0.3 + 0.7 * value)):
                    similarity.append(
                        {**named, "unit": "token", "rows": "all", "measure": measure, "layer": layer}
                        | {"value": shown, "ci_low": shown - wide, "ci_high": min(1, shown + wide), "n": 500}
                    )
                base = 0.55 + 0.022 * layer
                for side, read in (("base", base), ("adapted", base + 0.08 * moved)):
                    probes.append(
                        {**named, "side": side, "layer": layer, "accuracy": read, "accuracy_low": read - 0.01}
                        | {"accuracy_high": read + 0.01, "control_accuracy": 0.36, "control_train_accuracy": 0.5}
                        | {"balanced_accuracy": read - 0.05, "balanced_accuracy_low": read - 0.07}
                        | {"balanced_accuracy_high": read - 0.03, "auroc": read + 0.1, "auroc_low": read + 0.08}
                        | {"auroc_high": read + 0.12}
                        | {"train_accuracy": read + 0.05, "selectivity": read - 0.36}
                        | {"selectivity_low": read - 0.38, "selectivity_high": read - 0.34, "n": 4000}
                    )
            blocks += [{**named, **row} for row in cases(method, n_layers, rng)]
            weights += [{**named, **row} for row in matrices(method, n_layers, rng)]
    return {
        "similarity": pd.DataFrame(similarity),
        "probes": pd.DataFrame(probes),
        "interventions": pd.DataFrame(blocks),
        "weights": pd.DataFrame(weights),
    }


def cases(method, n_layers, rng):
    best = RIGHT[method]
    kinds = [("untouched", n_layers, 0.0)]
    kinds += [("weights", i, -0.12 * changed(method, i, n_layers) ** 2) for i in range(n_layers + 1)]
    kinds += [("skipped", i, -0.05 * (n_layers - i) ** 0.8) for i in range(n_layers)]
    kinds += [("stitched", i, -0.25 * changed(method, i, n_layers) ** 2) for i in range(n_layers + 1)]
    for kind, layer, gap in kinds:
        gap = gap + (rng.normal(0, 0.003) if gap else 0)
        value = best + gap
        yield {
            "kind": kind,
            "layer": layer,
            "accuracy": value,
            "accuracy_low": value - 0.035,
            "accuracy_high": value + 0.035,
            "loss": 1.4 - value,
            "difference": gap,
            "difference_low": gap - 0.01,
            "difference_high": gap + 0.01,
            "n": 500,
        }


def matrices(method, n_layers, rng):
    roles = ("query", "key", "value", "attention_output", "feed_forward_in", "feed_forward_out")
    places = [(0, "embeddings", name) for name in ("word", "position", "type")]
    places += [(layer, role, role) for layer in range(1, n_layers + 1) for role in roles]
    for layer, role, name in places:
        moved = changed(method, layer, n_layers)
        yield {
            "parameter": f"layer.{layer}.{name}",
            "layer": layer,
            "role": role,
            "shared_by": 1,
            "relative_change": 0.02 * moved * rng.uniform(0.7, 1.3),
            "stable_rank_base": 30.0,
            "stable_rank_adapted": 30.0,
            "stable_rank_change": rng.uniform(3, 12) if moved else np.nan,
            "intruder_dimensions": int(moved > 0.8 and rng.uniform() < 0.2),
            "k": 10,
        }
