"""What a finished run gives back: findings, models, dictionaries, activations, and figures as files; and the notebook of it."""

import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from running import environment, run_study, write_study

from layerprobe import Run
from layerprobe.errors import ArgumentError, StorageError
from layerprobe.report import images

ROOT = Path(__file__).parent.parent
CHROME = os.environ.get(images.BROWSER) or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)


@pytest.fixture(scope="module")
def result(tmp_path_factory, tiny_bert, tiny_csv):
    folder = tmp_path_factory.mktemp("results")
    study = write_study(folder, tiny_bert, tiny_csv)
    overrides = ("sae.layers=2", "sae.controls=[]", "sae.crosscoder=false", "internals.parts=[]")
    return Run.load(run_study(study, folder / "out", folder / "home", *overrides).folder)


def test_findings_are_those_of_the_record(result):
    assert result.findings and result.findings == result.record.findings


def test_the_model_gives_the_predictions_of_the_table(result, tiny_encoder):
    from layerprobe.encoder import collate, tokenize

    predictions = result.table("predictions").query("method == 'full' and seed == 0")
    examples = result.table("examples").set_index("example_id")
    model = result.model("full", seed=0)
    assert model is not result.model("full") and not model.training
    ids = predictions.example_id[:12]
    from layerprobe.data import Examples

    part = Examples(tuple(ids), tuple(examples.text[ids]), None, np.zeros(len(ids), dtype=np.int64))
    batch = collate(tiny_encoder, tokenize(tiny_encoder, part, 32), range(len(part)))
    with torch.no_grad():
        probabilities = model(**batch).logits.softmax(-1).numpy()
    names = [model.config.id2label[i] for i in probabilities.argmax(1)]
    assert names == predictions.predicted[:12].tolist()


def test_activations_are_those_that_were_compared(result):
    base, adapted = result.activations("base"), result.activations("adapted", method="full")
    assert base.layers == adapted.layers == (0, 1, 2)
    frozen = result.activations(method="head", seed=0)
    for layer in base.layers:
        assert np.array_equal(base.tokens(layer), frozen.tokens(layer))  # the head changes no layer
    assert not np.array_equal(base.tokens(2), adapted.tokens(2))
    assert np.array_equal(adapted.tokens(2), result.activations().tokens(2))  # full is the study's last method
    table = result.table("similarity").query(
        "method == 'full' and measure == 'paired_cosine' and unit == 'token' and rows == 'all' and layer == 2"
    )
    x, y = (np.asarray(store.tokens(2), dtype=np.float64) for store in (base, adapted))
    cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert cosine.mean() == pytest.approx(table.value.item(), abs=1e-6)


def test_dictionaries_are_those_of_their_side(result):
    base, adapted = result.sae(2, "base"), result.sae(2)
    assert base.d_in == adapted.d_in == 32 and base.d_sae == adapted.d_sae
    assert not torch.equal(base.decoder, adapted.decoder)
    # Trained on its own side's rows: it explains them better than the other side's.
    rows = {side: torch.tensor(np.asarray(result.activations(side).tokens(2))) for side in ("base", "adapted")}

    def error(dictionary, x):
        decoded = dictionary.decode(dictionary.encode(x), x)
        return float((x - decoded).square().sum() / (x - x.mean(0)).square().sum())

    assert error(base, rows["base"]) < error(base, rows["adapted"])
    assert error(adapted, rows["adapted"]) < error(adapted, rows["base"])


def test_what_a_run_does_not_have_is_refused_with_what_it_has(result, tmp_path):
    with pytest.raises(
        KeyError, match=r"no adapt of 'top:1'; it has 'full seed 0', 'head seed 0'|'head seed 0'.*'full"
    ):
        result.model("top:1")
    with pytest.raises(KeyError, match="no adapt of 'full seed 7'"):
        result.model("full", seed=7)
    with pytest.raises(KeyError, match=r"no sae of 'full seed 0 layer 9'|no sae of 'full layer 9'"):
        result.sae(9)
    with pytest.raises(KeyError, match="'left' is no side of a comparison; the sides are base and adapted"):
        result.activations("left")
    record = result.record.model_copy(deep=True)
    for artifact in record.artifacts:
        artifact.folder = str(tmp_path / "gone")
    with pytest.raises(StorageError, match=r"gone was removed from the artifact store; repeat the run with: python -c"):
        Run(tmp_path, record).activations("base")


def test_a_checkpoint_is_loaded_from_its_own_folder(tmp_path, tiny_bert, tiny_csv):
    from tiny import make_encoder

    tuned = make_encoder(tmp_path / "tuned", seed=3, labels=["class a", "class b"])
    study = write_study(tmp_path, tiny_bert, tiny_csv)
    overrides = (f"adaptation.methods=['checkpoint:{tuned}']", "sae.layers=[]", "internals.parts=[]")
    ended = run_study(study, tmp_path / "out", tmp_path / "home", *overrides)
    from safetensors.torch import load_file

    assert torch.equal(
        ended.model(f"checkpoint:{tuned}").state_dict()["classifier.weight"],
        load_file(tuned / "model.safetensors")["classifier.weight"],
    )


# Figures as files ---------------------------------------------------------------------------------------------------------


def test_html_is_complete_in_itself(result, tmp_path):
    path = result.save_figure("drift", tmp_path / "drift.html")
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "drift.html" and "<html>" in text and len(text) > 1_000_000
    assert 'src="http' not in text
    assert [one.name for one in tmp_path.iterdir()] == ["drift.html"]


def test_images_are_drawn_by_the_chrome_of_browser_path(result, tmp_path, monkeypatch):
    if CHROME is None:
        assert os.environ.get("LAYERPROBE_REQUIRE_BROWSER") != "1", "no Chrome or Chromium was found"
        pytest.skip("no Chrome or Chromium")
    # A wrapper that notes its call: the Chrome of BROWSER_PATH is the one that draws.
    wrapper, log = tmp_path / "my chrome", tmp_path / "log"
    wrapper.write_text(f'#!/bin/sh\necho called >> "{log}"\nexec {CHROME} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv(images.BROWSER, str(wrapper))
    figure = result.figure("drift")
    png = result.save_figure("drift", tmp_path / "drift.png").read_bytes()
    assert png.startswith(b"\x89PNG") and log.read_text().startswith("called")
    width, height = struct.unpack(">II", png[16:24])
    assert width == 2 * (figure.layout.width or images.WIDTH) and height == 2 * (figure.layout.height or images.HEIGHT)
    svg = result.save_figure("drift", tmp_path / "drift.svg").read_text(encoding="utf-8")
    assert svg.startswith("<svg") and figure.layout.xaxis.title.text in svg
    assert result.save_figure("drift", tmp_path / "drift.PDF").read_bytes().startswith(b"%PDF")


def test_images_that_cannot_be_drawn_are_one_sentence(result, tmp_path, monkeypatch):
    monkeypatch.setenv(images.BROWSER, "/nowhere/chrome")
    with pytest.raises(
        StorageError, match=r"BROWSER_PATH is '/nowhere/chrome', which is not a program; install one or set"
    ):
        result.save_figure("drift", tmp_path / "drift.png")
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv(images.BROWSER, str(broken))
    with pytest.raises(
        StorageError, match=r"A png is drawn by Chrome or Chromium, which failed \(.*or save the figure as"
    ):
        result.save_figure("drift", tmp_path / "drift.png")
    monkeypatch.delenv(images.BROWSER)
    monkeypatch.setattr("choreographer.browsers.chromium.Chromium.find_browser", lambda *a, **k: None)
    with pytest.raises(StorageError, match="and none was found; install one or set BROWSER_PATH"):
        result.save_figure("drift", tmp_path / "drift.svg")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StorageError, match=r'pip install "layerprobe\[export\]"'):
        result.save_figure("drift", tmp_path / "drift.pdf")
    with pytest.raises(ArgumentError, match=r"ends in '.jpg'; it ends in .html, .png, .svg or .pdf"):
        result.save_figure("drift", tmp_path / "drift.jpg")
    with pytest.raises(StorageError, match=r"no folder .*nowhere to save drift.html in"):
        result.save_figure("drift", tmp_path / "nowhere" / "drift.html")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["broken"]


# The notebook -------------------------------------------------------------------------------------------------------------


def test_the_notebook_has_no_outputs_and_runs(tmp_path, tiny_bert, tiny_csv, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    path = ROOT / "docs" / "notebooks" / "quickstart.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) >= 8 and not any(cell.outputs or cell.execution_count for cell in cells)
    study = write_study(tmp_path, tiny_bert, tiny_csv)
    study.write_text(study.read_text().replace("[sae]", "[internals]\nparts = []\n[sae]\nlayers = [2]\ncontrols = []"))
    for name, value in environment(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LAYERPROBE_NOTEBOOK_STUDY", str(study))
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = {"".join(cell.source): cell.outputs for cell in cells}
    (drift,) = [outputs for source, outputs in shown.items() if 'result.figure("layer_strip")' in source]
    assert any("application/vnd.plotly.v1+json" in one.get("data", {}) for one in drift)
    assert (tmp_path / "drift.html").is_file() and (tmp_path / "reports" / "tiny" / "index.html").is_file()
    (size,) = [outputs for source, outputs in shown.items() if "dictionary.d_in" in source]
    assert size[0]["data"]["text/plain"].startswith("(32, ")


def test_the_notebook_is_of_the_quickstart():
    text = (ROOT / "docs" / "notebooks" / "quickstart.ipynb").read_text(encoding="utf-8")
    assert "../../analyses/quickstart.toml" in text and (ROOT / "analyses" / "quickstart.toml").is_file()
