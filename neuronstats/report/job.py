"""The report job: reduced runs -> a folder with figures and a page."""

import contextlib
import time
from collections.abc import Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path

from neuronstats.console import Console
from neuronstats.errors import DONE, INTERRUPTED, SettingsError, UserError
from neuronstats.report.figures.catalogue import all_figures
from neuronstats.report.figures.frame import Drawing, NamedRun
from neuronstats.report.notebook import LoadedRun
from neuronstats.report.output import Output
from neuronstats.report.page import html as page
from neuronstats.report.page.data import chosen, neuron_script
from neuronstats.report.page.search import script
from neuronstats.report.page.serve import make_server
from neuronstats.report.settings import ReportJob
from neuronstats.store.reduced import labels
from neuronstats.units import counted, duration

PICTURES = ("svg", "png")


def open_runs(locations: Sequence[str]) -> list[NamedRun]:
    """Open the runs to report on; checkpoints of one training are put in the order of their steps.

    Raises:
        SettingsError: none is named, one is named twice, or one is no run.
        UserError: one was not reduced.
    """
    if not locations:
        raise SettingsError("runs is not set: give one run folder or several, runs=[DIR,DIR2].")
    runs = [LoadedRun(location) for location in locations]
    for run in runs:
        run.verify_tables()  # so that damage is said before anything is written
    places = [run.location for run in runs]
    twice = {place for place in places if places.count(place) > 1}
    if twice:
        raise SettingsError(f"runs names {', '.join(sorted(twice))} more than once.")
    runs = by_step(runs)
    return [NamedRun(label, run) for label, run in zip(labels(runs), runs, strict=True)]


def by_step(runs: Sequence[LoadedRun]) -> list[LoadedRun]:
    """Sort by training, in the order of first mention, and by step."""
    keys = [run.run.about.training or (run.location, 0) for run in runs]
    first = {name: place for place, (name, _) in reversed(list(enumerate(keys)))}
    order = sorted(range(len(runs)), key=lambda place: (first[keys[place][0]], keys[place][1]))
    return [runs[place] for place in order]


def write_figures(folder: Output, figures: Sequence[Drawing]) -> None:
    """Write every figure that has data as svg and png."""
    for drawing in figures:
        if drawing.figure is not None:
            for kind in PICTURES:
                folder.write(f"figures/{drawing.stem}.{kind}", drawing.render(kind))


def report(settings: ReportJob, console: Console) -> int:
    """Write the report of some runs, and serve it where asked; return the exit code."""
    runs = open_runs(settings.runs)
    location = settings.out or f"{settings.runs[0].rstrip('/')}/report"
    if settings.serve and "://" in location:
        raise SettingsError(f"serve=true needs a local folder to serve from, not out={location}.")
    folder = Output(location, [named.run.location for named in runs])
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_server(settings, runs, folder)) if settings.serve else None
        _write(settings, runs, folder, console)
        if server is not None:
            return _serve(server, folder, console)
    return DONE


def _write(settings: ReportJob, runs: Sequence[NamedRun], folder: Output, console: Console) -> None:
    """Write figures and page."""
    start = time.monotonic()
    figures = all_figures(runs)
    pictures = {f"figures/{drawing.stem}.{kind}" for drawing in figures for kind in PICTURES}
    folder.begin(pictures | page.page_files(runs, settings.report))
    write_figures(folder, figures)
    total = sum(len(chosen(named.run, settings.report)) for named in runs)
    with console.progress("report", total, "neurons") as advance:
        left_out = page.write_page(
            folder, runs, figures, settings.report, advance, live=settings.serve
        )
    folder.finish()
    console.say(left_out)
    for named in runs:
        if total and not named.run.projects:
            console.say(
                f"What updates promote and suppress is shown of {named.label}'s detectors alone:"
                f" its checkpoint ({named.run.run.about.model.path}) is not there."
            )
    drawn = sum(1 for drawing in figures if not drawing.reason)
    console.say(
        f"report: {counted(len(runs), 'run')}, {drawn} figures ({len(figures) - drawn} without"
        f" data), {duration(time.monotonic() - start)}: {folder.location}/index.html"
    )


def _server(settings: ReportJob, runs: Sequence[NamedRun], folder: Output) -> ThreadingHTTPServer:
    """Return a server with its port bound, before anything is written."""

    def detail(number: int, layer: int, neuron: int) -> bytes | None:
        if number >= len(runs):
            return None
        try:
            return neuron_script(runs[number].run, number, layer, neuron, settings.report)
        except UserError as error:
            return script("NS.problem", str(error))

    return make_server(Path(folder.location), detail, settings.port)


def _serve(server: ThreadingHTTPServer, folder: Output, console: Console) -> int:
    """Serve the page until interrupted, which is how it ends; return the exit code for that."""
    console.say(f"serving http://127.0.0.1:{server.server_port}/ until interrupted (Ctrl-C)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        console.say(
            f"stopped serving; {folder.location}/index.html stays. The same command serves again."
        )
    return INTERRUPTED
