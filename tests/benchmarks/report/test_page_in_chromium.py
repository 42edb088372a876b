"""The page in a real browser: it renders, says nothing on the console, sorts, fits a phone, and follows dark mode.

Chromium and its driver are Debian's (`apt install chromium chromium-driver`); without them these tests skip.
"""

import json
import re
import shutil

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
DESKTOP, WIDE, PHONE, PAPER = (1280, 900), (1440, 900), (390, 844), (1032, 700)

pytestmark = pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="needs chromium and chromium-driver")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium with an empty profile of its own."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(page_of_two, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page_of_two)
    return path.as_uri()


@pytest.fixture
def page(browser, address):
    """The page, newly loaded on a desktop in light mode."""
    from selenium.webdriver.support.ui import WebDriverWait

    def load(*, size=DESKTOP, scheme="light", scripts=True, medium="screen"):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False},
        )
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"media": medium, "features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        # The same address again is a reload, and `get` may take the page that is there for the new one.
        browser.execute_script("window.isFormer = true")
        browser.get(address)
        WebDriverWait(browser, 60).until(is_new)
        return browser

    yield load
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def is_new(browser):
    return browser.execute_script("return !window.isFormer && document.readyState === 'complete'")


def column(browser, title):
    """What the visible rows of the table say in a column, from top to bottom."""
    return browser.execute_script(
        """
        const table = document.getElementById("rows");
        const titles = [...table.tHead.rows[0].cells].map(cell => cell.querySelector("button").firstChild.data.trim());
        const index = titles.indexOf(arguments[0]);
        return [...table.tBodies[0].rows].filter(row => row.checkVisibility())
            .map(row => row.cells[index].querySelector(".value").textContent);
        """,
        title,
    )


def header(browser, title):
    return next(
        each
        for each in browser.find_elements("css selector", "#rows thead th")
        if each.text.split("\n")[0].startswith(title)
    )


def numbers(texts):
    return [float(text.replace(",", "")) for text in texts if re.match(r"[\d.,]+$", text)]


def test_it_renders_without_a_word_on_the_console_and_without_a_request(page, address):
    browser = page()
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    requested = {each["request"]["url"] for each in requests if each["documentURL"] == address}

    assert browser.title.startswith("Benchmark on ")
    assert browser.get_log("browser") == []
    assert {url for url in requested if not url.startswith("data:")} == {address}
    charts = browser.find_elements("css selector", "figure svg")
    assert len(charts) == 17
    assert all(chart.size["width"] > 300 and chart.size["height"] > 100 for chart in charts)


def test_a_click_on_a_column_sorts_by_it_and_another_one_the_other_way(page):
    browser = page()
    button = header(browser, "p50").find_element("tag name", "button")
    button.click()
    ascending = numbers(column(browser, "p50"))
    states = [header(browser, "p50").get_attribute("aria-sort")]
    button.click()

    assert len(ascending) == 6
    assert ascending == sorted(ascending)
    assert numbers(column(browser, "p50")) == ascending[::-1]
    assert [*states, header(browser, "p50").get_attribute("aria-sort")] == ["ascending", "descending"]
    assert header(browser, "p90").get_attribute("aria-sort") == "none"
    assert browser.find_element("id", "sorted").get_attribute("textContent") == "Sorted by p50 ms, descending."


def test_the_keyboard_sorts_as_well(page):
    from selenium.webdriver.common.keys import Keys

    browser = page()
    header(browser, "Size").find_element("tag name", "button").send_keys(Keys.ENTER)

    sizes = numbers(column(browser, "Size"))
    assert sizes == sorted(sizes)
    assert header(browser, "Size").get_attribute("aria-sort") == "ascending"


@pytest.mark.parametrize("clicks", [1, 2])
def test_what_is_not_known_comes_last_in_both_directions(page, clicks):
    browser = page()
    for _ in range(clicks):
        header(browser, "H").find_element("tag name", "button").click()

    assert column(browser, "H")[-2:] == ["–", "–"]


def test_names_sort_as_text(page):
    browser = page()
    header(browser, "Target").find_element("tag name", "button").click()

    assert column(browser, "Target") == ["fused", "fused", "original", "original", "updatable", "updatable"]


def test_the_batch_size_is_chosen(page):
    browser = page()
    shown = [set(column(browser, "Batch"))]
    for choice in browser.find_elements("css selector", "fieldset label")[1:]:
        choice.click()
        shown.append(set(column(browser, "Batch")))

    assert shown == [{"1"}, {"8"}, {"1", "8"}]


def test_without_scripts_every_row_is_there_and_no_control_that_would_do_nothing(page):
    browser = page(scripts=False)
    rows = browser.find_elements("css selector", "#rows tbody tr")

    assert len(rows) == 12
    assert all(row.is_displayed() for row in rows)
    assert not browser.find_element("class name", "controls").is_displayed()


@pytest.mark.parametrize(
    ("medium", "size"),
    [("screen", WIDE), ("screen", PHONE), ("screen", (320, 640)), ("screen", (768, 1024)), ("print", PAPER)],
)
def test_nothing_is_wider_than_a_screen_or_a_sheet_of_paper(page, medium, size):
    browser = page(size=size, medium=medium)
    widths = browser.execute_script(
        "const root = document.documentElement; return [innerWidth, root.scrollWidth - root.clientWidth]"
    )

    assert widths == [size[0], 0]


@pytest.mark.parametrize("width", [720, 1100, 1215, 1217, 1300])
def test_no_column_of_a_table_is_cut_off_on_a_desktop(page, width):
    browser = page(size=(width, 800))
    hidden = browser.execute_script(
        "return [...document.querySelectorAll('.table')].map(each => each.scrollWidth - each.clientWidth)"
    )

    assert hidden
    assert set(hidden) == {0}


def test_a_phone_shows_rows_as_cards_that_sort(page):
    from selenium.webdriver.support.select import Select

    browser = page(size=PHONE)
    cell = browser.find_element("css selector", "#rows tbody td.number")
    label = browser.execute_script("return getComputedStyle(arguments[0], '::before').content", cell)
    choice = Select(browser.find_element("id", "sort-by"))
    choice.select_by_visible_text("p50")

    assert label.strip('"') == cell.get_attribute("data-title")
    medians = numbers(column(browser, "p50"))
    assert medians == sorted(medians)
    letters = browser.execute_script(
        "return [...document.querySelectorAll('figure svg text')].map(text => text.getBoundingClientRect().height)"
    )
    assert min(letters) >= 8, "letters of a chart are too small to read"


def test_paper_shows_every_row_in_light_colors(page):
    browser = page(size=PAPER, medium="print", scheme="dark")

    assert len(column(browser, "Batch")) == 12
    shown = browser.execute_script(
        "return [...document.querySelectorAll('#rows tbody tr')].map(row => getComputedStyle(row).display)"
    )
    assert set(shown) == {"table-row"}
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_dark_mode_changes_the_ground_and_the_charts(page):
    seen = {}
    for scheme in ("light", "dark"):
        browser = page(scheme=scheme)
        seen[scheme] = browser.execute_script(
            """
            const text = document.querySelector("figure svg text");
            const line = document.querySelector("figure svg path[style*=series]");
            return [getComputedStyle(document.body).backgroundColor, getComputedStyle(text).fill,
                    getComputedStyle(line).stroke + getComputedStyle(line).fill];
            """
        )

    def brightness(color):
        return sum(int(each) for each in re.findall(r"\d+", color)[:3])

    (light_ground, light_text, light_line), (dark_ground, dark_text, dark_line) = seen["light"], seen["dark"]
    assert brightness(light_ground) > 700 > 100 > brightness(dark_ground)
    assert brightness(light_text) < 350 < 450 < brightness(dark_text)
    assert light_line != dark_line


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_no_text_of_a_chart_lies_on_another_one(page, size):
    found = page(size=size).execute_script(
        """
        const overlaps = [];
        for (const svg of document.querySelectorAll("figure svg")) {
          const boxes = [...svg.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()]);
          boxes.forEach(([name, box], index) => boxes.slice(index + 1).forEach(([other, next]) => {
            const across = Math.min(box.right, next.right) - Math.max(box.left, next.left);
            const up = Math.min(box.bottom, next.bottom) - Math.max(box.top, next.top);
            if (across > 1 && up > 0.35 * Math.min(box.height, next.height)) overlaps.push([svg.id, name, other]);
          }));
        }
        return [document.querySelectorAll("figure svg text").length, overlaps];
        """
    )
    assert found[0] > 100
    assert found[1] == []
