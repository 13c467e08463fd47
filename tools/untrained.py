"""Remake an embedded model as it was before its training, from its recipe's seed: the control.

python tools/untrained.py opt-mini /tmp/opt-mini-untrained
python jobs/collect.py model=local model.path=/tmp/opt-mini-untrained run=runs/untrained
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from neuronstats.model.source import EMBEDDED
from neuronstats.training.loop import write_model
from neuronstats.training.recipe import build_model
from neuronstats.training.settings import TrainSettings

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def write_untrained(name: str, target: Path) -> None:
    """Write the untrained twin of an embedded model to a folder that transformers loads."""
    recipe = json.loads((EMBEDDED / name / "training.json").read_text())
    settings = TrainSettings(**recipe["settings"])
    with tempfile.TemporaryDirectory() as folder:
        for file in TOKENIZER:
            shutil.copy(EMBEDDED / name / file, folder)
        write_model(settings, build_model(settings), 0, Path(folder), target)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    write_untrained(sys.argv[1], Path(sys.argv[2]))
