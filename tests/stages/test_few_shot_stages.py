"""Few-shot studies end to end on a tiny encoder: every table, exact equality under `head`, counts, and errors."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
from bench import Bench
from running import assert_equal_tables, no_page
from tiny import WORDS
from typer.testing import CliRunner

from layerprobe import Study, run
from layerprobe.cli import app
from layerprobe.stage import StudyShape
from layerprobe.stages.meta_convergence import STEPS, ConvergencePrefix, ConvergenceRates, MetaConvergence
from layerprobe.stages.meta_counts import MetaCounts, counts_in_theory
from layerprobe.stages.meta_dictionaries import MetaDictionaries
from layerprobe.stages.meta_evaluate import MetaCompare, MetaEvaluate
from layerprobe.stages.meta_model import MetaModel
from layerprobe.stages.meta_prefix import MetaPrefix
from layerprobe.stages.meta_rates import MetaRates
from layerprobe.stages.meta_similarity import FEW_SHOT_LAYERS, IDENTICAL, MetaBetween, MetaSimilarity
from layerprobe.stages.meta_theory import MetaTheory
from layerprobe.stages.meta_train import MetaTrain

FEW = {
    "ways": 2,
    "shots": 2,
    "queries": 3,
    "inner": ["head", "top:1"],
    "inner_steps": 2,
    "inner_rate": 0.2,
    "outer": "top:1",
    "outer_rate": 1e-3,
    "outer_steps": 3,
    "tasks_per_step": 2,
    "validate_every": 2,
    "validation_tasks": 2,
    "test_tasks": 8,
    "layer_tasks": 2,
    "probes": 60,
    "baselines": ["pretrained", "random", "multitask"],
}


def write_groups(path, groups=6, classes=2, texts=20, seed=0):
    """A set with columns text, label and group: every class has two words of its own."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "group"])
        for number in range(groups * classes):
            for _ in range(texts):
                words = [*rng.choice(WORDS[30:], size=6), *rng.choice(WORDS[2 * number : 2 * number + 2], size=3)]
                writer.writerow([" ".join(rng.permutation(words)), f"class {number}", f"group {number // classes}"])
    return path


@pytest.fixture(scope="module")
def content(tiny_bert, tmp_path_factory):
    source = write_groups(tmp_path_factory.mktemp("groups") / "groups.csv")
    return {
        "name": "few",
        "question": "Is the head enough?",
        "model": {"name": str(tiny_bert)},
        "data": {"source": str(source), "group": "group", "max_length": 16},
        "few_shot": FEW,
    }


@pytest.fixture(scope="module")
def bench(content, tmp_path_factory):
    return Bench(Study.parse(content), tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def result(content, tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    return run(Study.parse(content), out=folder / "out", home=folder / "home", threads=1, progress=False)


def layers_of(table, comparison, inner, part="layer", measure=None):
    rows = table[(table.comparison == comparison) & (table.inner == inner) & (table.part == part)]
    return rows if measure is None else rows[rows.measure == measure]


def test_every_table_is_written_and_described(result):
    names = ("theory", "rates", "training", "accuracy", "differences", "layers", "counts")
    for name in ("few_shot", *(f"few_shot_{name}" for name in names)):
        assert len(result.table(name)) and all(result.tables[name].columns.values()), name
    assert set(result.table("few_shot").method) == {"meta-trained", "pretrained", "random", "multitask"}
    html = (result.folder / "index.html").read_text(encoding="utf-8")
    assert 'id="few_shot"' in html and "No quality was measured" not in html


def test_head_leaves_every_layer_identical(bench):
    built = bench.build(MetaSimilarity("meta-trained", "head", 0, True))
    table = built.table("few_shot_layers")
    body = layers_of(table, "inner loop", "head")
    assert sorted(set(body.layer)) == [0, 1, 2] and set(body.note) == {IDENTICAL}
    assert (body[body.measure != "weight_change"].value == 1).all()
    assert (body[body.measure == "weight_change"].value == 0).all()
    head = layers_of(table, "inner loop", "head", "head")
    assert set(head.measure) == {"cka", "svcca", "paired_cosine", "weight_change"} and set(head.note) == {""}
    assert (head.value[head.measure == "weight_change"] > 0).all()
    assert (head.value[head.measure == "cka"] < 0.999).all()


def test_the_body_of_an_adapted_task_is_equal_bit_by_bit(bench):
    """Weights and activations themselves, by way of the library alone."""
    import torch

    from layerprobe.few_shot import inner_config
    from layerprobe.metalearning import adapt
    from layerprobe.stages._few_shot import make_inputs, make_learner, read_parameters, test_episodes

    learner = make_learner(bench.context, 0)
    inputs = make_inputs(bench.context, learner, None)
    parameters, _ = read_parameters(learner, bench.get(MetaTrain("meta-trained", "head", 0, True)))
    task = inputs.task(test_episodes(bench.context, 1)[0])
    adapted = adapt(
        learner, parameters, task.support, task.support_labels, inner_config(bench.context.study, "head", 0.2)
    ).parameters
    for name, value in parameters.items():
        assert torch.equal(value, adapted[name]) == (not name.startswith("head.")), name
    probes = bench.context.few_shot.probes
    before, after = (inputs.layers(learner, one, probes) for one in (parameters, adapted))
    assert all(np.array_equal(before[layer], after[layer]) for layer in (0, 1, 2))


def test_layers_are_compared_before_and_after_the_inner_loop(bench):
    """The value of a changed layer from the library's own parts, episode by episode."""
    from scipy import stats

    from layerprobe.few_shot import inner_config
    from layerprobe.metalearning import adapt
    from layerprobe.similarity import cka
    from layerprobe.stages._few_shot import make_inputs, make_learner, read_parameters, test_episodes

    table = bench.build(MetaSimilarity("meta-trained", "top:1", 0, True)).table("few_shot_layers")
    learner = make_learner(bench.context, 0)
    inputs = make_inputs(bench.context, learner, None)  # without the cached prefix
    parameters, _ = read_parameters(learner, bench.get(MetaTrain("meta-trained", "top:1", 0, True)))
    config, probes = inner_config(bench.context.study, "top:1", 0.2), bench.context.few_shot.probes
    before, values, changes = inputs.layers(learner, parameters, probes)[2], [], []
    for episode in test_episodes(bench.context, FEW["layer_tasks"]):
        task = inputs.task(episode)
        adapted = adapt(learner, parameters, task.support, task.support_labels, config).parameters
        values.append(cka(before, inputs.layers(learner, adapted, probes)[2]))
        norms = [(adapted[n] - v, v) for n, v in parameters.items() if n.startswith("block 2.")]
        changes.append((sum((d**2).sum() for d, _ in norms) / sum((v**2).sum() for _, v in norms)).sqrt().item())
    row = layers_of(table, "inner loop", "top:1", measure="cka").set_index("layer").loc[2]
    assert row.value == pytest.approx(np.mean(values), abs=1e-5) and row.value < 1
    half = stats.t.ppf(0.975, 1) * np.std(values, ddof=1) / 2**0.5
    assert row.ci_low == pytest.approx(max(-1, np.mean(values) - half), abs=1e-4)
    assert row.ci_high == pytest.approx(min(1, np.mean(values) + half), abs=1e-4)
    changed = layers_of(table, "inner loop", "top:1", measure="weight_change").set_index("layer").value
    assert changed[2] == pytest.approx(np.mean(changes), rel=1e-4) and changed[1] == 0
    below = layers_of(table, "inner loop", "top:1")
    assert set(below.note[below.layer < 2]) == {IDENTICAL}
    assert (row.n, row.episodes) == (len(probes), FEW["layer_tasks"])


def test_too_few_rows_for_svcca_are_undefined_with_the_reason(bench):
    table = bench.build(MetaSimilarity("meta-trained", "top:1", 0, True)).table("few_shot_layers")
    row = layers_of(table, "inner loop", "top:1", measure="svcca").set_index("layer").loc[2]
    assert pd.isna(row.value) and "fewer than 10 per component" in row.note


def test_bodies_are_compared_with_the_pretrained_one_and_each_other(bench):
    from layerprobe.similarity import paired_cosine

    trained = bench.get(MetaSimilarity("meta-trained", "top:1", 0, True))
    table = trained.table("few_shot_layers")
    rows = layers_of(table, "meta-training", "top:1", measure="paired_cosine").set_index("layer")
    assert list(rows.note.sort_index()) == [IDENTICAL, IDENTICAL, ""]
    assert rows.loc[2].ci_low <= rows.loc[2].value <= rows.loc[2].ci_high
    tasks = tuple(MetaSimilarity("meta-trained", inner, 0, True) for inner in FEW["inner"])
    between = bench.build(MetaBetween(0, tasks)).table("few_shot_layers")
    assert set(between.inner) == {"head"} and set(between.other) == {"top:1"}
    one, two = (np.load(bench.get(task).folder / "layer-2.npy") for task in tasks)
    row = layers_of(between, "between models", "head", measure="paired_cosine").set_index("layer").loc[2]
    assert row.value == pytest.approx(paired_cosine(one, two))
    assert list(between.columns) == list(FEW_SHOT_LAYERS.columns)


def test_convergence_has_both_geometries_with_their_own_and_a_common_rate(content, tmp_path):
    bench = Bench(Study.parse(content | {"few_shot": FEW | {"convergence": True}}), tmp_path)
    tasks = list(MetaConvergence.tasks(bench.resolved.shape))
    assert [(task.geometry, task.inner_steps) for task in tasks] == [
        (geometry, steps) for geometry in ("strongly convex", "nonconvex") for steps in STEPS
    ]
    assert (bench.build(ConvergencePrefix()).folder / "values.npy").exists()
    rates = json.loads((bench.build(ConvergenceRates()).folder / "rates.json").read_text())
    for geometry, losses in rates["losses"].items():
        assert set(map(float, losses)) <= set(bench.context.study.few_shot.rate_grid)
        assert losses[str(rates["own"][geometry])] == min(loss for loss in losses.values() if loss is not None)
    assert set(rates["equal"].values()) == {min(rates["own"].values())}
    flops = {}
    for task in (tasks[0], tasks[1], tasks[5]):
        table = bench.build(task).table("few_shot_convergence")
        assert list(table.rate_choice.unique()) == ["own", "equal"]
        for choice, curve in table.groupby("rate_choice"):
            assert list(curve.step) == [0, 1, 2, 3] and set(curve.note) == {""}
            assert list(curve.step[curve.loss.notna()]) == [0, 2, 3]
            assert set(curve.inner_rate) == {rates[choice][task.geometry]}
            flops[task.geometry, task.inner_steps] = curve.flops.iloc[-1]
    # Steps of the head cost next to nothing; those of a block pass the support examples again.
    assert flops["strongly convex", 3] < 1.1 * flops["strongly convex", 1] < flops["nonconvex", 3]
    assert not list(MetaConvergence.tasks(StudyShape(Study.parse(content), 2)))


def test_rates_are_chosen_by_validation_loss_with_equal_trials(content, tmp_path):
    from layerprobe.few_shot import inner_config
    from layerprobe.metalearning import evaluate
    from layerprobe.stages._few_shot import chosen_inner, make_inputs, make_learner, validation_sampler

    few = {name: value for name, value in FEW.items() if name != "inner_rate"} | {"rate_grid": [0.1, 1.0, 1e9]}
    bench = Bench(Study.parse(content | {"few_shot": few}), tmp_path)
    rates = bench.get(MetaRates.of_pretrained(True))
    table = rates.table("few_shot_rates")
    assert table.groupby("inner", sort=False).rate.apply(list).to_dict() == dict.fromkeys(
        FEW["inner"], few["rate_grid"]
    )
    assert list(table.note[table.inner == "top:1"]) == ["", "", "the inner loop diverged"]
    learner = make_learner(bench.context, 0)
    inputs, sampler = make_inputs(bench.context, learner, None), validation_sampler(bench.context)
    for depth, rows in table.groupby("inner"):
        for row in rows[rows.loss.notna()].itertuples():
            config = inner_config(bench.context.study, depth, row.rate)
            tasks = [inputs.task(sampler.draw(number)) for number in range(FEW["validation_tasks"])]
            found = [evaluate(learner, learner.parameters(), task, config) for task in tasks]
            assert (row.loss, row.accuracy) == pytest.approx(tuple(np.mean(found, axis=0)), abs=1e-5)
        chosen = rows[rows.chosen]
        assert list(chosen.loss) == [rows.loss.min()]
        assert chosen_inner(bench.context, rates, depth).rate == chosen.rate.iloc[0]
    # Every body chooses its own; meta-training takes those of the pretrained one.
    (evaluate_random,) = (one for one in MetaEvaluate.tasks(bench.resolved.shape) if one.body == "random")
    assert evaluate_random.parents()["rates"] == MetaRates("random", "", 0, True)
    assert MetaTrain("meta-trained", "head", 0, True).parents()["rates"] == MetaRates.of_pretrained(True)


def test_rates_that_the_study_gives_are_not_tried(bench):
    table = bench.build(MetaRates.of_pretrained(True)).table("few_shot_rates")
    assert list(table.rate) == [0.2, 0.2] and table.chosen.all() and set(table.n) == {0}
    assert set(table.note) == {"given by the study"} and table.loss.isna().all()


def test_dictionaries_of_both_sides_come_from_the_bodies(content, tmp_path):
    import torch

    from layerprobe.activations import ActivationStore
    from layerprobe.stages._few_shot import make_inputs, make_learner, read_parameters
    from layerprobe.stages.capture import Capture

    options = {"few_shot": FEW | {"dictionaries": True}, "sae": {"layers": [1, 2], "rows": 600, "expansion": 2}}
    bench = Bench(Study.parse(content | options), tmp_path)
    tasks = list(MetaDictionaries.tasks(bench.resolved.shape))
    assert [(task.inner, task.layer) for task in tasks] == [("head", 1), ("head", 2), ("top:1", 1), ("top:1", 2)]
    below, above = (bench.build(task).table("few_shot_dictionaries").iloc[0] for task in tasks[2:])
    # The outer loop trains block 2 alone.
    assert below.note == IDENTICAL and below.ev_pretrained == below.ev_transferred == below.ev_own
    assert below["mean"] == pytest.approx(1, abs=1e-6) and below.lost_share == 0
    assert above.note == "" and above.ev_pretrained != above.ev_transferred and 0 <= above.lost_share <= 1
    body = tasks[2].method
    assert Capture(body, 0).parents()["adapt"] == MetaModel(body, 0)
    # What was captured is the meta-trained body: the mean over tokens of its last layer, from the learner.
    store = ActivationStore.open(bench.get(Capture(body, 0)).folder / "rows")
    learner = make_learner(bench.context, 0)
    parameters, _ = read_parameters(learner, bench.get(MetaTrain("meta-trained", "top:1", 0, True)))
    assert not torch.equal(
        parameters["block 2.block.output.dense.weight"], learner.parameters()["block 2.block.output.dense.weight"]
    )
    expected = make_inputs(bench.context, learner, None).layers(learner, parameters, bench.context.few_shot.probes)[2]
    np.testing.assert_allclose(store.mean(2), expected, atol=1e-5)
    assert not list(MetaDictionaries.tasks(StudyShape(Study.parse(content), 2)))


def test_theory_holds_the_closed_form_of_the_quadratic_within_its_bounds(bench):
    table = bench.build(MetaTheory()).table("few_shot_theory")
    assert (table.gradient <= table.bound + 1e-12).all() and (table.bound > 0).any()
    for steps, rows in table[table.geometry == "strongly convex"].groupby("inner_steps"):
        q2 = (1 - 0.5 * np.array([1, 0.25])) ** (2 * steps)
        away = (3.0 - q2 @ [1, -2] / q2.sum()) * (1 - 0.05 * q2.sum()) ** rows.step.to_numpy()
        np.testing.assert_allclose(rows.gradient, q2.sum() * np.abs(away), atol=1e-12)
        np.testing.assert_allclose(rows.excess_loss, q2.sum() * away**2 / 2, atol=1e-12)
        np.testing.assert_allclose(rows.distance, np.abs(away), atol=1e-12)


def test_a_diverging_inner_loop_ends_its_curve_with_the_reason(content, tmp_path):
    from layerprobe.stages._few_shot import make_learner
    from layerprobe.stages.meta_convergence import text_inputs

    bench = Bench(Study.parse(content | {"few_shot": FEW | {"convergence": True}}), tmp_path)
    learner, task = make_learner(bench.context, 0), MetaConvergence("nonconvex", 10, 0)
    curve = task.curve(bench.context, learner, text_inputs(bench.context), 1e6)
    assert len(curve) == 1 and curve.loss.isna().all() and "diverges" in curve.note.iloc[0]


@pytest.mark.parametrize("first_order", [False, True])
def test_counts_equal_theory(content, first_order, tmp_path):
    few = FEW | {"outer": "full", "inner": ["head", "top:1", "full"], "inner_steps": 3, "first_order": first_order}
    bench = Bench(Study.parse(content | {"few_shot": few}), tmp_path)
    table = bench.build(MetaCounts(False)).table("few_shot_counts")
    assert list(table.inner_steps) == [1, 3] * 3
    for name in [name.removesuffix("_theory") for name in table if name.endswith("_theory")]:
        assert list(table[name]) == list(table[f"{name}_theory"]), name
    assert (table.seconds > 0).all() and set(table.first_order) == {first_order}


def test_counts_in_theory_are_those_of_the_papers():
    for steps in (1, 5, 10):
        assert counts_in_theory(steps, False, False) == (steps, 1, steps, 2, 2)
        assert counts_in_theory(steps, True, True) == (steps, 1, 0, steps + 1, steps + 1)


def test_two_jobs_give_the_tables_of_one(content, result, tmp_path):
    with no_page():
        other = run(
            Study.parse(content), out=tmp_path / "out", home=tmp_path / "home", threads=1, jobs=2, progress=False
        )
    assert_equal_tables(result, other)


def test_other_stages_of_a_few_shot_study(bench):
    """Prefix, training and evaluation are tested by the run; here, what their tables must hold."""
    prefix = bench.build(MetaPrefix())
    assert (prefix.folder / "values.npy").exists()
    evaluated = bench.build(MetaEvaluate("pretrained", "", 0, ("head", "top:1"), True)).table("few_shot")
    assert set(evaluated.reader) == {"inner", "logistic", "centroid", "nil"}
    assert set(evaluated.episode) == set(range(FEW["test_tasks"]))
    (compare,) = MetaCompare.tasks(bench.resolved.shape)
    table = bench.build(compare).table("few_shot_differences")
    assert list(table.inner) == ["head"] and list(table.reference) == ["top:1"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["few_shot.ways=30"], ["few_shot.ways"]),
        (["few_shot.queries=50"], ["few_shot.shots + few_shot.queries"]),
        (["data.group=label", "few_shot.within_group=true"], ["few_shot.within_group"]),
        (["few_shot.inner=['head', 'full']"], ["few_shot.inner", "few_shot.outer"]),
        (["few_shot.keep_steps=[2, 9]"], ["few_shot.keep_steps", "few_shot.outer_steps"]),
        (["few_shot.inner_steps=0"], ["few_shot.inner_steps"]),
        (["few_shot.inner_rate=1e9"], ["few_shot.inner_rate", "diverges"]),
        (
            ["few_shot.inner=top:1", "few_shot.rate_grid=1e9", "few_shot.shots=1", "few_shot.queries=1", None],
            ["few_shot.rate_grid", "diverges"],
        ),
        (["few_shot.within_group=true", None], ["few_shot.within_group", "data.group"]),
        (["few_shot.within_group=true", "data.group=''"], ["data.group"]),
        (["data.source={two}"], ["data.group", "leaves a part without a group"]),
    ],
)
def test_user_errors_are_one_sentence_that_names_study_keys(content, overrides, words, tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERPROBE_HOME", str(tmp_path / "home"))
    data, few = dict(content["data"]), FEW
    if None in overrides:
        del data["group"]
        few = {name: value for name, value in few.items() if name != "inner_rate"}
    lines = [f"[model]\nname = {content['model']['name']!r}\n[data]"]
    lines += [f"{key} = {value!r}" for key, value in data.items()]
    lines += ["[few_shot]", *(f"{key} = {value!r}" for key, value in few.items())]
    path = tmp_path / "few.toml"
    path.write_text('question = "?"\n' + "\n".join(lines), encoding="utf-8")
    two = write_groups(tmp_path / "two.csv", groups=2)
    changes = [word for override in filter(None, overrides) for word in ("--set", override.format(two=two))]
    answer = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "out"), *changes])
    assert answer.exit_code == 2, answer.output
    assert "Traceback" not in answer.output
    text = " ".join(answer.stderr.split())
    for word in words:
        assert word in text, text
