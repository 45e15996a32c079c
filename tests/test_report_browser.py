"""The report as people see it: in a headless Chromium, on a wide and a narrow screen, light and dark."""

import os
import shutil

import pytest

from dcvit.report import render
from tests.test_report import HOSTILE, STUDIES, hostile, words

WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
PAGES = {
    "nothing": lambda: [STUDIES["nothing"]()],
    "smoke": lambda: [STUDIES["smoke"]()],
    "small": lambda: [STUDIES["small"]()],
    "paper": lambda: [STUDIES["paper"]()],
    "three": lambda: [STUDIES[name]() for name in ("small", "smoke", "paper")],
    "hostile": lambda: [hostile()],
}


def _missing(reason):
    """In CI a browser is there, and a test that needs one must not pass without."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        _missing("no chromium: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        _missing("no playwright: python -m pip install playwright")
    with sync_playwright() as playwright:
        # no sandbox: it needs rights that root in a container does not have
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The path of a page by its name, each written once."""
    folder, written = tmp_path_factory.mktemp("pages"), {}

    def path(name):
        if name not in written:
            written[name] = folder / f"{name}.html"
            written[name].write_text(render(PAGES[name]()), encoding="utf-8")
        return written[name]

    return path


class Visit:
    """A page that was opened, what it said to the console, and what it asked the network for."""

    def __init__(self, browser, path, *, width=1280, scheme="light"):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.path = path

    def open(self, key):
        """Clicks on a cell; the dialog's text."""
        self.page.locator(f"[data-cell='{key}']").click()
        return self.text("dialog")

    def text(self, place):
        return words(self.page.locator(place).inner_text())


@pytest.fixture
def visit(browser, files):
    opened = []

    def go(name, **settings):
        opened.append(Visit(browser, files(name), **settings))
        return opened[-1]

    yield go
    for one in opened:
        one.context.close()


# --- loads, and stays on the screen --------------------------------------------------------

# Elements that stick out of the window, but for what lies in a place that scrolls by itself.
STICK_OUT = """() => [...document.querySelectorAll("body *")]
  .filter((element) => !element.closest(".unseen, .skip, svg, dialog:not([open])"))
  .filter((element) => {
    const inside = element.parentElement.closest(".scroll, nav > .wide");
    const box = element.getBoundingClientRect();
    return !inside && box.width > 0 && (box.right > innerWidth + 0.5 || box.left < -0.5);
  })
  .map((element) => `${element.tagName} ${element.className} ${element.textContent.slice(0, 40)}`)"""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_in_silence_from_one_file_and_stays_on_the_screen(visit, name, width):
    there = visit(name, width=width)
    page = there.page
    page.wait_for_load_state()
    assert there.said == []
    assert [url for url in there.asked if not url.startswith("data:")] == [there.path.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == page.evaluate("innerWidth") == width
    assert page.evaluate(STICK_OUT) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_wide_tables_scroll_inside_of_their_own_place(visit, width):
    page = visit("small", width=width).page
    table = page.locator("#s0-learning .scroll").first
    assert table.evaluate("place => place.scrollWidth > place.clientWidth")
    table.evaluate("place => place.scrollTo(9999, 0)")
    assert page.evaluate("scrollX") == 0
    name = table.locator("tbody th").first
    assert name.bounding_box()["x"] == pytest.approx(
        table.bounding_box()["x"], abs=1
    )  # its row keeps its name


def test_sections_are_not_hidden_below_the_contents(visit):
    page = visit("small").page
    page.emulate_media(reduced_motion="reduce")
    page.locator("nav a", has_text="Table 5").click()
    heading, contents = (page.locator(place).bounding_box() for place in ("#s0-table5 h3", "nav"))
    assert contents["y"] == 0
    assert contents["height"] <= heading["y"] < 300


# --- what a click shows --------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_a_click_on_a_cell_shows_the_runs_behind_it(visit, width):
    there = visit("paper", width=width)
    assert not there.page.locator("dialog").is_visible()
    text = there.open("s0-table5-2")
    assert text.startswith("× Table 5. Comparison on different backbones DeiT-T, ours: top-1")
    for said in (
        "Recipe, against DeiT-T, baseline",
        "alpha FixedAlpha(alpha=0.8) DynamicAlpha(start=0.0, tau=0.9)",
        "exploration_erasing RandomErasing(",
        "The 3 runs",
        "2026-10-02T08:30:00+00:00",
        "NVIDIA H100 80GB HBM3 (cuda)",
        "0f3c9a7d52e1b8c64a90de17f2b35c8a6e4d1b20",
        "torch 2.14.1, torchvision 0.29.1, timm 1.0.31",
        "90 % interval",
    ):
        assert said in text
    dialog = there.page.locator("dialog")
    assert dialog.locator("table.runs tbody tr").count() == 3
    assert dialog.evaluate("place => place.scrollWidth <= place.clientWidth")
    box = dialog.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert there.page.evaluate(STICK_OUT) == []
    dialog.locator("summary").first.click()
    assert "backbone.width" in there.text("dialog")
    assert there.said == []


def test_the_dialog_works_by_keyboard_and_gives_the_focus_back(visit):
    page = visit("small").page
    page.locator("[data-cell='s0-table1-6']").focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog").is_visible()
    assert page.evaluate("document.activeElement.closest('dialog') !== null")
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    assert page.evaluate("document.activeElement.dataset.cell") == "s0-table1-6"


def test_the_dialog_closes_by_its_button_and_by_a_click_beside_it(visit):
    there = visit("small")
    there.open("s0-table1-6")
    there.page.locator("dialog .close").click()
    assert not there.page.locator("dialog").is_visible()
    there.open("s0-table1-6")
    there.page.mouse.click(5, 5)
    assert not there.page.locator("dialog").is_visible()


def test_a_cell_without_runs_says_which_are_missing(visit):
    text = visit("nothing").open("s0-table1-0")
    assert "It is the baseline." in text
    assert "No run seed 0: not run" in text
    assert text.count(": not run ") == 3


# --- charts --------------------------------------------------------------------------------


def test_the_curves_show_numbers_on_hover_and_another_model_on_choice(visit):
    page = visit("small").page
    section = page.locator("#s0-curves")
    place = section.locator(".chart")
    assert (
        section.locator("[data-says]")
        .inner_text()
        .startswith("DeiT-T: 300 epochs, 2 seeds. Formation (T1) ends at")
    )
    assert (
        place.locator(".scatterlayer .trace").count() == 5
    )  # both shares as measured and as fitted, and the rate
    assert place.locator(".shapelayer path").count() == 3  # growth, shaded, and its two borders

    place.scroll_into_view_if_needed()
    box = place.bounding_box()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 150)
    page.locator(".hoverlayer text").first.wait_for()
    hover = place.locator(".hoverlayer").text_content()
    assert hover.startswith("epoch ")
    for said in ("easy :", "hard :", "rate :", " % an epoch"):
        assert said in hover

    section.locator("[data-choose=first]").select_option(label="Swin-S")
    section.locator("[data-choose=second]").select_option(label="DeiT-S, ours")
    says = section.locator("[data-says]").inner_text()
    assert says.startswith("Swin-S: 300 epochs")
    assert "DeiT-S, ours: 300 epochs" in says
    assert place.locator(".scatterlayer .trace").count() == 8
    assert section.locator("[data-choose=first] option").count() == 76


@pytest.mark.parametrize(
    ("name", "rules"), [("nothing", {"static", "staged"}), ("small", {"static", "dynamic", "staged"})]
)
def test_alpha_is_drawn_for_every_rule_that_there_is(visit, name, rules):
    page = visit(name).page
    charts = page.locator("#s0-alpha .chart")
    assert set(charts.evaluate_all("places => places.map((place) => place.dataset.chart)")) == rules
    for index in range(charts.count()):
        assert charts.nth(index).locator(".scatterlayer .trace").count() >= 2
    assert ("Nothing measured yet." in page.locator("#s0-alpha").inner_text()) == (name == "nothing")


# --- light and dark ------------------------------------------------------------------------

# The contrast of each text with what lies behind it, as WCAG 2 computes it, where it is below a bound.
PALE = """(least) => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b]
    .map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let place = element; place; place = place.parentElement) {
      const colour = parse(getComputedStyle(place).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = new Set();
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter((node) => node.nodeType === 3 && node.textContent.trim());
    if (!text.length || element.closest("script, title, dialog:not([open]), option")) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(parse(element.closest("svg") ? style.fill : style.color)), light(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const said = text[0].textContent.trim().slice(0, 30);
    const place = `${element.tagName} ${element.getAttribute("class")}`;
    if (contrast < least) found.add(`${place} ${contrast.toFixed(2)} ${said}`);
  }
  return [...found];
}"""


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["smoke", "paper"])
def test_every_text_stands_out_of_its_ground(visit, name, scheme):
    there = visit(name, scheme=scheme)
    assert there.page.evaluate(PALE, 4.5) == []
    there.open("s0-table5-2")
    assert there.page.evaluate(PALE, 4.5) == []


def test_charts_change_their_colours_with_the_page(visit):
    page = visit("small", scheme="light").page
    line = page.locator("#s0-curves .scatterlayer .js-line").first
    tick = page.locator("#s0-curves .xtick text").first
    colours = [
        (line.evaluate("it => getComputedStyle(it).stroke"), tick.evaluate("it => getComputedStyle(it).fill"))
    ]
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "() => getComputedStyle(document.querySelector('#s0-curves .xtick text')).fill === 'rgb(230, 233, 235)'"
    )
    colours.append(
        (line.evaluate("it => getComputedStyle(it).stroke"), tick.evaluate("it => getComputedStyle(it).fill"))
    )
    assert colours == [("rgb(0, 114, 178)", "rgb(28, 33, 38)"), ("rgb(86, 180, 233)", "rgb(230, 233, 235)")]


# --- records can't run scripts -------------------------------------------------------------


def test_what_records_say_is_shown_as_text_and_runs_nothing(visit):
    there = visit("hostile")
    assert f"seed 0: {words(HOSTILE)}" in there.open("s0-table1-0")
    there.page.keyboard.press("Escape")
    assert there.open("s0-table1-1").count(words(HOSTILE)) >= 8
    assert there.page.locator("dialog script, dialog img, main img, .facts b").count() == 0
    assert there.page.evaluate("window.hacked") is None
    assert there.said == []


def test_a_script_that_got_in_would_not_run(visit):
    there = visit("nothing")
    there.page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.hacked = 1";
          document.body.append(script);
          document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.hacked = 2'>");
          fetch("https://example.org/").catch(() => {});
        }"""
    )
    there.page.wait_for_timeout(200)
    assert there.page.evaluate("window.hacked") is None
    assert sum("Content Security Policy" in said for said in there.said) >= 3
