"""A reduced run of the planted model, for the tests of figures and page."""

import base64
import json
import re
import shutil
from pathlib import Path

import numpy as np
from helpers import planted
from helpers.serial import make_run

from neuronstats.report.figures.catalogue import CATALOGUE

MARKUP = '</script><b/class="x">&amp;'  # must be text wherever it shows up
MARKED = 8  # the token that is written so


def planted_run(base, checkpoint):
    """Collect and reduce the planted corpus; the model's name and one token are markup."""
    from neuronstats.stats.settings import ReduceSettings

    model = shutil.copytree(checkpoint, base / "model")
    tokenizer = model / "tokenizer.json"
    words = json.loads(tokenizer.read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary[MARKUP] = vocabulary.pop(f"w{MARKED}")
    tokenizer.write_text(json.dumps(words))
    tokens, domains = planted.corpus()
    settings = {"collect__bitmaps": 3, "model__name": MARKUP}
    return Path(make_run(base / "run", model, tokens, domains, ReduceSettings(), **settings))


def draw_only(patch, *names):
    """Have reports draw these figures alone: all of them take most of a report's time."""
    few = {name: CATALOGUE[name] for name in names}
    patch.setattr("neuronstats.report.figures.catalogue.CATALOGUE", few)


def run_file(folder):
    """A run's run.yaml without its checksum, to be edited."""
    return re.sub(r"(?m)^checksum: .*\n", "", (folder / "run.yaml").read_text())


def piece(report, layer, neuron):
    """A neuron's detail, as the files of a report have it; None where it has none."""
    columns = json.loads(
        (report / f"data/r0/n{layer:03d}.js").read_text()[len("NS.layer(0,0,") : -3]
    )
    number = np.frombuffer(base64.b64decode(columns["piece"][1]), "<i4")[neuron]
    if number < 0:
        return None
    text = (report / f"data/r0/d{number:05d}.js").read_text()
    return json.loads(text[len("NS.detail(0,0,") : -3])[str(neuron)]
