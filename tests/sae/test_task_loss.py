"""Task loss recovered: a copy keeps all, the mean nothing, padding has no part, and a slow twin agrees in each family."""

import dataclasses

import numpy as np
import pytest
import torch
from sparse_rows import stand_in
from test_encoder import FAMILIES
from tiny import make_encoder, write_csv

from layerprobe import sae
from layerprobe.data import load_corpus
from layerprobe.encoder import collate, load_encoder, tokenize
from layerprobe.errors import ArgumentError, EncoderError, MeasureError
from layerprobe.layers import blocks, edited, forward
from layerprobe.sae import _task_loss

pytestmark = pytest.mark.numerical

WIDTH = 32


def rebuilding(decode, width=WIDTH):
    """A dictionary whose activations are the rows, decoded by any function."""
    return stand_in(np.zeros((width, width)), encode=lambda rows: rows, decode=decode)


def copy():
    return rebuilding(lambda rows: rows)


def fixed(vector):
    """A dictionary that decodes to one vector for every row."""
    vector = torch.as_tensor(np.asarray(vector, dtype=np.float32))
    return rebuilding(lambda rows: vector.expand_as(rows))


def projection(directions=8):
    """The matrix of a dictionary that keeps what lies along a few random directions."""
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((WIDTH, directions)))
    return torch.from_numpy((q @ q.T).astype(np.float32))


def part():
    return rebuilding(lambda rows: rows @ projection())


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    corpus = load_corpus(str(write_csv(tmp_path_factory.mktemp("texts") / "t.csv", n=120)), train=60, test=50)
    return corpus.test


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory, examples):
    folder = make_encoder(tmp_path_factory.mktemp("loss") / request.param, request.param, n_layers=3)
    encoder = load_encoder(str(folder))
    return encoder, *task(encoder, examples)


@pytest.fixture(scope="module")
def bert(tmp_path_factory, examples):
    encoder = load_encoder(str(make_encoder(tmp_path_factory.mktemp("loss") / "bert", n_layers=3)))
    return encoder, *task(encoder, examples)


@torch.no_grad()
def task(encoder, examples):
    """A classifier sure of itself, half of the texts on each side, and labels it gets right on nine texts of ten."""
    model = encoder.classifier(["no", "yes"], seed=0)
    last = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 2][-1]
    inputs = collate(encoder, tokenize(encoder, examples, 128), range(len(examples)))
    for _ in range(2):
        lead = torch.tensor([-1.0, 1.0]) @ model(**inputs).logits.T
        scale = 1.5 / lead.std()
        last.weight.mul_(scale)
        last.bias.mul_(scale)
        last.bias[1] -= (lead * scale).median() - 0.01
    labels = model(**inputs).logits.argmax(1).numpy()
    labels[::10] = 1 - labels[::10]
    return model, labels


@torch.no_grad()
def twin(model, encoder, examples, labels, layer, replace):
    """Losses and hits, one example at a time, every real token's row put in by hand in a separate hook."""
    encodings = tokenize(encoder, examples, 128)
    module = blocks(model)[max(0, layer - 1)]
    losses, right = [], []
    for i, label in enumerate(labels):
        inputs = collate(encoder, encodings, [i])
        passes = 0

        def after(module, args, output, layer=layer):
            nonlocal passes
            passes += 1
            if passes != (layer if model.config.model_type == "albert" else 1):
                return None
            value = (output[0] if isinstance(output, tuple) else output).clone()
            for token in range(value.shape[1]):
                value[0, token] = replace(value[0, token])
            return (value, *output[1:]) if isinstance(output, tuple) else value

        def before(module, args, kwargs):
            nonlocal passes
            passes += 1
            if passes > 1:
                return None
            value = (args[0] if args else kwargs["hidden_states"]).clone()
            for token in range(value.shape[1]):
                value[0, token] = replace(value[0, token])
            return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": value})

        if layer:
            handle = module.register_forward_hook(after)
        else:
            handle = module.register_forward_pre_hook(before, with_kwargs=True)
        logits = model(**inputs).logits[0].double()
        handle.remove()
        losses.append(float(torch.logsumexp(logits, 0) - logits[label]))
        right.append(int(logits.argmax()) == label)
    return np.mean(losses), np.mean(right)


def run(model, encoder, examples, labels, layer, dictionaries, **options):
    examples = dataclasses.replace(examples, labels=labels)
    table = sae.task_loss(model, encoder, examples, layer, dictionaries, **options)
    return table.set_index("variant")


def test_a_slow_twin_agrees_in_every_family_and_layer(family, examples, monkeypatch):
    monkeypatch.setattr(_task_loss, "BATCH_EXAMPLES", 4)
    encoder, model, labels = family
    examples, labels = examples.take(range(7)), labels[:7]
    encodings = tokenize(encoder, examples, 128)
    keep, matrix = part(), projection()
    with torch.no_grad():
        rows = [forward(model, collate(encoder, encodings, [i]))[0] for i in range(len(examples))]
    for layer in range(4):
        mean = torch.cat([layers[layer][0] for layers in rows]).double().mean(0).float()
        table = run(model, encoder, examples, labels, layer, {"part": keep})
        for variant, replace in (
            ("clean", lambda row: row),
            ("mean_ablated", lambda row, mean=mean: mean),
            ("part", lambda row: row @ matrix),
        ):
            loss, accuracy = twin(model, encoder, examples, labels, layer, replace)
            assert table.loss[variant] == pytest.approx(loss, abs=1e-5)  # rounding of one text against four
            assert table.accuracy[variant] == accuracy
        assert abs(table.loss["part"] - table.loss["clean"]) > 1e-3  # the edit is felt
        recovered = (table.loss["mean_ablated"] - table.loss["part"]) / (
            table.loss["mean_ablated"] - table.loss["clean"]
        )
        if np.isfinite(table.loss_recovered["part"]):
            assert table.loss_recovered["part"] == pytest.approx(recovered, rel=1e-9)


def test_a_copy_recovers_all_and_the_mean_nothing(family, examples):
    encoder, model, labels = family
    inputs = collate(encoder, tokenize(encoder, examples, 128), range(50))
    with torch.no_grad():
        layers, _ = forward(model, inputs)
    for layer in range(4):
        mean = layers[layer][inputs["attention_mask"].bool()].double().mean(0).numpy()
        table = run(model, encoder, examples, labels, layer, {"copy": copy(), "fixed": fixed(mean)})
        assert table.loss["copy"] == table.loss["clean"]  # to the last bit
        assert table.loss["fixed"] == pytest.approx(table.loss["mean_ablated"], abs=2e-6)
        assert table.loss["mean_ablated"] > table.loss["clean"] + 0.1
        assert table.loss_recovered["copy"] == table.loss_recovered["clean"] == 1
        assert table.loss_recovered["fixed"] == pytest.approx(0, abs=2e-5)
        assert table.loss_recovered["mean_ablated"] == 0
        assert table.loss_recovered_low["copy"] == table.loss_recovered_high["copy"] == 1
        assert table.accuracy_recovered["copy"] == 1 and table.accuracy_recovered["fixed"] == 0
        assert (table.why == "").all()


def test_padding_has_no_part(family, examples, monkeypatch):
    encoder, model, labels = family
    lengths = {len(e["input_ids"]) for e in tokenize(encoder, examples, 128)}
    assert len(lengths) > 3  # else there is no padding to go wrong
    for layer in (0, 2):
        tables = []
        for size in (1, 50):
            monkeypatch.setattr(_task_loss, "BATCH_EXAMPLES", size)
            tables.append(run(model, encoder, examples, labels, layer, {"part": part()}))
        alone, together = tables
        np.testing.assert_allclose(together.loss, alone.loss, atol=1e-5)
        np.testing.assert_array_equal(together.accuracy, alone.accuracy)


def test_only_the_real_tokens_reach_a_dictionary(bert, examples):
    encoder, model, labels = bert
    seen = []

    def watched(rows):
        seen.append(rows)
        return rows

    run(model, encoder, examples, labels, 2, {"watched": stand_in(np.eye(WIDTH), watched)})
    encodings = tokenize(encoder, examples, 128)
    assert sum(map(len, seen)) == sum(len(e["input_ids"]) for e in encodings)
    with torch.no_grad():
        first = forward(model, collate(encoder, encodings, [0]))[0][2][0].numpy()
    rows = torch.cat(seen).numpy()
    assert all(np.abs(rows - row).max(1).min() < 1e-5 for row in first)


def test_intervals_are_the_jackknife_by_hand(bert, examples):
    """Twenty groups recomputed from each text's loss, which a pass over one batch with the layer edited gives."""
    encoder, model, labels = bert
    inputs = collate(encoder, tokenize(encoder, examples, 128), range(50))
    keep = part()
    with torch.no_grad():
        layers, clean = forward(model, inputs)
        mean = layers[2][inputs["attention_mask"].bool()].mean(0)
        with edited(model, {2: lambda value: mean.expand_as(value)}):
            ablated = model(**inputs).logits
        with edited(model, {2: lambda value: value @ projection()}):
            rebuilt = model(**inputs).logits
    single = np.stack(
        [
            (torch.logsumexp(logits, 1) - logits[torch.arange(50), torch.from_numpy(labels)]).numpy()
            for logits in (clean.double(), ablated.double(), rebuilt.double())
        ]
    )
    whole = run(model, encoder, examples, labels, 2, {"part": keep})
    np.testing.assert_allclose(single.mean(1), whole.loss, atol=2e-6)
    groups = np.random.default_rng(0).permutation(np.arange(50) % 20)
    t19 = 2.093024054408263
    for column, value in (
        ("loss", lambda s: s[2].mean()),
        ("loss_recovered", lambda s: (s[1].mean() - s[2].mean()) / (s[1].mean() - s[0].mean())),
    ):
        left = np.array([value(single[:, groups != group]) for group in range(20)])
        reach = t19 * np.sqrt(19 / 20 * ((left - left.mean()) ** 2).sum())
        assert whole[column]["part"] == pytest.approx(value(single), abs=1e-5)
        assert whole[f"{column}_low"]["part"] == pytest.approx(value(single) - reach, abs=1e-4)
        assert whole[f"{column}_high"]["part"] == pytest.approx(value(single) + reach, abs=1e-4)


def test_what_is_undefined_is_left_out_and_says_why(bert, examples):
    encoder, model, labels = bert
    # Ablation puts all examples in one class: where the model puts them in the other, and is wrong, it helps.
    predicted = np.where(np.arange(50) % 10 == 0, 1 - labels, labels)
    for only in (0, 1):
        chosen = np.flatnonzero(predicted != only)
        wrong = run(model, encoder, examples.take(chosen), np.full(len(chosen), only), 2, {"part": part()})
        if wrong.loss["mean_ablated"] < wrong.loss["clean"]:
            break
    assert wrong.loss["mean_ablated"] < wrong.loss["clean"]
    assert wrong[["loss_recovered", "loss_recovered_low", "accuracy_recovered"]].isna().all(axis=None)
    assert "No loss to recover: mean ablation costs -" in wrong.why["part"]
    assert "No accuracy to recover" in wrong.why["part"]


def test_a_cost_that_may_be_nothing_gives_no_bounds():
    from layerprobe.sae._task_loss import _recovered

    rng = np.random.default_rng(0)
    costs = np.stack([np.zeros(100), rng.standard_normal(100) + 0.05, np.zeros(100)])
    assert costs[1].mean() > 1e-3
    value, low, high, why = _recovered(costs, 2, np.arange(100) % 20, "loss", "nats")
    assert value == 1 and np.isnan([low, high]).all()
    assert why.startswith("The interval of loss recovered has no bounds: mean ablation costs 0.")
    costs[1] += 1
    value, low, high, why = _recovered(costs, 2, np.arange(100) % 20, "loss", "nats")
    assert (value, low, high, why) == (1, 1, 1, "")


def test_loss_is_the_models_own(bert, examples):
    """The loss of transformers, on the whole set at once."""
    encoder, model, labels = bert
    inputs = collate(encoder, tokenize(encoder, examples, 128), range(50))
    with torch.no_grad():
        theirs = model(**inputs, labels=torch.from_numpy(labels))
    table = run(model, encoder, examples, labels, 1, {})
    assert table.loss["clean"] == pytest.approx(float(theirs.loss), abs=1e-5)
    assert table.accuracy["clean"] == (theirs.logits.argmax(1).numpy() == labels).mean() == 0.9
    assert list(table.index) == ["clean", "mean_ablated"]
    assert table.loc["clean", "accuracy_low"] == pytest.approx(0.7864, abs=1e-4)  # Wilson's for 45 of 50
    assert table.loc["clean", "accuracy_high"] == pytest.approx(0.9565, abs=1e-4)


def test_a_trained_dictionary_is_given_raw_rows(bert, examples, tmp_path):
    encoder, model, labels = bert
    encodings = tokenize(encoder, examples, 128)
    with torch.no_grad():
        rows = torch.cat([forward(model, collate(encoder, encodings, [i]))[0][2][0] for i in range(50)]).numpy()
    config = sae.SaeConfig(k=8, expansion=4, samples=12_000, batch_size=128)
    trained = sae.train(rows, tmp_path / "d", config)
    table = run(model, encoder, examples, labels, 2, {"trained": trained})
    assert table.loss["clean"] < table.loss["trained"] < table.loss["mean_ablated"]
    assert 0.5 < table.loss_recovered["trained"] < 1


def test_mistakes_are_named(bert, examples):
    encoder, model, labels = bert
    with pytest.raises(ArgumentError, match=r"layer is 4, but .* has layers 0 \(embeddings\) to 3"):
        run(model, encoder, examples, labels, 4, {})
    with pytest.raises(MeasureError, match="1 examples; it needs at least 2"):
        run(model, encoder, examples.take([0]), labels[:1], 1, {})
    with pytest.raises(
        MeasureError, match="labels from -1 to 1 for a model of 2 classes; give class numbers from 0 to 1"
    ):
        run(model, encoder, examples, np.where(np.arange(50) == 3, -1, labels), 1, {})
    with pytest.raises(MeasureError, match="named 'clean'"):
        run(model, encoder, examples, labels, 1, {"clean": copy()})
    with pytest.raises(MeasureError, match="'narrow' takes rows of 5 features"):
        run(model, encoder, examples, labels, 1, {"narrow": rebuilding(lambda rows: rows, width=5)})
    elsewhere = copy()
    elsewhere.sae.W_dec = elsewhere.sae.W_dec.to("meta")
    with pytest.raises(ArgumentError, match="'elsewhere' is on meta, but the model is on cpu"):
        run(model, encoder, examples, labels, 1, {"elsewhere": elsewhere})
    with pytest.raises(MeasureError, match=r"loss of 'broken' at layer 1 is not finite on 50 of 50"):
        run(model, encoder, examples, labels, 1, {"broken": fixed(np.full(WIDTH, np.nan))})
    model.base_model.embeddings.train()
    with pytest.raises(EncoderError, match="in training mode"):
        run(model, encoder, examples, labels, 1, {})
    model.eval()
    with pytest.raises(EncoderError, match="mixed precision"), torch.autocast("cpu", dtype=torch.bfloat16):
        run(model, encoder, examples, labels, 1, {})


def test_the_costs_of_a_variant_do_not_depend_on_what_is_computed_with_it(bert, examples):
    encoder, model, labels = bert
    labelled = dataclasses.replace(examples, labels=labels)
    variants = {"part": part(), "copy": copy(), "fixed": fixed(np.ones(WIDTH))}
    whole = sae.task_costs(model, encoder, labelled, 1, variants)
    assert list(whole) == [sae.CLEAN, sae.ABLATED, *variants]
    known = sae.task_costs(model, encoder, labelled, 1, {"part": variants["part"]})
    for name in ("copy", "fixed"):
        added = sae.task_costs(model, encoder, labelled, 1, {name: variants[name]}, ablated=False)
        assert list(added) == [sae.CLEAN, name]
        known |= added
    for name, costs in whole.items():
        assert np.array_equal(costs.losses, known[name].losses) and np.array_equal(costs.right, known[name].right)
    table = sae.task_loss(model, encoder, labelled, 1, variants)
    assert table.equals(sae.task_loss_table({name: known[name] for name in (*variants, sae.ABLATED, sae.CLEAN)}))
