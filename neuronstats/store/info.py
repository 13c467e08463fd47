"""What made a run, read from its run.yaml: the one place that knows its keys."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neuronstats.errors import UserError
from neuronstats.model.settings import Dtype, ModelSettings

STEP = re.compile(r"(?P<before>(?:.*[/_-])?)(?:checkpoint|step)[-_]?(?P<step>\d+)")


@dataclass(frozen=True)
class RunInfo:
    """run.yaml's content by name.

    Args:
        raw: as stored.
        place: where.

    Raises:
        UserError: what is asked for is not there.
    """

    raw: Mapping[str, Any]
    place: str = "run.yaml"

    def _at(self, *keys: str) -> Any:
        found: Any = self.raw
        for key in keys:
            if not isinstance(found, Mapping) or key not in found:
                raise self._damaged(f"{'.'.join(keys)} is gone")
            found = found[key]
        return found

    def _map(self, *keys: str) -> dict[str, Any]:
        found = self._at(*keys)
        if not isinstance(found, Mapping):
            raise self._damaged(f"{'.'.join(keys)} is {found!r:.100}")
        return dict(found)

    def _whole(self, name: str, found: Any) -> int:
        if type(found) is not int:
            raise self._damaged(f"{name} is {found!r:.100}")
        return found

    def _damaged(self, reason: str) -> UserError:
        return UserError(f"{self.place} is damaged ({reason}): put it back.")

    @property
    def model(self) -> ModelSettings:
        """The model's settings; weights are read in the checkpoint's own type."""
        try:
            return ModelSettings(**{**self._map("settings", "model"), "dtype": Dtype.auto})
        except TypeError as error:
            raise self._damaged(f"settings.model: {error}") from error

    @property
    def model_name(self) -> str:
        """The model's name."""
        return str(self._at("settings", "model", "name"))

    @property
    def training(self) -> tuple[str, int] | None:
        """Of a checkpoint on the way: its training, and the step; None where no name has a step.

        The step is the number behind checkpoint- or step- in the revision, the last part of the
        model's path, or its name: tokens in jobs/train.py's checkpoints, steps in others'. What is
        left of the three names the training.
        """
        model = self.model
        for text in (model.revision, model.path, model.name):
            found = STEP.fullmatch((text or "").rstrip("/"))
            if found:
                parts = [model.path, model.name] if text == model.revision else [found["before"]]
                return " ".join(map(str, parts)), int(found["step"])
        return None

    @property
    def data_name(self) -> str:
        """The data's name."""
        return str(self._at("settings", "data", "name"))

    @property
    def sizes(self) -> Mapping[str, Any]:
        """The model's sizes, for `Shape.read`."""
        return self._map("model")

    @property
    def num_layers(self) -> int:
        """Layers of the whole model, recorded or not."""
        return self._whole("model.num_layers", self._at("model", "num_layers"))

    @property
    def bos_id(self) -> int:
        """The token that n-grams and contexts leave out.

        It is the begin-of-sequence token; where there is none, the one between documents; -1 where
        there is no such token either.
        """
        found = [self._at("model", "bos_token_id"), self._map("model").get("separator_id"), -1]
        return self._whole(
            "model.bos_token_id", next(token for token in found if token is not None)
        )

    @property
    def first_position(self) -> int:
        """The first position that statistics of positions look at.

        0 for OPT, in the paper's setting, as for runs that name no family: they are OPT's. Else 1:
        position 0 is an attention sink in most models, whatever token is there.
        """
        return int(self._map("model").get("family", "opt") != "opt")

    @property
    def threshold(self) -> float:
        """What the activation function's input is above where a bit is set; 0 in the paper."""
        activation = self._map("model").get("activation")  # runs of before name none
        return float(activation.get("threshold", 0)) if isinstance(activation, Mapping) else 0.0

    @property
    def has_positions(self) -> bool:
        """Whether the model has positional embeddings."""
        return bool(self._map("model").get("has_positions", True))

    @property
    def tokens_fingerprint(self) -> str:
        """Of the token ids."""
        return str(self._at("identity", "data.tokens"))

    @property
    def weights_fingerprint(self) -> str:
        """Of the model's weights."""
        return str(self._at("identity", "model.weights"))

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides the numbers, by the settings' names."""
        return self._map("identity")

    @property
    def versions(self) -> Mapping[str, Any]:
        """Versions of the libraries that made it."""
        return self._map("versions")
