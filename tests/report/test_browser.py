"""The page in a browser: drawn without a message or a request, operable, accessible, and with figures to download."""

import os
import re
from importlib import resources

import pandas as pd
import pytest
from chromium import CHROMIUM
from fabricated import complete, record
from test_energy_section import study as energy_study
from test_explorer import tables as explorer_tables
from test_page import EMOJI, EVIL, LINK, RIGHT_TO_LEFT, features, study, token_tables, twenty_classes

from layerprobe.report.comparison import ComparedRun
from layerprobe.report.comparison.sections import SECTIONS
from layerprobe.report.comparison.tables import compare
from layerprobe.report.page import render_page

VIEWS = [(width, scheme) for width in (1400, 400) for scheme in ("light", "dark")]


def dictionaries():
    """A study with examples by token and latents to look up."""
    made, about = study(("head", "full"))
    shown = {name: table for name, table in explorer_tables().items() if name not in made}
    classes = shown["latent_classes"]
    shown["latent_classes"] = classes.assign(label=classes.label.where(classes.label != classes.label.iloc[0], LINK))
    return made | shown, about


def many_features():
    """A study with dictionaries under two methods, of which one is shown at a time."""
    made, about = features()
    named = {"latent_shares", "sae", "matching", "crossing_layers", "similarity"}
    both = {
        name: pd.concat([table, table[table.method == "full"].assign(method="top:2")]) if name in named else table
        for name, table in made.items()
    }
    return complete(
        {
            name: table.drop(columns=["depth", "is_control", "is_reference"], errors="ignore")
            for name, table in both.items()
        },
        about,
    )


def comparison():
    """Tables and record of a comparison of three runs, one of them with a hostile name, and one without a conclusion."""
    runs = []
    for label, seed in (("one " + LINK, 0), ("two", 1), ("three", 1)):
        made, about = study(("head", "top:2", "full"), seed=seed)
        if label == "three":
            about = about.model_copy(update={"sufficiency": None})
        runs.append(ComparedRun(label, "folder", about, made))
    return compare(runs)


PAGES = {
    "depths": lambda: render_page(*study()),
    "latents": lambda: render_page(*dictionaries()),
    "hostile": lambda: render_page(*twenty_classes()),
    "comparison": lambda: render_page(*comparison(), SECTIONS),
    "features": lambda: render_page(*many_features()),
    "energy": lambda: render_page(*energy_study()),
    "nothing": lambda: render_page({}, record()),
}


@pytest.fixture(scope="module")
def browser():
    """One headless Chromium for all tests of this file."""
    if CHROMIUM is None:
        if os.environ.get("LAYERPROBE_REQUIRE_BROWSER"):
            pytest.fail(
                "LAYERPROBE_REQUIRE_BROWSER is set and there is no Chromium; install it or set LAYERPROBE_CHROMIUM"
            )
        pytest.skip("no Chromium to open the page with; set LAYERPROBE_CHROMIUM")
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield started
        started.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with every page, rendered once."""
    made = tmp_path_factory.mktemp("pages")
    for name, render in PAGES.items():
        (made / f"{name}.html").write_text(render(), encoding="utf-8")
    return made


@pytest.fixture
def visit(browser, folder):
    """A function that opens a page at a width and colour scheme; at the end, nothing was logged or requested."""
    seen, contexts = [], []

    def opened(name, width=1400, scheme="light", hash=""):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: seen.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (seen.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request", lambda request: request.url.startswith(("file:", "blob:", "data:")) or seen.append(request.url)
        )
        page.goto(f"file://{folder}/{name}.html{hash}")
        page.wait_for_function("() => document.readyState === 'complete'")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not seen


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_a_page_is_accessible_and_nothing_leaves_its_frame(name, width, scheme, visit):
    page = visit(name, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Folds are part of the page.
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    page.wait_for_timeout(300)
    axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page.evaluate(axe)  # by the debugger's protocol, which the page's policy does not bind
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    serious = [
        (one["id"], [node["html"][:160] for node in one["nodes"][:3]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert not serious
    # A figure keeps its height, also after the window changed: nothing of it covers what follows.
    page.set_viewport_size({"width": width, "height": 1300})
    page.wait_for_timeout(400)
    lower = page.evaluate(
        """() => [...document.querySelectorAll(".plot")].filter(plot => {
            const drawn = plot.querySelector(".main-svg");
            return drawn && drawn.getBoundingClientRect().bottom > plot.getBoundingClientRect().bottom + 1;
        }).map(plot => plot.dataset.figure)"""
    )
    assert not lower
    # Texts of figures, which axe does not judge: none is cut by its figure, or runs out of the page.
    cut = page.evaluate(
        """() => [...document.querySelectorAll(".plot")].flatMap(plot => {
            const frame = plot.getBoundingClientRect();
            return [...plot.querySelectorAll(".ytitle, .xtick text, .ytick text, .annotation text")].filter(text => {
                const box = text.getBoundingClientRect();
                return box.width && (box.left < frame.left - 3 || box.right > frame.right + 3 || box.top < frame.top - 3
                    || box.bottom > frame.bottom + 3);
            }).map(text => `${plot.dataset.figure}: ${text.textContent.slice(0, 60)}`);
        })"""
    )
    assert not cut


def test_every_picker_redraws_its_figure(visit):
    page = visit("depths")
    pickers = page.evaluate(
        "[...document.querySelectorAll('[data-chooses]')].map(select => [select.id, select.dataset.chooses])"
    )
    assert len(pickers) >= 7
    for picker, figure in pickers:
        values = page.evaluate("id => [...document.getElementById(id).options].map(option => option.value)", picker)
        shown = set()
        for value in values:
            page.locator(f"[id='{picker}']").select_option(value)
            shown.add(
                page.evaluate("id => JSON.stringify(document.querySelector(`[data-figure='${id}']`).data)", figure)
            )
        assert len(shown) > 1 or len(values) == 1, picker


def test_the_slider_of_depths_emphasises_one_method(visit):
    page = visit("depths")
    slider, words = page.locator("#depth-slider"), page.locator("#depth-words")
    before = words.text_content()
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert words.text_content() != before and slider.get_attribute("aria-valuetext") == words.text_content()


def test_an_example_is_found_by_its_words_and_by_keyboard(visit):
    page = visit("latents")
    box = page.locator("#example")
    box.click()
    items = page.locator("#example-list li")
    every = items.count()
    word = items.first.text_content().split()[-1]
    box.fill(word)
    assert 1 <= items.count() <= every and all(word in text for text in items.all_text_contents())
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert word in box.input_value() and page.locator("#view .tok").count() > 1


def test_a_latent_is_opened_by_its_address_and_the_search_narrows_the_table(visit):
    page = visit("latents", hash="#latent/full%20%C2%B7%20seed%200/1/base/2")
    assert "Latent 2: layer 1, base dictionary" in page.locator("#ex-latent").text_content()
    assert page.locator("#ex-latent svg a").count() == 0
    names = page.evaluate("() => [...document.querySelectorAll('#ex-latent .plot')].map(plot => plot.dataset.figure)")
    assert names == ["latent-1-base-2-activations", "latent-1-base-2-labels"]
    ticks = page.locator("#ex-latent [data-figure$=labels] .xtick text").all_text_contents()
    assert LINK in ticks  # the label, not a link
    rows = page.locator("#ex-table tbody tr")
    every = rows.count()
    page.locator("#ex-search").fill("2")
    assert 0 < rows.count() <= every
    page.locator("#ex-search").fill("no such latent")
    assert rows.count() == 0


def test_links_open_what_they_point_to_and_the_contents_list_marks_it(visit):
    page = visit("depths")
    for link in page.locator("nav a").all():
        target = link.get_attribute("href")[1:]
        page.evaluate("target => { location.hash = target; }", target)
        page.wait_for_function(
            "target => document.getElementById(target).getBoundingClientRect().top < innerHeight", arg=target
        )
    page.evaluate("location.hash = 'figure-differences'")
    page.wait_for_function("() => document.querySelector('nav [aria-current=location]').hash === '#figure-differences'")
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_a_link_opens_the_fold_around_its_target(visit):
    page = visit("depths")
    wrap = """() => {
        const fold = document.createElement("details"), node = document.getElementById("figure-pareto");
        node.replaceWith(fold);
        fold.append(node);
    }"""
    page.evaluate(wrap)
    assert not page.locator("#figure-pareto").is_visible()
    page.evaluate("() => { location.hash = 'figure-pareto'; }")
    page.locator("#figure-pareto").wait_for(state="visible")


def test_a_link_to_a_figure_of_another_method_shows_that_method(visit):
    page = visit("features")
    hidden = page.evaluate("() => [...document.querySelectorAll('.of-method[hidden] .plot')].map(plot => plot.id)")
    numbered = next(name for name in hidden if name[-1].isdigit())
    page.evaluate("name => { location.hash = name; }", numbered)
    page.locator(f"#{numbered} .main-svg").first.wait_for(state="visible")


@pytest.mark.parametrize("name", ["depths", "comparison"])
@pytest.mark.parametrize(("form", "start"), [("png", b"\x89PNG"), ("svg", b"<svg")])
def test_a_figure_is_downloaded_under_the_policy(name, form, start, visit, tmp_path):
    page = visit(name, scheme="dark")
    plot = page.locator(".plot").first
    identity = plot.get_attribute("data-figure")
    with page.expect_download() as waiting:
        plot.locator(f"[data-title='Download as {form.upper()}']").click()
    run = page.evaluate("document.body.dataset.run")
    assert waiting.value.suggested_filename == f"{run}-{identity}.{form}"
    waiting.value.save_as(tmp_path / "image")
    content = (tmp_path / "image").read_bytes()
    assert content.startswith(start) and len(content) > 3000
    if form == "svg":  # dark on white, also from a dark page
        text = content.decode()
        assert "rgb(27, 31, 36)" in text and re.search(r'class="bg"|main-svg', text)


def test_runs_are_sorted_by_any_column_with_the_keyboard(visit):
    page = visit("comparison")
    heads = page.locator("table[aria-label=Runs] th")
    names = [head.strip() for head in heads.all_text_contents()]

    def column(name):
        return page.locator(f"table[aria-label=Runs] td:nth-child({names.index(name) + 1})").all_text_contents()

    assert heads.evaluate_all("heads => heads.map(head => head.getAttribute('aria-sort'))") == ["none"] * len(names)
    assert column("run") == ["one " + LINK, "two", "three"]
    by_accuracy = sorted(column("accuracy"), key=lambda text: float(text.partition("%")[0]))
    button = heads.nth(names.index("accuracy")).locator("button")
    for key, order in (("Enter", "ascending"), ("Space", "descending"), ("Enter", "ascending")):
        button.press(key)
        assert column("accuracy") == (by_accuracy if order == "ascending" else by_accuracy[::-1])
        assert heads.nth(names.index("accuracy")).get_attribute("aria-sort") == order
    heads.first.locator("button").click()
    assert column("run") == ["one " + LINK, "three", "two"]
    sorted_by = heads.evaluate_all("heads => heads.map(head => head.getAttribute('aria-sort'))")
    assert sorted_by == ["ascending"] + ["none"] * (len(names) - 1)
    # What a run lacks comes last, in both directions.
    depth = heads.nth(names.index("sufficient depth")).locator("button")
    for _ in range(2):
        depth.click()
        assert column("sufficient depth")[-1] == "–"


def test_names_and_texts_are_shown_as_they_are(visit):
    page = visit("hostile")
    assert page.locator("svg a, main img").count() == 0
    assert page.evaluate("[...document.links].every(link => link.hash || link.download)")
    shown = page.locator("#made").text_content()
    assert LINK in shown and RIGHT_TO_LEFT in shown and EMOJI in shown and EVIL in shown
    page = visit("comparison")
    assert page.locator("svg a").count() == 0
    assert any("one " + LINK in text for text in page.locator(".legendtext").all_text_contents())


def test_wide_tables_can_be_scrolled_by_keyboard_and_show_that_they_do(visit):
    page = visit("depths", width=400)
    wide = page.locator(".wide.scrolls").first
    wide.wait_for(state="attached")
    assert wide.get_attribute("tabindex") == "0" and wide.get_attribute("role") == "region"
    assert wide.get_attribute("aria-label").endswith("scrolls sideways")
    assert "scrolls sideways" in wide.evaluate("node => getComputedStyle(node, '::before').content")


def test_print_is_dark_on_white(visit):
    page = visit("depths", scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    style = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.querySelector('nav')).display]"
    )
    assert style == ["rgb(27, 31, 36)", "none"]
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.querySelector('.plot').layout.font.color") == "#1b1f24"


def test_token_tables_show_texts_of_other_scripts():
    html = render_page(*_with_texts())
    assert RIGHT_TO_LEFT.split()[0] in html and "🎉" in html


def _with_texts():
    made, about = study(("full",))
    return made | token_tables([RIGHT_TO_LEFT, EMOJI], ["a", "b"]), about
