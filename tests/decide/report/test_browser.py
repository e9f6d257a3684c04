"""The page in a browser fits, is legible, loads nothing, has working filters, and executes no text from the data."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.builders.kinds import Change
from tests.builders.report_answers import HOSTILE
from tests.builders.report_run import make_run, make_undecided

pytestmark = pytest.mark.slow

CHROMIUM = Path("/usr/bin/chromium")
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
QUIET += "--disable-component-update --disable-sync"
SIZES = [(1280, 900), (390, 844)]
SCHEMES = ["light", "dark"]
LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3, level AA
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", event => window.violations.push(event.violatedDirective));
"""
# Contrast of every element with text of its own against the first background below it, as WCAG defines it.
CONTRASTS = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [.2126, .7152, .0722][at], 0);
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const own = element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    if (["SCRIPT", "STYLE", "OPTION"].includes(element.tagName) || !own(element)) continue;
    if (!element.checkVisibility({visibilityProperty: true})) continue;
    const style = getComputedStyle(element);
    const [front, back] = [rgba(element.closest("svg") ? style.fill : style.color), ground(element)].map(light);
    const ratio = (Math.max(front, back) + .05) / (Math.min(front, back) + .05);
    found.push([ratio, element.tagName + "." + element.getAttribute("class"), element.textContent.slice(0, 40)]);
  }
  return found;
}
"""


def fail_or_skip(what: str) -> NoReturn:
    """Fail in CI if there is no browser; elsewhere skip with a warning."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}: this test must run in CI; install chromium (apt-get install chromium) and playwright")
    pytest.skip(f"PAGE NOT TESTED IN A BROWSER: {what}; install chromium (apt-get install chromium) and playwright")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start Chromium headless and without network traffic of its own."""
    if not CHROMIUM.exists():
        fail_or_skip(f"{CHROMIUM} does not exist")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        fail_or_skip("the package playwright is not installed")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=QUIET.split())
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, change: Change) -> dict[str, Path]:
    """Write the pages of a good run and of a run full of hostile texts."""
    folder = tmp_path_factory.mktemp("report")
    for name, made in (("deploy", make_run(change)), ("iterate", make_undecided(change))):
        (folder / f"{name}.html").write_text(made.html(), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in ("deploy", "iterate")}


class Opened:
    """An open page, with its console errors and its network requests."""

    def __init__(self, browser: Any, path: Path, size: tuple[int, int], scheme: str, **options: Any) -> None:
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, **options
        )
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.add_init_script(WATCH)
        self.page.goto(path.as_uri())

    def shown(self) -> int:
        """Return the number of visible examples."""
        return int(
            self.page.evaluate("[...document.querySelectorAll('.example')].filter(row => row.checkVisibility()).length")
        )


@pytest.fixture
def opened(browser: Any, pages: dict[str, Path]) -> Iterator[Callable[..., Opened]]:
    """`opened("deploy", size=(390, 844), scheme="dark")`: open the page in the browser, and close it after the test."""
    made: list[Opened] = []

    def open_one(name: str, size: tuple[int, int] = SIZES[0], scheme: str = "light", **options: Any) -> Opened:
        made.append(Opened(browser, pages[name], size, scheme, **options))
        return made[-1]

    yield open_one
    for one in made:
        one.context.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}px")
@pytest.mark.parametrize("name", ["deploy", "iterate"])
def test_the_page_fits_is_legible_and_fetches_nothing(
    opened: Callable[..., Opened], name: str, size: tuple[int, int], scheme: str
) -> None:
    """The page fits phone and desktop, light and dark, whatever the data contain, also with every detail opened."""
    one = opened(name, size, scheme)
    one.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    wide = one.page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1] == size[0]
    assert one.asked == [one.page.url]
    assert (one.said, one.page.evaluate("window.violations")) == ([], [])
    measured = one.page.evaluate(CONTRASTS)
    weak = [item for item in measured if item[0] < LEAST_CONTRAST]
    assert len(measured) > 300 and not weak, weak[:5]


def test_hostile_texts_are_shown_and_not_executed(opened: Callable[..., Opened]) -> None:
    """Model output that looks like a script, reverses the writing direction or has two megabytes is shown as text."""
    one = opened("iterate")
    one.page.wait_for_timeout(200)
    assert one.page.title() == "Iterate \u2013 tiny: # no ---"
    assert one.page.locator("img").count() == 0 and one.page.locator("script").count() == 1
    text = one.page.locator("body").text_content()
    assert HOSTILE[:40] in text and "⟨U+202E⟩ txt.exe⟨U+2028⟩" in text and "⟨U+0000⟩" in text
    assert "more characters]" in text and len(text) < 600_000


def test_filters_work_by_mouse(opened: Callable[..., Opened]) -> None:
    """Filters for kind, agent and words combine; if no row matches, the page says so."""
    one = opened("deploy")
    page = one.page
    assert one.shown() == 30 and page.locator("[data-count]").text_content() == "200 of 200 examples shown"
    button = page.locator("button[data-tag=regression]")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    regressions = one.shown()
    assert 0 < regressions < 60
    assert page.locator(".example[data-tags~=regression]").count() == regressions
    page.locator("#examples select").select_option("exception-namer")
    assert 0 < one.shown() < regressions
    page.locator("button[data-tag='']").click()
    page.locator("#examples select").select_option("")
    page.locator("input[type=search]").fill("valueerror STREAM")
    assert 0 < one.shown() < 200
    page.locator("input[type=search]").fill("no such word")
    assert one.shown() == 0 and page.locator("[data-none]").is_visible()
    page.locator("input[type=search]").fill("")
    assert page.locator("[data-count]").text_content() == "200 of 200 examples shown"


def test_filters_work_by_keyboard(opened: Callable[..., Opened]) -> None:
    """Tab reaches every control in page order, and each reacts to the usual keys."""
    one = opened("deploy")
    keys = one.page.keyboard
    one.page.locator("button[data-tag='']").focus()
    keys.press("Tab")
    keys.press("Space")
    assert one.page.evaluate("document.activeElement.dataset.tag") == "failed"
    assert one.page.locator("button[data-tag=failed]").get_attribute("aria-pressed") == "true"
    assert one.shown() == one.page.locator(".example[data-tags~=failed]").count() > 0
    for _ in range(len(one.page.locator("button[data-tag]").all()) - 1):
        keys.press("Tab")
    assert one.page.evaluate("document.activeElement.tagName") == "SELECT"
    keys.press("Tab")
    keys.type("503")
    assert one.shown() == 5
    keys.press("Tab")
    keys.press("Enter")
    assert one.page.locator("details[open] .opened").first.is_visible()
    outline = one.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_the_page_is_readable_without_scripts_and_in_print(opened: Callable[..., Opened]) -> None:
    """The script only filters; in print, controls are hidden and folded sections are open."""
    one = opened("deploy", java_script_enabled=False)
    assert not one.page.locator(".filters").is_visible()
    assert one.page.locator(".example").count() == 200
    assert one.page.locator(".lead").is_visible()
    paper = opened("deploy")
    paper.page.emulate_media(media="print")
    assert not paper.page.locator(".filters").is_visible() and not paper.page.locator("nav").is_visible()
    assert paper.page.pdf(format="A4").startswith(b"%PDF")
