"""Trials of whole runs: killed, interrupted, damaged, short of disk, and several at once. A trial returns what went wrong."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from children import ERRNOS, ROOT, Child, Ended, run_child
from damage import any_file, artifacts, damage
from running import LIGHT, assert_equal_tables, write_study

from layerprobe.runs import Run

SAE = ("sae.layers=[2]", "sae.rows=400", "sae.controls=[]", "sae.crosscoder=false")
SMALL = (*LIGHT[1:], *SAE, "adaptation.methods=['full']")
"""A study of training, capture, a comparison and one dictionary."""
LEAST = (*LIGHT, "adaptation.methods=['full']")
"""The same without the dictionary, for short forms."""
WHOLE = (
    "adaptation.methods=['head', 'top:1', 'shuffled-labels']",
    "seeds=[0, 1]",
    "adaptation.checkpoints=2",
    "sae.layers=[2]",
    "sae.census_nulls=1",
)
"""A study with every stage but the few-shot ones."""


@dataclass
class Site:
    """A study, its finished home and run folder, and the time that it takes; `overrides` are those of the command."""

    folder: Path
    study: Path
    overrides: tuple[str, ...]

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def seconds(self) -> float:
        return json.loads((self.folder / "seconds.json").read_text())

    @cached_property
    def reference(self) -> Run:
        return Run.load(self.out)

    def words(self, out: Path) -> list[str]:
        changes = [word for override in self.overrides for word in ("--set", override)]
        return ["run", str(self.study), "--out", str(out), "--threads", "1", *changes]

    def run(self, folder: Path, **options) -> Ended:
        """Run the study into `folder/out` with the store `folder/home`."""
        return run_child(self.words(folder / "out"), folder / "log", folder / "home", **options)

    def build(self) -> "Site":
        """Compute the reference, unless it is there."""
        if not (self.folder / "seconds.json").exists():
            shutil.rmtree(self.folder / "home", ignore_errors=True)
            child = Child(self.words(self.out), self.folder / "log", self.home, page=True)
            child.wait_for_start()  # without the imports of the fork server
            start = time.monotonic()
            ended = child.end()
            assert ended.code == 0, ended.err
            (self.folder / "seconds.json").write_text(json.dumps(time.monotonic() - start))
        return self

    def copied(self, to: Path) -> Path:
        """A copy of home and run folder, for damage."""
        shutil.rmtree(to, ignore_errors=True)
        for name in ("home", "out"):
            shutil.copytree(self.folder / name, to / name)
        return to

    def complete(self, folder: Path, problem_at: str) -> list[str]:
        """Run to the end in `folder`: exit code 0, the reference's tables, and no stray file."""
        ended = self.run(folder)
        problems = [f"{problem_at}: {one}" for one in ended.problems(0)]
        return problems or [f"{problem_at}: {one}" for one in self.differences(folder)]

    def differences(self, folder: Path) -> list[str]:
        """What differs from the reference: tables, and files that no finished run leaves."""
        try:
            assert_equal_tables(self.reference, Run.load(folder / "out"))
        except AssertionError as error:
            return [f"wrong numbers in {error}"]
        strays = [path for path in (folder / "out").rglob("*") if "partial" in path.name]
        strays += [
            path for path in (folder / "home").glob("*/*/**/*") if "partial" in path.name and "facts" not in str(path)
        ]
        for stage, folders in artifacts(self.home).items():
            for one in folders:
                here = folder / "home" / stage / one.name
                if here.is_dir() and names(here) != names(one):
                    strays.append(here)
        return [f"stray files: {strays[:5]}"] if strays else []


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def make_sites(folder: Path) -> dict[str, Site]:
    """The studies of the campaign, not computed yet."""
    from tiny import make_encoder, write_csv

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tiny.toml").exists():
        model = make_encoder(folder / "model")
        write_study(folder, model, write_csv(folder / "texts.csv", n=160))
    path = folder / "tiny.toml"
    (folder / "few").mkdir(exist_ok=True)
    return {
        "least": Site(folder / "least", path, LEAST),
        "small": Site(folder / "small", path, SMALL),
        "whole": Site(folder / "whole", path, WHOLE),
        "few": Site(folder / "few", few_shot(folder), ()),
    }


def few_shot(folder: Path) -> Path:
    """A few-shot study of the same encoder."""
    from test_few_shot_stages import FEW, write_groups

    path = folder / "few.toml"
    if not path.exists():
        source = write_groups(folder / "groups.csv")
        values = "\n".join(f"{key} = {json.dumps(value)}" for key, value in FEW.items())
        model = json.dumps(str(folder / "model"))
        path.write_text(
            f"[model]\nname = {model}\n[data]\nsource = {json.dumps(str(source))}\ngroup = 'group'\nmax_length = 16\n"
            f"[few_shot]\n{values}\n"
        )
    return path


# Trials ----------------------------------------------------------------------------------------------------------------

CODES = {signal.SIGKILL: (0, -9), signal.SIGINT: (0, 130), signal.SIGTERM: (0, 130, -15)}
"""Exit codes of a run that gets a signal; SIGTERM ends a process as usual that has not begun to listen to it."""


KILLS = 2
"""Signals per trial of `killed`."""
DAMAGES = 2
"""Damaged files per trial of `damaged`."""


def killed(site: Site, folder: Path, rng: random.Random) -> list[str]:
    """A run is killed or interrupted at random moments, again when it is resumed, and then ends as if nothing had happened."""
    shutil.rmtree(folder, ignore_errors=True)
    what = ""
    for _ in range(KILLS):
        number = rng.choice((signal.SIGKILL, signal.SIGINT, signal.SIGTERM))
        child = Child(site.words(folder / "out"), folder / "log", folder / "home", checkpoints=0)
        child.wait_for_start()
        time.sleep(rng.random() * site.seconds)
        child.send(number)
        ended = child.end()
        what += f" {number.name}"
        if problems := ended.problems(*CODES[number]):
            return [f"killed by{what}: {one}" for one in problems]
        if ended.code == 130 and what.count("SIG") == 1:  # later, the record may be that of the run before
            status = (
                json.loads((folder / "out" / "run.json").read_text())["status"]
                if (folder / "out" / "run.json").exists()
                else None
            )
            if status == "complete":  # interrupted after its end
                if problems := site.differences(folder):
                    return [f"killed by{what}, complete: {one}" for one in problems]
            elif status not in ("interrupted", None):
                return [f"killed by{what}: the record says {status}"]
    return site.complete(folder, f"killed by{what}")


def killed_fresh(site: Site, folder: Path, rng: random.Random) -> list[str]:
    """The same with a fresh process, from the moment at which it has begun to import the command."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    number = rng.choice((signal.SIGKILL, signal.SIGINT, signal.SIGTERM))
    variables = {**os.environ, "LAYERPROBE_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "layerprobe", *site.words(folder / "out")],
        env=variables,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and maps.parent.exists() and "pydantic_core" not in maps.read_text():
        time.sleep(0.002)
    time.sleep(rng.random() ** 2 * (site.seconds + 12))
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    ended = Ended(process.returncode, "", err)
    if problems := ended.problems(*CODES[number]):
        return [f"fresh process, {number.name}: {one}" for one in problems]
    return site.complete(folder, f"fresh process, {number.name}")


def damaged(site: Site, folder: Path, rng: random.Random) -> list[str]:
    """Files or folders below home are damaged, and some artifacts are gone: the numbers are right, or the file is named."""
    site.copied(folder)
    home = folder / "home"
    found = artifacts(home)
    targets: list[Path] = []
    what = []
    while len(targets) < DAMAGES:
        target = _below_home(home, found, rng)
        if target is None or any(target.is_relative_to(one) or one.is_relative_to(target) for one in targets):
            continue
        what.append(damage(target, rng))
        targets.append(target)
    gone = rng.sample(sorted(found), min(len(found), rng.choice((0, 0, 1, 3))))
    for other in gone:
        for one in found[other]:
            if one.exists() and one.is_dir() and not any(target.is_relative_to(one) for target in targets):
                shutil.rmtree(one)
    if rng.random() < 0.2:
        shutil.rmtree(folder / "out")
    return survived(site, folder, " and ".join(what), targets)


def _below_home(home: Path, found: dict[str, list[Path]], rng: random.Random) -> Path | None:
    """A file of an artifact, an artifact, a stage's folder, or a file of the store itself; None if damage has removed it."""
    artifact = rng.choice(found[rng.choice(sorted(found))])
    place = rng.random()
    if place < 0.75:
        return any_file(artifact, rng) if artifact.is_dir() else None
    if place < 0.85:
        target = rng.choice([artifact, artifact.parent])
    elif rng.random() < 0.3 and (home / "facts").is_dir():
        target = any_file(home / "facts", rng)
    else:
        target = rng.choice([*sorted(path for path in home.rglob(".*") if path.is_file()), home / "durations.json"])
    return target if target.exists() else None


def survived(site: Site, folder: Path, what: str, targets: list[Path]) -> list[str]:
    """After damage, a run has the right numbers; or it names a damaged path, and has them once what it names is removed."""
    left = list(targets)
    while True:
        ended = site.run(folder)
        if problems := ended.problems(0, 2):
            return [f"{what}: {one}" for one in problems]
        if ended.code == 0:
            return [f"{what}: {one}" for one in site.differences(folder)]
        named = [target for target in left if _is_named(target, ended.err, folder)]
        if not named:
            return [f"{what}: the sentence names none of it that is left: {ended.err[-600:]}"]
        for target in named:
            left.remove(target)
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)


def _is_named(target: Path, text: str, folder: Path) -> bool:
    """Whether a text names a path, or a folder around it that is neither the whole store nor above the run folder."""
    places = [one for one in (target, *target.parents) if one.is_relative_to(folder)]
    return any(str(one) in text for one in places if one not in (folder, folder / "home"))


def damaged_resume(site: Site, folder: Path, rng: random.Random) -> list[str]:
    """The state of an interrupted training is damaged: training starts again, and ends with the same numbers."""
    shutil.rmtree(folder, ignore_errors=True)
    states: list[Path] = []
    for _ in range(20):
        child = Child(site.words(folder / "out"), folder / "log", folder / "home", checkpoints=0)
        child.wait_for_start()
        while not states and child.process.is_alive():
            with contextlib.suppress(FileNotFoundError):  # folders come and go
                states = list((folder / "home").glob("*/.*.partial/**/*training.safetensors*"))
            time.sleep(0.005)
        child.send(signal.SIGKILL)
        child.end()
        states = sorted(
            path for path in (folder / "home").glob("*/.*.partial/**/*training.safetensors*") if path.is_file()
        )
        if states:
            break
        shutil.rmtree(folder / "home", ignore_errors=True)
    if not states:
        return ["no state of a training was left"]
    target = rng.choice(states)
    return survived(site, folder, damage(target, rng), [target])


def damaged_run(site: Site, folder: Path, rng: random.Random) -> list[str]:
    """A file of a run folder is damaged: report shows the right page or names the file, and the run can be repeated."""
    site.copied(folder)
    out = folder / "out"
    page = (out / "index.html").read_bytes()
    target = rng.choice([any_file(out, rng), out / "run.json", any_file(out / "tables", rng), out / "tables"])
    what = damage(target, rng)
    ended = run_child(["report", str(out)], folder / "log", folder / "home", page=True)
    if problems := ended.problems(0, 2):
        return [f"report after {what}: {one}" for one in problems]
    if ended.code == 2 and not any(str(one) in ended.err for one in (target, target.parent)):
        return [f"report after {what}: the sentence does not name it: {ended.err[-600:]}"]
    if ended.code == 0 and (out / "index.html").read_bytes() != page:
        return [f"report after {what}: another page"]
    if rng.random() < 0.3:
        other = run_child(
            ["compare", str(out), str(site.out), "--out", str(folder / "both")], folder / "log", folder / "home"
        )
        if problems := other.problems(0, 2):
            return [f"compare after {what}: {one}" for one in problems]
    return survived(site, folder, what, [target])


def failing_disk(site: Site, folder: Path, rng: random.Random) -> list[str]:
    """From some write on, every write fails: one sentence, and afterwards the same command has the right numbers."""
    shutil.rmtree(folder, ignore_errors=True)
    name = rng.choice(sorted(ERRNOS))
    after = int(rng.random() ** 2 * 150)
    ended = site.run(folder, fail=(ERRNOS[name], after))
    what = f"{name} after {after} writes"
    if problems := ended.problems(0, 2):
        return [f"{what}: {one}" for one in problems]
    return site.complete(folder, what)


def at_once(site: Site, folder: Path, rng: random.Random, counts: tuple[int, ...] = (2, 4, 8)) -> list[str]:
    """Two, four or eight runs on one home, of which one may be killed, have the right numbers."""
    shutil.rmtree(folder, ignore_errors=True)
    count = rng.choice(counts)
    children = [
        Child(site.words(folder / str(number) / "out"), folder / str(number) / "log", folder / "home")
        for number in range(count)
    ]
    if is_killed := rng.random() < 0.5:
        children[0].wait_for_start()
        time.sleep(rng.random() * site.seconds)
        children[0].send(signal.SIGKILL)
    problems = []
    for number, child in enumerate(children):
        ended = child.end()
        problems += ended.problems(0, *((-signal.SIGKILL,) if is_killed and number == 0 else ()))
        if ended.code == 0:
            try:
                assert_equal_tables(site.reference, Run.load(folder / str(number) / "out"))
            except AssertionError as error:
                problems.append(f"wrong numbers in {error}")
    return [f"{count} at once: {one}" for one in problems]


def removed_home(site: Site, folder: Path, rng: random.Random) -> list[str]:
    """The store is deleted while a run uses it: the right numbers or a sentence, and afterwards the right numbers."""
    shutil.rmtree(folder, ignore_errors=True)
    child = Child(site.words(folder / "out"), folder / "log", folder / "home")
    child.wait_for_start()
    time.sleep(rng.random() * site.seconds)
    shutil.rmtree(folder / "home", ignore_errors=True)
    ended = child.end()
    if problems := ended.problems(0, 2):
        return [f"home removed: {one}" for one in problems]
    return site.complete(folder, "home removed")
