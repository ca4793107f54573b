"""The page: self-contained, escaped, answered from its tables, whole when tables are missing."""

import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from fabricated import complete, record

from layerprobe.report import findings, write_report
from layerprobe.runs import Run

EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"


def similarity(values, method="full", unit="token", measure="cka", reach=0.01):
    return pd.DataFrame(
        {
            "method": method,
            "seed": 0,
            "unit": unit,
            "rows": "all",
            "measure": measure,
            "layer": range(len(values)),
            "value": values,
            "ci_low": np.array(values) - reach,
            "ci_high": np.minimum(1, np.array(values) + reach),
            "band_low": np.array(values) - 1.5 * reach,
            "band_high": np.minimum(1, np.array(values) + 1.5 * reach),
            "n": 50,
        }
    )


def adaptation(**accuracy):
    rows = []
    for method, value in accuracy.items():
        for when, found in (("before", 0.5), ("after", value)):
            rows.append(
                {
                    "method": method.replace("majority", "reference:majority"),
                    "seed": 0,
                    "when": when,
                    "split": "test",
                    "accuracy": found,
                    "accuracy_low": found - 0.05,
                    "accuracy_high": found + 0.05,
                    "macro_f1": found,
                    "loss": 0.5,
                    "n": 50,
                    "trainable_parameters": 10.0,
                    "total_parameters": 100.0,
                    "seconds": 1.0,
                }
            )
    return pd.DataFrame(rows)


def page(folder, tables, about=None):
    """The page of a run with these tables."""
    tables, about = complete(tables, about or record())
    run = Run.create(folder, about)
    run.save_tables(tables)
    run.record.findings = findings(tables, run.record)
    run.save()
    return write_report(run, folder / "index.html").read_text(encoding="utf-8")


def sentences(tables):
    return " ".join(finding.text for finding in findings(*complete(tables, record())))


def test_the_answer_follows_planted_numbers():
    tables = {
        "adaptation": adaptation(head=0.7, full=0.8, majority=0.5),
        "similarity": pd.concat([similarity([1, 0.97, 0.9, 0.4]), similarity([1, 1, 1, 1], "head", reach=0)]),
    }
    text = sentences(tables)
    assert "Under head, no layer of the body changed" in text
    assert "Under full, change begins at layer 2 (CKA below 0.95 by a 95% band" in text
    assert "between layers 2 and 3 at 0.9, between layers 0 and 1 at 0.99)" in text and "is largest at layer 3" in text
    assert "0.400 (95% interval 0.390 to 0.410)" in text
    assert "Layers 0-1 kept their representation (CKA above 0.95)." in text
    assert "a difference of -10.0 points" in text and "the majority baseline reaches 0.500" in text


def test_nothing_is_claimed_to_begin_where_intervals_reach_the_line():
    tables = {"adaptation": adaptation(full=0.8), "similarity": similarity([1, 0.94, 0.945], reach=0.02)}
    text = sentences(tables)
    assert "no layer's CKA is shown to be below 0.95" in text and "change begins" not in text
    assert "Layer 0 kept its representation" in text and "Layers 1-2: undecided at 0.95." in text
    assert "is largest" not in text  # the bands of layers 1 and 2 overlap


def test_a_layer_whose_interval_reaches_the_line_is_not_called_kept():
    text = sentences({"similarity": similarity([1, 0.955, 0.4], reach=0.01)})
    assert "Layer 0 kept" in text and "Layer 1: undecided" in text
    assert "change begins between layers 1 and 2" in text


def test_several_seeds_are_averaged_and_must_agree():
    seeds = [
        similarity([1, 0.97, 0.4]),
        similarity([1, 0.94, 0.5]).assign(seed=1),
        similarity([1, 0.9, 0.6]).assign(seed=2),
    ]
    text = sentences({"similarity": pd.concat(seeds)})
    assert "Under full (every one of 3 seeds), change begins between layers 1 and 2" in text
    assert "CKA with the base is 0.500 (0.400 to 0.600 over 3 seeds; 95% intervals of single seeds within 0.390" in text
    assert "Layer 0 kept" in text and "Layer 1: undecided" in text


def test_a_run_without_bands_decides_nothing():
    old = similarity([1, 0.97, 0.4]).drop(columns=["band_low", "band_high"])
    text = sentences({"similarity": old})
    assert "Layers 0-2: undecided" in text and "change begins" not in text and "0.400 (95% interval" in text


def test_data_cannot_escape_into_the_page(tmp_path):
    tables = {
        "adaptation": adaptation(full=0.8),
        "similarity": similarity([1, 0.5]),
        "examples": pd.DataFrame({"example_id": ["i"], "text": [EVIL], "label": [EVIL], "split": "test"}),
        "sentences": pd.DataFrame(
            {
                "example_id": "i",
                "layer": [0, 1],
                "token_index": 0,
                "token": EVIL,
                "special": False,
                "change": [0.0, 0.5],
                "method": "full",
                "seed": 0,
            }
        ),
        "tokens": pd.DataFrame(
            {"example_id": ["i"], "token_index": 0, "token": EVIL, "special": False, "start": 0, "end": len(EVIL)}
        ),
    }
    about = record(name=EVIL, question=EVIL, command=EVIL)
    about.data.notes, about.data.label_names, about.data.name = [EVIL], [EVIL, "b"], EVIL
    html = page(tmp_path / "run", tables, about)
    assert "<script>alert" not in html and "<img src=x" not in html
    assert html.count("</script>") == html.count("<script")
    assert "\\u003cscript\\u003ealert" in html  # it is there, as data


def test_the_page_asks_nothing_of_the_network(tmp_path):
    html = page(tmp_path / "run", {"adaptation": adaptation(full=0.8), "similarity": similarity([1, 0.5])})
    own = re.sub(r"<script>.*?</script>", "", html, flags=re.S)
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", own)
    assert "@import" not in own and "url(" not in own


@pytest.mark.parametrize("left_out", ["similarity", "adaptation", "all"])
def test_a_page_is_whole_without_some_tables(left_out, tmp_path):
    tables = {"adaptation": adaptation(full=0.8), "similarity": similarity([1, 0.5])}
    tables = {name: table for name, table in tables.items() if left_out not in (name, "all")}
    html = page(tmp_path / "run", tables)
    for anchor in ("answer", "drift", "features", "quality", "cost", "inside", "tokens", "sure", "made"):
        assert f'id="{anchor}"' in html
    for data in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, flags=re.S):
        json.loads(data)


def test_twenty_methods_and_seeds_are_drawn(tmp_path):
    methods = ["head", *(f"top:{k}" for k in range(1, 19)), "full"]
    tables = {
        "adaptation": pd.concat([adaptation(**{name: 0.7}) for name in methods]),
        "similarity": pd.concat([similarity([1, 0.9, 0.5], name) for name in methods]),
    }
    html = page(tmp_path / "run", tables)
    assert all(name in html for name in methods)


def test_reports_need_no_torch(tmp_path):
    page(tmp_path / "run", {"adaptation": adaptation(full=0.8), "similarity": similarity([1, 0.5])})
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = sys.modules['sae_lens'] = None;"
        "from layerprobe import Run, write_report;"
        f"run = Run.load({str(tmp_path / 'run')!r}); print(write_report(run, run.folder / 'again.html'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert (tmp_path / "run" / "again.html").stat().st_size > 1000


def test_captions_count_the_texts_of_the_unit_that_they_are_about(tmp_path):
    few = similarity([1, 0.5]).assign(n=30)
    html = page(tmp_path, {"similarity": pd.concat([few, similarity([1, 0.6], unit="mean")])})
    assert "on the same 30 test examples (each token; seed 0)" in html
