"""The report of a synthetic run with as many neurons as opt-66b: size, memory, a browser's speed.

Needs chromium, chromedriver and selenium for the browser; the rest is measured without.
"""

import importlib.util
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.rounds import Findings, Ratio, Rounds, Value
from benchmarks.subject import collect_run, opt_config, random_tokens, write_random
from neuronstats.console import Console
from neuronstats.errors import UserError
from neuronstats.reduce.job import reduce
from neuronstats.reduce.settings import ReduceJob
from neuronstats.report.page.search import TRIGGER_BYTES
from neuronstats.report.settings import ReportSettings
from neuronstats.units import size

NEURONS = 36_864  # of a layer, as opt-66b has
HIDDEN, VOCABULARY, SEQUENCES, POSITIONS = 32, 512, 16, 128
ACTIVE = (0.0, 0.3, 0.1, 0.01, 0.0005)  # of neurons, in turn: share of tokens; 0: dead
POSITIONAL_EVERY = 50  # one neuron in so many sees the position alone
OPEN_SECONDS, ANSWER_SECONDS, LOAD_SECONDS = 3.0, 1.0, 3.0  # opened; each answer; as a table
NEURON_BYTES = 60  # of the page, for each neuron's row in the table
OTHER_BYTES = 20_000_000  # figures, libraries, the n-grams that can be searched for

REPORT = """
import resource, sys
from neuronstats.console import Console
from neuronstats.report.job import report
from neuronstats.report.settings import ReportJob
code = report(ReportJob(runs=[sys.argv[1]], out=sys.argv[2]), Console())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""
LOAD = """
import sys, time
import neuronstats
start = time.monotonic()
neuronstats.load(sys.argv[1]).neurons.to_pandas()
print(time.monotonic() - start)
"""
SORT = "document.querySelector('[tabulator-field=frequency] .tabulator-col-title').click()"
CHANGED = "count() !== before || first() !== top"
# What a person does, each a function that starts it and one that tells when it is seen.
ANSWERS = {
    "the list of all neurons": (
        "location.hash = '#neurons'",
        "first() && / neurons$/.test(count())",
    ),
    "filter by class": ("set('class', 'positional', 'change')", CHANGED),
    "filter by class, off": ("set('class', '', 'change')", CHANGED),
    "sort upwards": (SORT, "sorted() === 'ascending'"),
    "sort downwards": (SORT, "first() !== top"),
    "first search for a token": ("set('token', '<17>', 'input')", CHANGED),
    "search for a token": ("set('token', '<18>', 'input')", CHANGED),
}
LOADS = {"the list of all neurons", "first search for a token"}  # data files first
DRIVE = """
const [act, seen, done] = arguments;
const at = (id) => document.getElementById(id);
const count = () => at('count').textContent;
const first = () => (document.querySelector('.tabulator-row') || {}).textContent;
const sorted = () => document.querySelector('[tabulator-field=frequency]').ariaSort;
const set = (id, value, event) => { at(id).value = value; at(id).dispatchEvent(new Event(event)); };
const start = performance.now(), before = count(), top = first();
new Function('set', act)(set);
const shown = new Function('count', 'before', 'first', 'top', 'sorted', 'return ' + seen);
const watch = setInterval(() => {
  if (!/^reading/.test(count()) && shown(count, before, first, top, sorted)) {
    clearInterval(watch);
    done((performance.now() - start) / 1000);
  }
}, 2);
"""


def make_run(scratch: Path, num_layers: int, console: Console) -> Path:
    """Collect and reduce a model of dead, rare, frequent and positional neurons in turn."""
    config = opt_config(num_layers, HIDDEN, 2, VOCABULARY, neurons=NEURONS, positions=POSITIONS)
    folder = scratch / "model"
    write_random(folder, config, ACTIVE, torch.float32, positional_every=POSITIONAL_EVERY)
    tokens = random_tokens(SEQUENCES, POSITIONS, VOCABULARY)
    run = collect_run(scratch, tokens, max(1, num_layers // 2), console)
    if reduce(ReduceJob(run=str(run)), console):
        raise UserError("the reduction was interrupted")
    return run


def _chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("google-chrome")


def browser_is_here() -> bool:
    """Return whether chromium, chromedriver and selenium are all installed."""
    selenium = importlib.util.find_spec("selenium")
    return bool(selenium and _chromium() and shutil.which("chromedriver"))


def start_browser(profile: Path) -> Any:
    """Start a headless Chromium that asks nobody for anything."""
    from selenium import webdriver  # for development alone

    options = webdriver.ChromeOptions()
    options.binary_location = _chromium() or ""
    for argument in (
        "headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-quic", "window-size=1280,900",
        f"user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
    )
    found.set_script_timeout(60)
    return found


def drive(browser: Any, address: str) -> dict[str, float]:
    """Open a report and use its list of neurons; return the seconds that each answer took."""
    browser.get("about:blank")
    browser.get(address)
    opened = "return performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"
    seconds = {"open": browser.execute_script(opened)}
    for name, (act, seen) in ANSWERS.items():
        seconds[name] = browser.execute_async_script(DRIVE, act, seen)
        time.sleep(0.3)  # the typing's delay is over
    return seconds


def page(rounds: Rounds, num_layers: int, scratch: Path) -> Findings:
    """Write a report of a synthetic run, then open and use it in a browser, round after round.

    Args:
        rounds: how often.
        num_layers: of NEURONS each.
        scratch: an empty folder.
    """
    with (scratch / "log").open("w") as log:
        run = make_run(scratch, num_layers, Console(log))
    start = time.monotonic()
    command = [sys.executable, "-c", REPORT, str(run), str(scratch / "report")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    seconds = time.monotonic() - start
    written = sum(p.stat().st_size for p in (scratch / "report").rglob("*") if p.is_file())
    num_neurons = num_layers * NEURONS
    limit = ReportSettings().max_bytes + TRIGGER_BYTES + NEURON_BYTES * num_neurons + OTHER_BYTES
    loading = [sys.executable, "-c", LOAD, str(run)]
    loaded = float(subprocess.run(loading, check=True, capture_output=True, text=True).stdout)
    findings = Findings(
        values=[Value("table in a notebook", loaded, "s", most=LOAD_SECONDS)],
        ratios=[_within("folder", (written,), limit, size(limit))],
        facts=[
            ("neurons", f"{num_neurons:,}"),
            ("report written in", f"{seconds:.0f} s"),
            ("report's peak memory", size(1024 * int(said[-1]))),
            ("folder", size(written)),
        ],
    )
    if not browser_is_here():
        findings.facts.append(("browser", "not measured: it takes chromium and selenium"))
        return findings
    browser = start_browser(scratch / "profile")
    try:
        address = (scratch / "report/index.html").as_uri()
        found = []
        for number in range(rounds.rounds):
            found.append(drive(browser, address))
            rounds.report(f"round {number + 1} of {rounds.rounds}")
    finally:
        browser.quit()
    findings.ratios += _answers(found)
    return findings


def _answers(found: Sequence[Mapping[str, float]]) -> list[Ratio]:
    """Compare what was measured with what was promised; what loads data first has no goal."""
    ratios = []
    for name in found[0]:
        seconds = tuple(each[name] for each in found)
        limit = OPEN_SECONDS if name == "open" else ANSWER_SECONDS
        if name in LOADS:
            name, limit = f"{name}, data loaded", OPEN_SECONDS
        ratios.append(_within(name, seconds, limit, f"{limit:g} s"))
    return ratios


def _within(what: str, values: Sequence[float], limit: float, words: str) -> Ratio:
    """Return how many times what was measured fits into its limit."""
    times = tuple(limit / value for value in values)
    return Ratio(f"{words} / {what}", times, max(times), None, goal=1.0)
