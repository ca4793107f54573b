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
from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from whole import whole

from layerprobe.report.comparison import ComparedRun
from layerprobe.report.comparison.sections import SECTIONS
from layerprobe.report.comparison.tables import compare
from layerprobe.report.overview import IndexedComparison, IndexedRun, overview, render_index
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


def byte_level(texts):
    """The table `tokens` of texts by example id under a byte-level BPE that has only bytes and spaces before them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["plain words plain words"], trainer)
    rows = []
    for key, text in texts.items():
        encoded = tokenizer.encode(text)
        places = [("<s>", (None, None)), *zip(encoded.tokens, encoded.offsets, strict=True), ("</s>", (None, None))]
        for index, (token, (start, end)) in enumerate(places):
            start = None if start is None else start + text[start:end].startswith(" ")
            rows.append({"example_id": key, "token_index": index, "token": token, "start": start, "end": end})
    table = pd.DataFrame(rows).astype({"start": "Int32", "end": "Int32"})
    return table.assign(special=table.start.isna())


def explored():
    """A study whose tokenizer works on bytes, with one example of each change of the prediction."""
    made, about = study(("head", "full"))
    texts = {"test-0": f"{EMOJI} party", "test-1": RIGHT_TO_LEFT, "test-2": "Some plain words", "test-3": "Other words"}
    tokens = byte_level(texts)
    layers = [tokens.assign(layer=layer, change=0.1 * layer * tokens.token_index / 10) for layer in range(3)]
    sentences = pd.concat(layers, ignore_index=True).drop(columns=["start", "end"])
    answers = {
        "reference:logistic-mean": ["neutral", "positive", "neutral", "positive"],
        "full": ["positive", "positive", "neutral", "negative"],
        "head": ["positive", "positive", "positive", "positive"],
    }
    predictions = [
        pd.DataFrame({"example_id": list(texts), "label": "positive", "predicted": given}).assign(method=method)
        for method, given in answers.items()
    ]
    runs = [sentences.assign(method="head", change=0.0), sentences.assign(method="full")]
    return made | {
        "examples": pd.DataFrame({"example_id": list(texts), "text": texts.values()}).assign(
            label="positive", split="test"
        ),
        "tokens": tokens,
        "sentences": pd.concat(runs, ignore_index=True).assign(seed=0),
        "predictions": pd.concat(predictions, ignore_index=True).assign(seed=0, split="test", probability=0.8),
    }, about


def comparison():
    """Tables and record of a comparison of three runs, one of them with a hostile name, and one without a conclusion."""
    runs = []
    for label, seed in (("one " + LINK, 0), ("two", 1), ("three", 1)):
        made, about = study(("head", "top:2", "full"), seed=seed)
        if label == "three":
            about = about.model_copy(update={"sufficiency": None})
        runs.append(ComparedRun(label, "folder", about, made))
    return compare(runs)


def indexed():
    """An index of runs: hostile names, a warning, a failed run, and a folder that is no run."""
    made, about = study()
    evil = about.model_copy(update={"name": LINK, "question": EVIL})
    failed = record(name="failed", status="failed", error=LINK)
    runs = [
        IndexedRun("plain", "./plain/index.html", about, overview(made, about)),
        IndexedRun(f"{RIGHT_TO_LEFT} {EMOJI}", None, evil, overview(made, evil).model_copy(update={"warning": LINK})),
        IndexedRun("failed", None, failed, overview({}, failed)),
    ]
    comparisons = [IndexedComparison("sweep", "./sweep/index.html", (LINK, "two"))]
    return render_index("reports", runs, comparisons, [f"{EVIL}: holds no run.json"])


PAGES = {
    "depths": lambda: render_page(*study()),
    "latents": lambda: render_page(*dictionaries()),
    "explored": lambda: render_page(*explored()),
    "hostile": lambda: render_page(*twenty_classes()),
    "comparison": lambda: render_page(*comparison(), SECTIONS),
    "features": lambda: render_page(*many_features()),
    "everything": lambda: render_page(*whole()),
    "energy": lambda: render_page(*energy_study()),
    "nothing": lambda: render_page({}, record()),
    "index": indexed,
}

ACCESSIBLE = [("everything", *view) for view in VIEWS] + [
    (name, *view)
    for name in PAGES
    if name not in ("everything", "depths", "latents", "features")  # whose sections are all in "everything"
    for view in (VIEWS[0], VIEWS[-1])
]


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


@pytest.mark.parametrize(("name", "width", "scheme"), ACCESSIBLE)
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


def test_every_picker_draws_what_was_chosen(visit):
    page = visit("everything")
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    # Each combination of the pickers of a figure draws the variant of these values, and another one than the others do.
    wrong = page.evaluate(
        """() => [...document.querySelectorAll("[data-figure]")].flatMap(node => {
            const pickers = controlsOf(node), seen = new Map(), wrong = [];
            if (!pickers.length) return [];
            const choose = chosen => {
                if (chosen.length < pickers.length) {
                    return [...pickers[chosen.length].options].forEach(option => choose([...chosen, option.value]));
                }
                const key = chosen.join("|"), variant = figures[node.dataset.figure][key];
                chosen.forEach((value, i) => { pickers[i].value = value; });
                pickers[0].dispatchEvent(new Event("change"));
                const drawn = JSON.stringify(node.data.map(trace => [trace.name, trace.x, trace.y, trace.z]));
                const meant = !variant ? "[]" : JSON.stringify(variant.data.map(trace => [trace.name, trace.x, trace.y, trace.z]));
                if (drawn !== meant) wrong.push(`${node.dataset.figure} ${key}: another variant`);
                seen.set(key, drawn);
            };
            choose([]);
            if (seen.size > 1 && new Set(seen.values()).size === 1) wrong.push(`${node.dataset.figure}: always the same`);
            return [...wrong, `drawn: ${node.dataset.figure} ${seen.size}`];
        })"""
    )
    drawn = dict(line.split()[1:] for line in wrong if line.startswith("drawn: "))
    assert len(drawn) >= 12 and {"drift", "row_sets", "layer_grid", "basis_effects", "matching"} <= set(drawn)
    assert drawn["drift"] == "3" and not [line for line in wrong if not line.startswith("drawn: ")]


def test_a_figure_in_a_fold_is_drawn_when_it_is_opened(visit):
    page = visit("everything")
    assert page.locator("#figure-geometry .main-svg").count() == 0
    page.locator("#drift summary", has_text="Geometry").click()
    page.locator("#figure-geometry .main-svg").first.wait_for(state="visible")
    width = "document.querySelector('#figure-geometry').getBoundingClientRect().width"
    assert page.evaluate(width) > 500


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


def test_an_emoji_is_found_in_the_text_whatever_the_tokenizer_makes_of_it(visit):
    page = visit("explored")
    box, items = page.locator("#example"), page.locator("#example-list li")
    for query in ("🎉", "👩‍👩‍👧", "naive PARTY", "naïve"):
        box.fill(query)
        assert items.all_text_contents() == [f"positive: {EMOJI} party"], query
    page.keyboard.press("Enter")
    rows = page.locator("#view .row")
    assert rows.count() == 3  # every layer
    words = rows.last.locator(".tok").all_text_contents()
    assert words[:5] == ["<s>", *(f"🎉 {part}/4" for part in range(1, 5))] and {"U+200D 1/3", "ï 2/2"} <= set(words)
    assert not {"Ġ", "ð"} & set("".join(words))
    # The last token has the largest change of this example, and so the strongest colour.
    assert rows.last.locator(".tok").last.evaluate("node => node.style.getPropertyValue('--value')") == "1.000"
    box.fill(RIGHT_TO_LEFT.split()[0])
    assert items.count() == 1
    # One stop of the tab key per line, and arrow keys along it.
    assert page.locator("#view .tok[tabindex='0']").count() == 3
    page.keyboard.press("Enter")
    rows.first.locator(".tok").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#token-value").text_content().startswith("layer 0, ש")


def test_examples_are_filtered_by_the_change_of_their_prediction(visit):
    page = visit("explored")
    chosen, items, facts = page.locator("#filter"), page.locator("#example-list li"), page.locator("#example-facts")
    assert chosen.locator("option").all_text_contents() == [
        "all examples (4)",
        "wrong → right (1)",
        "right → wrong (1)",
        "right both times (1)",
        "wrong both times (1)",
    ]
    for kind, text in (("gained", EMOJI), ("lost", "Other"), ("right", RIGHT_TO_LEFT), ("wrong", "Some plain words")):
        chosen.select_option(kind)
        page.locator("#example").click()
        assert items.count() == 1 and text in items.first.text_content()
    before, after = facts.locator("dd").all_text_contents()[1:]
    assert (before, after) == ("neutral (wrong)", "neutral (wrong)")
    assert "logistic regression on the mean over tokens of the frozen base encoder" in facts.text_content()
    page.locator("#run").select_option("head · seed 0")
    assert "No shown example is “wrong both times” under head · seed 0." in page.locator("#legend").text_content()
    assert page.locator("#view .row").count() == 0


def test_a_latent_is_opened_by_its_address(visit):
    page = visit("latents", hash="#latent-1-2-base")
    opened = page.locator("#ex-latent")
    assert "Latent 2: layer 1, base dictionary, full · seed 0 (both)" in opened.text_content()
    assert "Top tokens, with their shares of its activation: naïve2 52%, the 10%" in opened.text_content()
    assert opened.locator("svg a").count() == 0 and opened.locator(".example").count() == 2
    names = page.evaluate("() => [...document.querySelectorAll('#ex-latent .plot')].map(plot => plot.dataset.figure)")
    assert names == ["latent-1-base-2-activations", "latent-1-base-2-labels"]
    ticks = page.locator("#ex-latent [data-figure$=labels] .xtick text").all_text_contents()
    assert any(LINK.startswith(tick.rstrip("…")) and len(tick) > 20 for tick in ticks)  # the label, not a link
    # Without a side, an address is of the adapted dictionary; this latent has no histogram.
    page.evaluate("location.hash = 'latent-1-3'")
    page.wait_for_function("document.getElementById('ex-latent').textContent.includes('Latent 3: layer 1, adapted')")
    assert opened.locator(".plot").count() == 0 and opened.locator(".example").count() == 2
    strong = opened.locator(".example").first.locator(".tok").nth(1)
    assert strong.text_content() == "word" and strong.get_attribute("title") == "word: 2.00"
    page.evaluate("location.hash = 'latent-1-0-base-' + encodeURIComponent('head · seed 0')")
    page.wait_for_function("document.getElementById('ex-latent').textContent.includes('head · seed 0')")
    assert page.locator("#ex-run").input_value() == "head · seed 0"
    page.evaluate("location.hash = 'latent-1-4'")
    page.wait_for_function("document.getElementById('ex-latent').textContent.includes('is inactive')")


def test_every_latent_of_the_table_opens_at_an_address_of_its_own(visit):
    page = visit("latents")
    page.locator("#ex-side").select_option("adapted")
    buttons = page.locator("#ex-table .open")
    assert buttons.count() == page.locator("#ex-table tbody tr").count() == 5
    for number in buttons.all_text_contents():
        page.locator("#ex-table .open", has_text=re.compile(f"^{number}$")).click()
        page.wait_for_function(
            "number => document.querySelector('#ex-latent h3')?.textContent.startsWith(`Latent ${number}:`)", arg=number
        )
        assert page.evaluate("location.hash") == f"#latent-1-{number}"


def test_latents_are_searched_by_token_label_and_text(visit):
    page = visit("latents")
    page.locator("#ex-side").select_option("base")
    within, search, cells = page.locator("#ex-in"), page.locator("#ex-search"), page.locator("#ex-table td:first-child")

    def found(where, words):
        within.select_option(where)
        search.fill(words)
        return sorted(cells.all_text_contents())

    assert found("any", "") == ["0", "1", "2", "3", "5"]
    assert found("any", "3") == ["3"] == found("token", "naive3")
    assert found("label", "a") == ["0", "2", "5"]  # the label of 5 has markup with this letter
    assert found("text", "WORD") == ["0", "1", "2", "3", "5"] and found("text", "word alert") == []
    assert found("token", "no such token") == []


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
