"""A campaign of faults: kills, damage, fuzzed and hostile inputs, without end or until its targets are reached.

`python tests/campaign.py --budget-minutes 60` resumes where an earlier call stopped, as long as the source is the same. Each of
`--parts` processes, one per core by default, has its share of the trials; the numbers of trials, the failures and the seed are
kept in `.campaign/<part>of<parts>/state.json`, and their sum is written to `docs/reliability.md`.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".campaign"
PAGE = ROOT / "docs" / "reliability.md"
SEED = 20261129
EXAMPLES = 25
"""Fuzzed inputs per trial."""
STRINGS = 10
"""Hostile strings per trial."""


@dataclass(frozen=True)
class Kind:
    """One kind of trial."""

    name: str
    group: str
    """Row of the table in the docs."""
    target: int
    """Trials, counted as `each`."""
    run: Callable[[Path, random.Random, int], list[str]]
    each: int = 1
    """What one trial counts for."""


@dataclass
class State:
    """What was tried of which source."""

    source: str
    seed: int = SEED
    tried: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def load(cls, path: Path, source: str) -> "State":
        """The state of an earlier call for the same source, else a new one."""
        if path.exists():
            known = cls(**json.loads(path.read_text()))
            if known.source == source:
                return known
        return cls(source)

    def save(self, path: Path) -> None:
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(vars(self), indent=1))
        temporary.replace(path)


def source() -> str:
    """Commit, and digest of the package's files, which differ while changes are not committed."""
    from layerprobe.provenance import source_digest

    commit = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    return f"{commit or 'no commit'} (source {source_digest()[:12]})"


def kinds(folder: Path) -> list[Kind]:
    """All kinds of trials; their studies are computed when first needed."""
    import trials_of_inputs
    import trials_of_runs as trials

    sites = trials.make_sites(folder)

    def on(site: str, trial):
        return lambda place, rng, number: trial(sites[site].build(), place, rng)

    def fuzz(name: str):
        def run(place, rng, number):
            if name == "run.json":
                sites["least"].build()
            return trials_of_inputs.fuzz(name, folder, SEED + number, EXAMPLES)

        return run

    def hostile(place, rng, number):
        page, _ = trials_of_inputs.hostile_page(rng, STRINGS)
        place.mkdir(parents=True, exist_ok=True)
        (place / "page.html").write_text(page, encoding="utf-8")
        problems = trials_of_inputs.in_source(page)
        with chromium() as browser:
            return problems + ([] if browser is None else trials_of_inputs.in_browser(browser, place / "page.html"))

    def hostile_run(place, rng, number):
        path, problems = trials_of_inputs.hostile_run(place / "run", rng)
        with chromium() as browser:
            return problems + ([] if None in (browser, path) else trials_of_inputs.in_browser(browser, path))

    fuzzed = [Kind(f"fuzzed {name}", "fuzzed inputs", 225, fuzz(name), EXAMPLES) for name in trials_of_inputs.FUZZED]
    return [
        Kind("killed or interrupted", "kills and interrupts", 340, on("least", trials.killed), trials.KILLS),
        Kind(
            "killed or interrupted, with a dictionary",
            "kills and interrupts",
            100,
            on("small", trials.killed),
            trials.KILLS,
        ),
        Kind("few-shot run killed or interrupted", "kills and interrupts", 40, on("few", trials.killed), trials.KILLS),
        Kind("fresh process killed or interrupted", "kills and interrupts", 24, on("small", trials.killed_fresh)),
        Kind("damage below home", "faults", 480, on("whole", trials.damaged), trials.DAMAGES),
        Kind("damage below home, few-shot", "faults", 120, on("few", trials.damaged), trials.DAMAGES),
        Kind("damage to the state of a dictionary's training", "faults", 80, on("small", trials.damaged_resume)),
        Kind("damage to the state of meta-training", "faults", 40, on("few", trials.damaged_resume)),
        Kind("damage to a run folder", "faults", 200, on("whole", trials.damaged_run)),
        Kind("every write fails from some moment on", "faults", 80, on("least", trials.failing_disk)),
        Kind("home removed under a run", "faults", 20, on("least", trials.removed_home)),
        Kind("two, four or eight runs at once", "runs at once", 12, on("small", trials.at_once)),
        *fuzzed,
        Kind("page with hostile strings", "hostile strings", 100, hostile, STRINGS),
        Kind("run folder with hostile tables", "hostile strings", 30, hostile_run),
    ]


class chromium:  # noqa: N801
    """A headless Chromium; None where there is none."""

    def __enter__(self):
        names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
        path = os.environ.get("LAYERPROBE_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
        self.driver = None
        if path is None:
            return None
        from playwright.sync_api import sync_playwright

        self.driver = sync_playwright()
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        return self.driver.__enter__().chromium.launch(executable_path=path, args=options)

    def __exit__(self, *error):
        if self.driver is not None:
            self.driver.__exit__(*error)


def try_once(kind: Kind, folder: Path, number: int) -> list[str]:
    """One trial of a kind, by its number; an error of the trial itself is a failure, too."""
    place = folder / "trial" / kind.name.replace(" ", "-")
    rng = random.Random(f"{SEED} {kind.name} {number}")
    try:
        problems = kind.run(place, rng, number)
    except Exception:
        problems = [f"the trial ended with {traceback.format_exc()[-1500:]}"]
    if problems and place.exists():
        kept = place.with_name(f"{place.name}-{number}")
        shutil.rmtree(kept, ignore_errors=True)
        place.rename(kept)
    shutil.rmtree(place, ignore_errors=True)
    return [f"{kind.name}, number {number}: {one}" for one in problems]


def campaign(folder: Path, minutes: float, only: str = "", part: int = 0, parts: int = 1) -> State:
    """Try what is left to the targets, the kind that is furthest behind first, until the time is spent.

    One of several parts makes every `parts`-th trial of each kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, start = folder / "state.json", time.monotonic()
    state = State.load(path, source())
    if not state.tried and (folder / "small").exists():
        for name in ("least", "small", "whole", "few"):
            shutil.rmtree(folder / name, ignore_errors=True)
    every = [kind for kind in kinds(folder) if only in kind.name]
    before = state.seconds

    def share(kind: Kind) -> float:
        return state.tried.get(kind.name, 0) / (kind.target / parts)

    while time.monotonic() - start < 60 * minutes and share(kind := min(every, key=share)) < 1:
        tried = state.tried.get(kind.name, 0)
        problems = try_once(kind, folder, tried * parts + part * kind.each)
        state.tried[kind.name] = tried + kind.each
        if problems:
            state.failed[kind.name] = state.failed.get(kind.name, 0) + 1
            state.failures += problems
            print("\n".join(problems), flush=True)
        state.seconds = before + time.monotonic() - start
        state.save(path)
    return state


def in_parts(folder: Path, minutes: float, only: str, parts: int) -> State:
    """Run all parts side by side, and add up what they have tried."""
    folders = [folder / f"{part + 1}of{parts}" for part in range(parts)]
    command = [sys.executable, __file__, "--budget-minutes", str(minutes), "--only", only, "--parts", str(parts)]
    running = [
        subprocess.Popen([*command, "--part", str(part), "--folder", str(one)]) for part, one in enumerate(folders)
    ]
    try:
        for process in running:
            process.wait()
    finally:
        for process in running:
            process.terminate()
    total = State(source())
    for one in folders:
        state = State.load(one / "state.json", total.source)
        for name, count in state.tried.items():
            total.tried[name] = total.tried.get(name, 0) + count
        for name, count in state.failed.items():
            total.failed[name] = total.failed.get(name, 0) + count
        total.failures += state.failures
        total.seconds = max(total.seconds, state.seconds)
    return total


def table(state: State, every: list[Kind]) -> str:
    """The numbers of trials as a Markdown table."""
    lines = ["| kind of trial | planned | tried | survived |", "|---|---|---|---|"]
    for group in dict.fromkeys(kind.group for kind in every):
        inner = [kind for kind in every if kind.group == group]
        tried, failed = (sum(counts.get(kind.name, 0) for kind in inner) for counts in (state.tried, state.failed))
        planned = sum(kind.target for kind in inner)
        lines.append(f"| **{group}** | {planned:,} | {tried:,} | {tried - failed:,} |")
        for kind in inner:
            count = state.tried.get(kind.name, 0)
            survived = count - state.failed.get(kind.name, 0)
            lines.append(f"| {kind.name} | {kind.target:,} | {count:,} | {survived:,} |")
    about = f"Seed {state.seed}, commit {state.source}, {state.seconds / 60:.0f} minutes."
    return "\n".join([*lines, "", about])


START, END = "<!-- campaign -->", "<!-- end of campaign -->"


def write_page(state: State, every: list[Kind], path: Path = PAGE) -> None:
    """Put the table between the marks of the page."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{START}\n{table(state, every)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget-minutes", type=float, default=60.0)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where state, studies and failed trials are kept")
    parser.add_argument("--only", default="", help="kinds whose name contains this")
    parser.add_argument(
        "--parts", type=int, default=os.cpu_count() or 1, help="processes, each with its share of the trials"
    )
    parser.add_argument("--part", type=int, help="run this part alone, from 0, and leave docs/reliability.md as it is")
    words = parser.parse_args()
    folder = words.folder.resolve()
    if words.part is not None:
        campaign(folder, words.budget_minutes, words.only, words.part, words.parts)
        return
    state = in_parts(folder, words.budget_minutes, words.only, words.parts)
    every = kinds(folder)
    print(table(state, every))
    write_page(state, every)
    sys.exit(bool(state.failures))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
