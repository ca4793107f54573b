"""Every section with every table: all figures are drawn, captions are short, and what is missing is one line."""

import re

import pytest
from fabricated import record
from test_energy_section import study as energy_study
from test_few_shot_section import convergence, theory
from test_page import STUDIES
from whole import whole

from layerprobe.report.page import render_page
from layerprobe.report.sections import REGISTRY

MOST_WORDS = 40
SECTIONS = [section for section in REGISTRY if section.studies != "few-shot"]
FEW_SHOT = [section for section in REGISTRY if section.studies == "few-shot"]


@pytest.fixture(scope="module")
def page():
    """The page of a study with every table."""
    return render_page(*whole())


@pytest.fixture(scope="module")
def few_shot_page():
    """The page of a few-shot study with every table that has a figure."""
    tables, about = energy_study()
    return render_page({**tables, "few_shot_convergence": convergence(), "few_shot_theory": theory()}, about)


def captions(html):
    """Captions without what is folded, as plain words."""
    found = re.findall(r"<figcaption>(.*?)</figcaption>", html, flags=re.S)
    return [re.sub(r"<details.*?</details>|<[^>]*>", " ", caption, flags=re.S).split() for caption in found]


def body(html, section):
    """HTML of one section."""
    return re.search(rf'<section id="{section}">(.*?)</section>', html, flags=re.S).group(1)


def test_the_pages_have_every_figure_of_every_section(page, few_shot_page):
    for html, sections in ((page, SECTIONS), (few_shot_page, FEW_SHOT)):
        drawn = {re.sub(r"-\d+$", "", name) for name in re.findall(r'data-figure="([\w-]+)"', html)}
        assert drawn == {name for section in sections for name in section.figures}
        assert 'class="missing"' not in html


def test_no_caption_has_more_than_forty_words(page, few_shot_page):
    found = [*captions(page), *captions(render_page(*STUDIES["checkpoint"]())), *captions(few_shot_page)]
    assert len(found) > 34
    assert not [" ".join(words) for words in found if len(words) > MOST_WORDS]
    assert all(len(words) > 5 for words in found)


def test_what_is_missing_is_one_line(page):
    html = render_page({}, record())
    for section in SECTIONS:
        if section.figures and section.id != "answer":
            text = body(html, section.id)
            assert text.count("<h2") == text.count("<p") == 1 and "<h3" not in text, section.id
            assert section.missing in text


def test_tables_and_methods_of_measurement_are_folded(page):
    for name in ("drift", "bases", "quality", "sure"):
        open_part = re.sub(r"<details.*?</details>", "", body(page, name), flags=re.S)
        assert "<table" not in open_part, name
