"""The page in a real browser: as a person uses it, without a word to the network."""

import json
import re
import signal
import subprocess
import sys
from urllib.parse import quote

import pytest
from helpers import planted
from helpers.reported import MARKUP, piece
from helpers.run_job import JOBS

from benchmarks.page import browser_is_here, start_browser
from neuronstats.report.page.html import WRITES

browser_missing = pytest.mark.skipif(
    not browser_is_here(),
    reason="no selenium, chromium and chromedriver here: apt install chromium-driver",
)

LOCAL = ("file://", "data:", "about:", "blob:", "chrome://")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = start_browser(tmp_path_factory.mktemp("profile"))
    driver.get("about:blank")
    driver.get_log("performance")  # the browser's own start page
    yield driver
    driver.quit()


class Page:
    """The page as a person uses it."""

    def __init__(self, driver, report):
        self.driver, self.url = driver, (report / "index.html").as_uri()

    def open(self, fragment=""):
        self.driver.get("about:blank")
        self.driver.get(self.url + fragment)

    def js(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def wait(self, code, *arguments):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 60).until(lambda _: self.js("return " + code, *arguments))

    def text(self, selector):
        return self.js("return document.querySelector(arguments[0]).textContent", selector)

    def texts(self, selector):
        code = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        return self.js(code, selector)

    def set(self, name, value):
        self.js(
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change'))",
            name, value,
        )  # fmt: skip

    def shown(self, layer, neuron):
        self.wait(
            "document.getElementById('panel').dataset.shown === arguments[0]", f"0/{layer}/{neuron}"
        )

    def press(self, key):
        self.js("document.body.dispatchEvent(new KeyboardEvent('keydown',"
                "{key: arguments[0], bubbles: true}))", key)  # fmt: skip

    def complaints(self):
        return [entry for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def requests(self):
        messages = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        return [
            m["params"]["request"]["url"]
            for m in messages
            if m["method"] == "Network.requestWillBeSent"
        ]


@pytest.fixture
def page(browser, report):
    found = Page(browser, report)
    yield found
    assert found.complaints() == []
    assert [url for url in found.requests() if not url.startswith(LOCAL)] == []


@browser_missing
def test_the_overview_shows_figures_and_numbers(page):
    page.open()
    assert MARKUP in page.text("h1")
    page.wait("[...document.images].some((i) => i.complete && i.naturalWidth > 0)")
    assert "never activated" in page.text("table.facts")
    reasons = page.texts("#empty .reason")
    assert reasons
    assert len(set(reasons)) == len(reasons)  # each is said once


@browser_missing
def test_the_table_filters_sorts_and_searches(page, run):
    table = run.neurons.to_pylist()
    page.open("#neurons")
    page.wait("document.querySelectorAll('.tabulator-row').length > 0")
    assert page.text("#count") == f"{len(table)} neurons"
    for name, true in {
        "dead": lambda r: r["dead"],
        "token": lambda r: r["detector_1"],
        "positional": lambda r: r["position_type"] is not None,
        "oscillatory": lambda r: r["position_type"] == "oscillatory",
    }.items():
        page.set("class", name)
        expected = f"{sum(bool(true(r)) for r in table)} neurons"
        page.wait("document.getElementById('count').textContent === arguments[0]", expected)
    page.set("class", "")
    page.set("layer", "2")
    page.wait(
        "document.getElementById('count').textContent === arguments[0]", f"{planted.WIDTH} neurons"
    )
    page.set("layer", "")
    page.set("token", MARKUP)
    held = [*run.table("ngrams").to_pylist(), *run.table("triggers").to_pylist()]
    found = {(r["layer"], r["neuron"]) for r in held if MARKUP in r["text"]}
    page.wait(
        "document.getElementById('count').textContent === arguments[0]", f"{len(found)} neurons"
    )
    assert MARKUP.replace(" ", "␣") in "".join(page.texts(".tabulator-cell"))
    page.set("token", "")
    page.wait(
        "document.getElementById('count').textContent === arguments[0]", f"{len(table)} neurons"
    )
    for _ in range(2):  # falling frequency
        page.js(
            "document.querySelector('[tabulator-field=frequency] .tabulator-col-title').click()"
        )
    page.wait(
        "document.querySelector('.tabulator-row [tabulator-field=frequency]').textContent"
        " === '100 %'"
    )


@browser_missing
def test_key_numbers_link_to_the_neurons_that_they_count(page, run):
    kinds = {kind: (lambda r, kind=kind: r["vocabulary_type"] == kind) for kind in WRITES}
    kinds |= {"dead": lambda r: r["dead"], "positional": lambda r: r["position_type"]}
    for name, counted in kinds.items():
        page.open()
        page.js("document.querySelector(`a[href$='class=${arguments[0]}']`).click()", name)
        count = sum(bool(counted(r)) for r in run.neurons.to_pylist())
        page.wait(
            "document.getElementById('count').textContent === arguments[0]", f"{count} neurons"
        )
        assert page.js("return document.getElementById('class').value") == name


@browser_missing
def test_a_link_names_a_neuron_and_its_panel_tells_of_it(page, report):
    page.open(f"#{quote(MARKUP, safe='')}/0/1")
    page.shown(0, 1)
    assert page.text("#name").endswith("layer 0, neuron 1")
    assert any("token detector" in text for text in page.texts(".tag"))
    assert any("Detects tokens" in text for text in page.texts("#why li"))
    assert page.js("return document.querySelectorAll('#curve canvas').length") == 1
    contexts = piece(report, 0, 1)["contexts"]
    marks = [part[0] for context in contexts for part in context["text"] if isinstance(part, list)]
    assert page.texts("#contexts mark") == marks
    assert set(marks) == {MARKUP}
    assert page.js("return document.querySelectorAll('#panel b').length") == 0


@browser_missing
def test_next_previous_random_and_keys(page):
    name = quote(MARKUP, safe="")
    page.open(f"#{name}/0/1")
    page.shown(0, 1)
    page.js("document.getElementById('next').click()")
    page.shown(0, 2)
    page.press("ArrowLeft")
    page.shown(0, 1)
    page.press("r")
    page.wait("document.getElementById('panel').dataset.shown !== '0/0/1'")
    page.press("Escape")
    page.wait("!document.getElementById('neurons').hidden")


@browser_missing
def test_a_neuron_without_detail_says_so(page, report):
    bare = next(k for k in range(planted.WIDTH) if piece(report, 0, k) is None)
    page.open(f"#{quote(MARKUP, safe='')}/0/{bare}")
    page.shown(0, bare)
    visible = "getComputedStyle(document.querySelector(arguments[0])).display !== 'none'"
    assert page.wait(visible, ".no-detail")
    assert not page.js("return " + visible, ".detail")


# The job without its figures, which take most of its time.
SERVE = """
import runpy, sys
from neuronstats.report.page.html import WRITES
from neuronstats.report import job
job.all_figures = lambda runs: []
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def start_serving(run_folder, out):
    """The job as a process, and the address that it says."""
    command = [sys.executable, "-c", SERVE, JOBS / "report.py"]
    command += ["serve=true", "port=0", f"runs=[{run_folder}]"]
    some = ["report.neurons=none", f"out={out}"]
    process = subprocess.Popen(
        [*command, *some], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if found := re.search(r"serving (http://\S+)/ ", line):
            return process, found[1]
    raise AssertionError(process.communicate()[1])


@browser_missing
def test_a_served_page_computes_every_neurons_detail(browser, run_folder, run, tmp_path):
    process, address = start_serving(run_folder, tmp_path / "out")
    try:
        found = Page(browser, tmp_path / "out")
        found.url = address + "/index.html"
        assert piece(tmp_path / "out", 0, 2) is None  # not in the folder
        found.open(f"#{quote(MARKUP, safe='')}/0/2")
        found.shown(0, 2)
        found.wait("document.querySelectorAll('#curve canvas').length === 1")
        truth = planted.expected_bits(0, run.token_ids)[2]
        tokens = {run.texts([t]) for t in run.token_ids[truth & (run.token_ids != planted.BOS)]}
        assert set(found.texts("#contexts mark")) - {run.texts([planted.BOS])} == tokens
        assert "computed when asked for" in found.text("#left-out")
        assert found.complaints() == []
        assert [url for url in found.requests() if not url.startswith((*LOCAL, address))] == []
    finally:
        process.send_signal(signal.SIGTERM)
        said, wrong = process.communicate(timeout=60)
    assert process.returncode == 130, wrong
    assert "stopped serving" in said


@browser_missing
def test_a_link_to_no_neuron_says_so(page):
    page.open("#nobody/0/1")
    page.wait("document.getElementById('message').textContent.includes('no neuron')")


@browser_missing
@pytest.mark.parametrize("width", [1400, 1280, 390])
def test_nothing_is_wider_than_the_window(page, width):
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    try:
        for fragment in ("", "#neurons", f"#{quote(MARKUP, safe='')}/0/1"):
            page.open(fragment)
            page.wait("document.readyState === 'complete'")
            assert page.js("return document.documentElement.scrollWidth") <= width
        page.shown(0, 1)
        assert set(page.texts("#ngrams .detected")) == {"detected"}
        tables = "[...document.querySelectorAll('#ngrams .scroll')]"
        assert set(page.js(f"return {tables}.map((e) => e.scrollWidth - e.clientWidth)")) == {0}
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
