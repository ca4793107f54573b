"""Short forms of the campaign of faults (tests/campaign.py): a few trials of each kind, by the same seeds."""

import os
import random

import campaign
import pytest
import trials_of_inputs
import trials_of_runs as trials


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("campaign")


@pytest.fixture(scope="module")
def sites(folder):
    return trials.make_sites(folder)


@pytest.fixture(scope="module")
def least(sites):
    return sites["least"].build()


TRIALS = (trials.killed, trials.failing_disk, trials.removed_home, trials.killed_fresh)
OFTEN = (trials.damaged, trials.damaged_run)


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.__name__)
def test_a_run_survives(least, tmp_path, trial):
    assert trial(least, tmp_path / "trial", random.Random(0)) == []


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("trial", OFTEN, ids=lambda trial: trial.__name__)
def test_damage_is_named_or_repaired(least, tmp_path, trial, number):
    assert trial(least, tmp_path / "trial", random.Random(number)) == []


def test_runs_at_once_have_the_right_numbers(least, tmp_path):
    assert trials.at_once(least, tmp_path / "trial", random.Random(2), counts=(2,)) == []


@pytest.mark.parametrize("kind", trials_of_inputs.FUZZED)
def test_fuzzed_inputs_are_accepted_or_refused_in_one_line(least, folder, kind):
    examples = 3 if kind == "run.json" else 12  # of which some draw a page
    assert trials_of_inputs.fuzz(kind, folder, number=0, examples=examples) == []


def test_hostile_strings_make_no_elements():
    page, texts = trials_of_inputs.hostile_page(random.Random(0), len(trials_of_inputs.PAYLOADS))
    assert trials_of_inputs.in_source(page) == []
    assert len(texts) == len(trials_of_inputs.PAYLOADS)
    # The check itself sees what is not escaped.
    assert trials_of_inputs.in_source(page.replace("<main", "<img src=x onerror=alert(1)><main", 1))


@pytest.mark.parametrize("number", range(3))
def test_hostile_tables_of_a_run_folder_do_nothing_in_a_browser(tmp_path, number):
    path, problems = trials_of_inputs.hostile_run(tmp_path / "run", random.Random(number))
    assert problems == []
    if path is not None:
        with campaign.chromium() as browser:
            assert browser is None or trials_of_inputs.in_browser(browser, path) == []


def test_hostile_strings_do_nothing_in_a_browser(tmp_path):
    page, _ = trials_of_inputs.hostile_page(random.Random(1), 12)
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    with campaign.chromium() as browser:
        if browser is None:
            if os.environ.get("LAYERPROBE_REQUIRE_BROWSER"):
                pytest.fail("LAYERPROBE_REQUIRE_BROWSER is set and there is no Chromium")
            pytest.skip("no Chromium to open the page with")
        assert trials_of_inputs.in_browser(browser, path) == []
        path.write_text(page.replace("<main", "<img src='https://example.org/x'><main", 1), encoding="utf-8")
        assert trials_of_inputs.in_browser(browser, path)  # the policy blocks the request, and the console says so


def test_counts_are_kept_for_the_same_source_only(tmp_path):
    path = tmp_path / "state.json"
    state = campaign.State("one", tried={"x": 3})
    state.save(path)
    assert campaign.State.load(path, "one").tried == {"x": 3}
    assert campaign.State.load(path, "two").tried == {}


def test_the_table_counts_by_group(tmp_path):
    every = [campaign.Kind(name, "faults", 10, lambda *_: []) for name in ("a", "b")]
    state = campaign.State("abc", tried={"a": 3, "b": 4}, failed={"b": 1})
    assert "| **faults** | 20 | 7 | 6 |" in campaign.table(state, every)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{campaign.START}\nold\n{campaign.END}\nafter\n")
    campaign.write_page(state, every, page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text and "commit abc" in text


@pytest.mark.campaign
@pytest.mark.timeout(0)
def test_the_campaign():
    """As long as `CAMPAIGN_MINUTES` says."""
    state = campaign.in_parts(campaign.FOLDER, float(os.environ.get("CAMPAIGN_MINUTES", "60")), "", os.cpu_count() or 1)
    assert state.failures == []
