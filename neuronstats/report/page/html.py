"""Tables and figures -> a page that opens from disk: index.html, and what it loads when asked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any
from urllib.parse import quote

import jinja2
import pyarrow.compute as pc

from neuronstats.report.figures.frame import Drawing, NamedRun, share_words
from neuronstats.report.output import Output
from neuronstats.report.page import columns, matches
from neuronstats.report.page.data import Advance, Budget, planned_files, write_run
from neuronstats.report.settings import ReportSettings
from neuronstats.stats import ngrams, positions, suppression, vocabulary
from neuronstats.stats.dead import NEVER_SEEN_BOUND
from neuronstats.units import counted, short

ASSETS = "assets"
WRITES = {
    "prediction": "prediction neurons: raise a few tokens",
    "suppression": "suppression neurons: lower a few tokens",
    "partition": "partition neurons: split the vocabulary",
}
NEVER = {
    "dead": ("dead: never activated", "a dead neuron's frequency is below"),
    "never_open": (
        "never open: no gate above {above:g}, which is not dead",
        "a never-open neuron's gate is open less often than",
    ),
}
VENDORED = ("tabulator.min.js", "tabulator.min.css", "tabulator.LICENSE",
            "uPlot.iife.min.js", "uPlot.min.css", "uPlot.LICENSE")  # fmt: skip
ASSET_FILES = ("page.css", "page.js", *(f"vendor/{name}" for name in VENDORED))


def asset(name: str) -> bytes:
    """Return a static file of the page."""
    return (resources.files("neuronstats.report.page") / ASSETS / name).read_bytes()


@dataclass(frozen=True)
class KeyNumber:
    """One cell of the overview's table."""

    value: str
    kind: str = ""
    """The class of neurons in the list's filter that it counts; empty: it counts none."""


def key_numbers(named: NamedRun) -> dict[str, KeyNumber]:
    """Return a run's key numbers for people, by their names."""
    run = named.run
    neurons = run.neurons
    never = int(pc.sum(neurons[run.never], min_count=0).as_py())
    share = 100 * never / max(1, len(neurons))
    name = NEVER[run.never][0].format(above=run.run.about.threshold)
    rows = {name: KeyNumber(f"{never:,} ({share:.2f} %)", "dead")}
    for n, word in ngrams.WORDS.items():
        detector = ngrams.detector(n).name
        if run.has(detector):
            count = pc.sum(neurons[detector], min_count=0).as_py()
            rows[f"{word} detectors"] = KeyNumber(f"{count:,}", word)
    suppresses = suppression.SUPPRESSES.name
    if run.has(suppresses):
        judged = len(neurons) - neurons[suppresses].null_count
        count = pc.sum(neurons[suppresses], min_count=0).as_py()
        rows["token detectors that suppress what they detect"] = KeyNumber(
            share_words(count, judged), "suppresses"
        )
    for kind, column in zip(vocabulary.TYPES, vocabulary.LAYER_COLUMNS, strict=True):
        if run.column(column.name) is not None:
            count = pc.sum(run.layers[column.name]).as_py()
            rows[WRITES[kind]] = KeyNumber(f"{count:,}", kind)
    positional = len(neurons) - neurons[positions.TYPE.name].null_count
    rows["positional: tell the position"] = KeyNumber(f"{positional:,}", "positional")
    rows |= {
        NEVER[run.never][1]: KeyNumber(
            f"{NEVER_SEEN_BOUND / run.tokens:.2g} (3/tokens, with 95 % confidence)"
        ),
        "model": KeyNumber(
            f"{counted(run.model_layers, 'layer')} of {run.layout.num_neurons:,} FFN neurons"
        ),
        "analysed": KeyNumber(
            f"{counted(run.num_layers, 'layer')} ({run.bitmap_layers} with bitmaps),"
            f" {len(neurons):,} neurons"
        ),
        "text": KeyNumber(
            f"{run.data}: {run.tokens:,} tokens, {run.num_sequences:,} sequences of"
            f" {run.layout.num_positions}"
        ),
        "domains": KeyNumber(", ".join(run.layout.domains)),
    }
    if run.metadata.get("first_position"):
        rows["positions"] = KeyNumber("0, an attention sink, is left out of what is said of them")
    if not run.metadata["complete"]:
        shards = f"{run.metadata['shards']} of {len(run.layout.shards)} shards"
        rows["partial"] = KeyNumber(shards)
    return rows


def settings_rows(named: NamedRun) -> list[tuple[str, str]]:
    """Return the settings behind a run's numbers."""
    run = named.run
    rows = [("fingerprint", run.run.fingerprint)]
    rows += [
        (f"reduce.{name}", str(value)) for name, value in sorted(run.metadata["settings"].items())
    ]
    rows += [(name, str(value)) for name, value in run.run.about.identity.items()]
    rows += [(f"version of {name}", str(value)) for name, value in run.run.about.versions.items()]
    return rows


def index_html(runs: Sequence[NamedRun], figures: Sequence[Drawing]) -> str:
    """Return the overview: what this is, key numbers, figures, settings."""
    found = [key_numbers(named) for named in runs]
    names = dict.fromkeys(name for of_run in found for name in of_run)
    numbers = {
        name: [
            (of_run.get(name, KeyNumber("–")), quote(named.label, safe=""))
            for named, of_run in zip(runs, found, strict=True)
        ]
        for name in names
    }
    data = dict.fromkeys(f"{short(named.run.tokens)} tokens ({named.run.data})" for named in runs)
    empty: dict[str, list[Drawing]] = {}
    for drawing in figures:
        if drawing.reason:
            empty.setdefault(drawing.reason, []).append(drawing)
    page = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string(asset("index.html").decode())
    return page.render(
        title=", ".join(named.label for named in runs),
        labels=[named.label for named in runs],
        data=", ".join(data),
        numbers=numbers,
        classes=columns.CLASSES,
        settings=[(named.label, settings_rows(named)) for named in runs],
        figures=[drawing for drawing in figures if not drawing.reason],
        empty=empty,
    )


def info_script(
    runs: Sequence[NamedRun],
    written: Sequence[Mapping[str, Any]],
    left_out: str,
    *,
    live: bool = False,
) -> bytes:
    """Return what the page must know of each run before it asks for more."""
    entries = [
        {
            "label": named.label,
            "layers": named.run.num_layers,
            "neurons": named.run.layout.num_neurons,
            "tokens": named.run.tokens,
            "never": named.run.never.replace("_", " "),
            "threshold": named.run.run.about.threshold,
            "ngrams": named.run.ngrams,
            "columns": [c.for_page() for c in columns.neuron_columns(named.run.ngrams)],
            "settings": named.run.metadata["settings"],
            **pieces,
        }
        for named, pieces in zip(runs, written, strict=True)
    ]
    title = "neuronstats: " + ", ".join(named.label for named in runs)
    info = {"runs": entries, "left_out": left_out, "live": live, "title": title}
    info |= columns.for_page()
    return f"window.NS_INFO={json.dumps(info)};\n".encode("ascii")


def left_out_words(
    runs: Sequence[NamedRun],
    written: Sequence[Mapping[str, Any]],
    budget: Budget,
    settings: ReportSettings,
    *,
    live: bool = False,
) -> str:
    """Return, in words, which neurons' details this page holds, and what was left out."""
    total = sum(len(named.run.neurons) for named in runs)
    others = (
        "those of the others are computed when asked for"
        if live
        else ("of the others it has the table's columns")
    )
    words = [f"Details of all {total:,} neurons are on this page."]
    if budget.details < total:
        sample = f", report.sample={settings.sample}" if settings.neurons == "classified" else ""
        words = [
            f"Details of {budget.details:,} of {total:,} neurons are on this page (report.neurons="
            f"{settings.neurons}{sample}); {others}."
        ]
    if budget.left_out:
        words.append(
            f"{budget.left_out:,} more were to have detail, but the limit of {settings.max_bytes:,}"
            " bytes (report.max_bytes) was reached."
        )
    unsearchable = sum(int(pieces["unsearchable"]) for pieces in written)
    if unsearchable:
        words.append(f"{unsearchable:,} detected n-grams are left out of the search for text.")
    return " ".join(words)


def page_files(runs: Sequence[NamedRun], settings: ReportSettings) -> set[str]:
    """Return every file that write_page may write."""
    names = {"index.html", "data/info.js", *(f"assets/{name}" for name in ASSET_FILES)}
    return names.union(
        matches.planned_files([named.run for named in runs]),
        *(planned_files(named.run, number, settings) for number, named in enumerate(runs)),
    )


def write_page(
    folder: Output,
    runs: Sequence[NamedRun],
    figures: Sequence[Drawing],
    settings: ReportSettings,
    advance: Advance,
    *,
    live: bool = False,
) -> str:
    """Write the page, its static files and its data.

    Where it is `live`, the page may ask a server for the details that it does not hold.

    Returns:
        What was left out, in words.
    """
    for name in ASSET_FILES:
        folder.write(f"assets/{name}", asset(name))
    budget = Budget(settings.max_bytes)
    written = [
        write_run(folder, named.run, number, settings, budget, advance)
        for number, named in enumerate(runs)
    ]
    for pieces, layers in zip(
        written, matches.write_matches(folder, [named.run for named in runs]), strict=True
    ):
        pieces["matches"] = layers
    words = left_out_words(runs, written, budget, settings, live=live)
    folder.write("data/info.js", info_script(runs, written, words, live=live))
    folder.write("index.html", index_html(runs, figures).encode())
    return words
