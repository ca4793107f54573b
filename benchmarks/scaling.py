"""Time and memory against texts, token rows, layers, latents, methods and jobs, with fitted exponents.

    python benchmarks/scaling.py                      # up to 1e5 texts and 1e7 rows: about an hour on two cores
    python benchmarks/scaling.py --quick              # small sizes: about two minutes
    python benchmarks/scaling.py --only rows sae-rows # some series; the others are kept from the last run
    python benchmarks/scaling.py --draw               # only tables and plot, from the last run

Run it while nothing else runs. Each point is measured in a process of its own; seconds and memory are those of the work,
without imports and the preparation of inputs. Rows are 384 wide and read from a memory-mapped file: 1e7 of them take 15.4
GB of disk below `--scratch`; with less room, 3e6 are measured and 1e7 is predicted from the fit. Models of the other series
are random and small. Results go to docs/figures/scaling.json and scaling.svg.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import _child
import _machine
from _fits import fit_line, fit_power
from _svg import Panel, draw

WIDTH, BATCH = 384, 16_384
FIGURES = Path(__file__).parent.parent / "docs" / "figures"
METHODS = ("full", "head", "top:1", "top:2", "lp-ft", "bitfit", "lora:4", "shuffled-labels")
SPARE = 4e9
"""Bytes of disk that stay free."""


# Inputs ---------------------------------------------------------------------------------------------------------------


def make_encoder(folder: Path, n_layers: int = 2, width: int = 32) -> str:
    """A random BERT of 60 words with its tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: number for number, token in enumerate([*special, *(f"w{i}" for i in range(60))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        intermediate_size=4 * width,
        max_position_embeddings=66,
        initializer_range=0.15,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


def make_texts(n: int) -> list[str]:
    """n different texts of 4 to 20 words."""
    rng = np.random.default_rng(0)
    return [
        " ".join(f"w{word}" for word in [*rng.integers(0, 60, rng.integers(0, 17)), *np.unravel_index(i, (60,) * 4)])
        for i in range(n)
    ]


def mixing() -> np.ndarray:
    """64 directions, of which rows are sums with normal weights, besides noise of standard deviation 0.3 and a mean of 0.1."""
    return np.random.default_rng(0).standard_normal((64, WIDTH)).astype(np.float32) / 8


def make_rows(path: Path, n: int) -> None:
    """A file of n rows, written batch by batch."""
    from numpy.lib.format import dtype_to_descr, write_array_header_1_0

    directions, rng = mixing(), np.random.default_rng(1)
    with path.open("wb") as file:
        description = {"descr": dtype_to_descr(np.dtype("f4")), "fortran_order": False, "shape": (n, WIDTH)}
        write_array_header_1_0(file, description)
        for start in range(0, n, BATCH):
            size = min(BATCH, n - start)
            rows = rng.standard_normal((size, 64), dtype=np.float32) @ directions
            rows += 0.3 * rng.standard_normal((size, WIDTH), dtype=np.float32) + np.float32(0.1)
            file.write(rows.data)


def adapted(rows: np.ndarray) -> np.ndarray:
    """The other side: a fixed linear map of the rows."""
    return rows + 0.5 * rows[:, ::-1]


def true_cka() -> float:
    """Linear CKA of a row and its `adapted` in the population, from their covariance."""
    covariance = mixing().T.astype(float) @ mixing() + 0.09 * np.eye(WIDTH)
    change = np.eye(WIDTH) + 0.5 * np.eye(WIDTH)[::-1]
    cross, other = covariance @ change, change @ covariance @ change
    return float((cross**2).sum() / np.linalg.norm(covariance) / np.linalg.norm(other))


# Points ---------------------------------------------------------------------------------------------------------------


def captured(n: int, scratch: Path, n_layers: int = 2) -> tuple[Any, Callable[[], Any]]:
    """n texts and a call that captures all their layers."""
    from layerprobe import load_encoder
    from layerprobe.activations import CaptureConfig, capture
    from layerprobe.data import Examples

    encoder = load_encoder(make_encoder(scratch / "model", n_layers))
    texts = tuple(make_texts(n))
    examples = Examples(tuple(map(str, range(n))), texts, None, np.zeros(n, dtype=np.int64))
    model = encoder.classifier(["a", "b"], seed=0)
    config = CaptureConfig(max_length=64)
    capture(model, encoder, examples.take(range(min(n, 64))), scratch / "warm", config)  # first calls load and allocate
    return encoder, lambda: capture(model, encoder, examples, scratch / "rows", config)


def texts_point(n: int, scratch: Path) -> None:
    _, work = captured(n, scratch)
    with _child.Watch() as watch:
        store = work()
    _child.report(**watch.measured, token_rows=store.n_rows)


def layers_point(n: int, scratch: Path) -> None:
    """Capture of 500 texts and the grid of all layers against all."""
    from layerprobe.similarity import grid

    _, work = captured(500, scratch, n)
    with _child.Watch() as watch:
        store = work()
        means = {layer: np.asarray(store.mean(layer)) for layer in store.layers}
        grid({"base": means, "adapted": {layer: adapted(rows) for layer, rows in means.items()}})
    _child.report(**watch.measured)


def rows_point(n: int, scratch: Path) -> None:
    """CKA with its interval, Procrustes similarity and mean CCA between two sides, 20 folds."""
    from layerprobe.files import release_pages
    from layerprobe.similarity import SimilarityAccumulator

    rows = np.load(scratch / "rows.npy", mmap_mode="r")
    with _child.Watch() as watch:
        accumulator = SimilarityAccumulator([("base", "adapted")], folds=20)
        for number, start in enumerate(range(0, n, BATCH)):
            part = np.asarray(rows[start : start + BATCH])
            accumulator.add({"base": part, "adapted": adapted(part)}, fold=number % 20)
            release_pages(rows)
        cka = accumulator.interval("cka", "base", "adapted")
        others = {name: accumulator.value(name, "base", "adapted") for name in ("procrustes", "mean_cca")}
    _child.report(**watch.measured, cka=cka.value, low=cka.low, high=cka.high, true_cka=true_cka(), **others)


def sae_rows_point(n: int, scratch: Path) -> None:
    """One TopK dictionary of 384 latents, one pass over the rows."""
    from layerprobe import sae

    rows = np.load(scratch / "rows.npy", mmap_mode="r")
    warm = sae.SaeConfig(expansion=1, samples=4096)
    sae.train(np.asarray(rows[:2048]), scratch / "warm", warm)
    with _child.Watch() as watch:
        sae.train(rows, scratch / "sae", sae.SaeConfig(expansion=1, samples=n))
    _child.report(**watch.measured, explained_variance=_last_variance(scratch / "sae"))


def latents_point(n: int, scratch: Path) -> None:
    """30 steps of a TopK dictionary with 32 active latents."""
    from layerprobe import sae

    make_rows(scratch / "rows.npy", 8192)
    rows = np.load(scratch / "rows.npy")
    config = sae.SaeConfig(expansion=n / WIDTH, k=32, samples=30 * 1024)
    sae.train(rows, scratch / "warm", sae.SaeConfig(expansion=n / WIDTH, k=32, samples=2048))
    with _child.Watch() as watch:
        sae.train(rows, scratch / "sae", config)
    _child.report(**watch.measured, explained_variance=_last_variance(scratch / "sae"))


def _last_variance(folder: Path) -> float:
    import pandas as pd

    return float(pd.read_parquet(folder / "history.parquet").explained_variance.iloc[-1])


STUDY = """
question = "What changed?"
seeds = {seeds}
[model]
name = "{model}"
[data]
source = "{source}"
train = 200
test = 100
max_length = 32
[adaptation]
methods = {methods}
learning_rate = 1e-3
[activations]
examples = 50
[similarity]
units = ["token"]
measures = ["cka"]
[sae]
layers = []
[internals]
parts = []
"""


def study_point(methods: list[str], jobs: int, scratch: Path, seeds: int = 1) -> None:
    """A whole run of a small study, with its page."""
    import csv

    from layerprobe import Study
    from layerprobe import run as run_study

    with (scratch / "texts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((f"{text} w{30 * (i % 2)}", "ab"[i % 2]) for i, text in enumerate(make_texts(600)))
    study = STUDY.format(
        model=make_encoder(scratch / "model"),
        source=scratch / "texts.csv",
        methods=json.dumps(methods),
        seeds=list(range(seeds)),
    )
    (scratch / "study.toml").write_text(study)
    with _child.Watch() as watch:
        run_study(
            Study.load(scratch / "study.toml"),
            out=scratch / "run",
            home=scratch / "home",
            jobs=jobs,
            threads=1,
            progress=False,
        )
    _child.report(**watch.measured)


def methods_point(n: int, scratch: Path) -> None:
    study_point(list(METHODS[:n]), 1, scratch)


def jobs_point(n: int, scratch: Path) -> None:
    study_point(["full", "top:1"], n, scratch, seeds=4)


# Series ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """One size that is varied."""

    title: str
    unit: str
    point: Callable[[int, Path], None]
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    flat: bool = False
    """Whether memory must not grow with the size."""
    shares_rows: bool = False
    """Whether the point reads the file of rows that the parent made."""


SERIES = {
    "texts": Series(
        "Capture of texts", "texts", texts_point, (1_000, 3_000, 10_000, 30_000, 100_000), (500, 2_000), flat=True
    ),
    "rows": Series(
        "Similarity of token rows",
        "rows",
        rows_point,
        (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000),
        (50_000, 200_000),
        flat=True,
        shares_rows=True,
    ),
    "sae-rows": Series(
        "One SAE on token rows",
        "rows",
        sae_rows_point,
        (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000),
        (20_000, 60_000),
        flat=True,
        shares_rows=True,
    ),
    "layers": Series("Capture and grid of layers", "layers", layers_point, (2, 4, 8, 16, 32), (2, 6)),
    "latents": Series("SAE training, 30 steps", "latents", latents_point, (192, 384, 768, 1536, 3072), (96, 384)),
    "methods": Series("A small study", "methods", methods_point, (1, 2, 4, 8), (1, 3)),
    "jobs": Series("A study of 8 runs", "jobs", jobs_point, (1, 2, 4), (1, 2)),
}


def with_room(sizes: list[int], scratch: Path) -> list[int]:
    """The sizes whose file of rows fits the disk; the largest that does not is replaced by 3e6 if that fits."""
    free = shutil.disk_usage(scratch).free - SPARE
    fitting = [n for n in sizes if n * WIDTH * 4 <= free]
    if len(fitting) < len(sizes):
        print(f"{free / 1e9:.0f} GB of disk are free below {scratch}: {max(sizes):,} rows are left out", flush=True)
    return fitting


def measure(name: str, sizes: list[int], scratch: Path) -> list[dict[str, Any]]:
    """Measure a series, each point in a child process."""
    series = SERIES[name]
    points = []
    for n in with_room(sizes, scratch) if series.shares_rows else sizes:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            if series.shares_rows:
                make_rows(Path(folder) / "rows.npy", n)
            point = {"size": n, **_child.run(__file__, ["--point", name, n, folder])}
        points.append(point)
        print(row(name, point), flush=True)
    return points


def row(name: str, point: dict[str, Any]) -> str:
    """A point as a line of the table."""
    known = {"size", "seconds", "cpu_seconds", "before_bytes", "peak_bytes"}
    others = "  ".join(f"{key} {value:.6g}" for key, value in point.items() if key not in known)
    before, peak = point["before_bytes"] / 1e6, point["peak_bytes"] / 1e6
    return (
        f"{name:9} {point['size']:>11,} {point['seconds']:10.2f} {point['cpu_seconds']:10.2f} {before:10.0f} {peak:10.0f}"
        f"   {others}"
    )


HEADER = f"{'series':9} {'size':>11} {'seconds':>10} {'CPU s':>10} {'MB before':>10} {'MB peak':>10}"


@dataclass(frozen=True)
class Summary:
    """Exponent and growth of a series."""

    exponent: str
    growth: str
    largest: str


def interval(value: float, low: float, high: float, form: str) -> str:
    """A value with its 95% interval, where there is one."""
    return f"{value:{form}}" + (f" [{low:{form}}, {high:{form}}]" if np.isfinite(low) else "")


def summary(name: str, points: list[dict[str, Any]]) -> Summary:
    """Fits of seconds and of peak memory on the size."""
    sizes = [point["size"] for point in points]
    power = fit_power(sizes, [point["seconds"] for point in points])
    # The peak beyond what the process held before: the texts themselves, the model and the libraries.
    grown = fit_line(sizes, [point["peak_bytes"] - point["before_bytes"] for point in points])
    largest = f"{max(sizes):,}"
    if SERIES[name].shares_rows and 1e6 <= max(sizes) < 1e7:
        largest += f" (1e7 by the fit: {10 ** power.at(7):,.0f} s)"
    return Summary(
        interval(power.slope, power.low, power.high, ".2f"),
        interval(grown.slope, grown.low, grown.high, ",.1f"),
        largest,
    )


def markdown(measured: dict[str, Any]) -> str:
    """Tables for docs/performance.md."""
    lines = [
        "| series | largest | exponent of time | bytes per unit | MB above the start, least to largest | seconds of the largest |",
        "|---|---|---|---|---|---|",
    ]
    for name, series in ((name, SERIES[name]) for name in SERIES if name in measured):
        points = measured[name]["points"]
        fits = summary(name, points)
        above = [(point["peak_bytes"] - point["before_bytes"]) / 1e6 for point in points]
        lines.append(
            f"| {series.title} | {fits.largest} {series.unit} | {fits.exponent} | {fits.growth} | {above[0]:.0f} to "
            f"{above[-1]:.0f} | {points[-1]['seconds']:.1f} |"
        )
    described = [
        {key: value for key, value in one["machine"].items() if key != "load before"} for one in measured.values()
    ]
    machines = {_machine.line(one) for one in described}
    return "\n".join([*lines, "", *(f"Machine: {machine}." for machine in sorted(machines))])


def panels(measured: dict[str, Any]) -> list[Panel]:
    """Seconds, and for series whose memory must be flat also memory."""
    found = []
    for name, series in ((name, SERIES[name]) for name in SERIES if name in measured):
        points = measured[name]["points"]
        sizes, seconds = [point["size"] for point in points], [point["seconds"] for point in points]
        power = fit_power(sizes, seconds)
        ends = 10 ** power.at(np.log10(min(sizes))), 10 ** power.at(np.log10(max(sizes)))
        note = f"seconds; exponent {interval(power.slope, power.low, power.high, '.2f')}"
        found.append(Panel(series.title, note, sizes, seconds, series.unit, ends))
        above = [(point["peak_bytes"] - point["before_bytes"]) / 1e6 for point in points]
        note = "peak MB above the start"
        if series.flat:
            note += f"; {summary(name, points).growth.partition(' ')[0]} B per {series.unit[:-1]}"
        found.append(Panel(series.title, note, sizes, above, series.unit, log_y=False))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is written unless --out is set")
    parser.add_argument("--only", nargs="+", choices=SERIES, default=list(SERIES))
    parser.add_argument("--sizes", type=int, nargs="+", help="instead of the sizes of the series")
    parser.add_argument("--out", type=Path, help="folder for scaling.json and scaling.svg (default: docs/figures)")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="folder on a disk with room")
    parser.add_argument("--markdown", action="store_true", help="also print the table as Markdown")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--point", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        name, size, folder = options.point
        SERIES[name].point(int(size), Path(folder))
        return
    out = options.out or (None if options.quick else FIGURES)
    record = out / "scaling.json" if out else None
    measured = json.loads(record.read_text()) if record and record.is_file() else {}
    if not options.draw:
        machine = _machine.describe()
        print(f"{_machine.line(machine)}\n{HEADER}", flush=True)
        for name in options.only:
            sizes = options.sizes or list(SERIES[name].quick if options.quick else SERIES[name].sizes)
            measured[name] = {"machine": machine, "points": measure(name, sizes, options.scratch)}
            save(measured, out)
    print(f"\n{'series':9} {'exponent of time':>24} {'bytes per unit above the start':>34}")
    for name, one in measured.items():
        fits = summary(name, one["points"])
        print(f"{name:9} {fits.exponent:>24} {fits.growth:>34}   up to {fits.largest}")
    save(measured, out)
    if options.markdown:
        print(f"\n{markdown(measured)}")


def save(measured: dict[str, Any], out: Path | None) -> None:
    """Write the measurements and their plot."""
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "scaling.json").write_text(json.dumps(measured, indent=1) + "\n")
    (out / "scaling.svg").write_text(draw(panels(measured), "Time and memory of layerprobe against size"))


if __name__ == "__main__":
    main()
