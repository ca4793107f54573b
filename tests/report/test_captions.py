"""Every section with every table: all figures are drawn, captions are short, and what is missing is one line."""

import re

import pytest
from fabricated import record
from test_page import STUDIES
from whole import whole

from layerprobe.report.page import render_page
from layerprobe.report.sections import REGISTRY

MOST_WORDS = 40
SECTIONS = [section for section in REGISTRY if section.studies != "few-shot"]


@pytest.fixture(scope="module")
def page():
    """The page of a study with every table."""
    return render_page(*whole())


def captions(html):
    """Captions without what is folded, as plain words."""
    found = re.findall(r"<figcaption>(.*?)</figcaption>", html, flags=re.S)
    return [re.sub(r"<details.*?</details>|<[^>]*>", " ", caption, flags=re.S).split() for caption in found]


def body(html, section):
    """HTML of one section."""
    return re.search(rf'<section id="{section}">(.*?)</section>', html, flags=re.S).group(1)


def test_the_page_has_every_figure_of_every_section(page):
    drawn = {re.sub(r"-\d+$", "", name) for name in re.findall(r'data-figure="([^"]+)"', page)}
    assert drawn == {name for section in SECTIONS for name in section.figures}
    assert 'class="missing"' not in page


def test_no_caption_has_more_than_forty_words(page):
    found = [*captions(page), *captions(render_page(*STUDIES["checkpoint"]()))]
    assert len(found) > 25
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
