"""Models from a hub on loopback, by the real client: what is asked for, and what is refused."""

import io
import shutil

import pytest
from helpers import models
from helpers.hub import Hub

from neuronstats.console import Console
from neuronstats.errors import SettingsError, UserError
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.model.fetch import fetch, fetch_here
from neuronstats.model.settings import ModelSettings
from neuronstats.model.source import locate

NAME = "facebook/opt-125m"
MODEL = ModelSettings(name="m", path=NAME)


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture
def repository(tmp_path, tiny_model):
    """A checkpoint of two layouts, with files of other frameworks, as on the hub."""

    def make(*layouts):
        for layout in layouts:
            models.save_checkpoint(tiny_model("pre"), tmp_path / "repository", layout=layout)
        for name in ("flax_model.msgpack", "tf_model.h5"):
            (tmp_path / "repository" / name).write_bytes(b"x" * 1000)
        return models.save_tokenizer(tmp_path / "repository", style="hub")

    return make


@pytest.mark.parametrize(
    ("layouts", "fetched"),
    [
        (["safetensors"], "model.safetensors"),
        (["bin"], "pytorch_model.bin"),
        (["safetensors_sharded"], "model-00001-of-00003.safetensors"),
        (["bin_sharded"], "pytorch_model-00001-of-00003.bin"),
        (["bin", "safetensors"], "model.safetensors"),
    ],
)
def test_one_kind_of_weights_is_fetched_once(hub, repository, tmp_path, layouts, fetched):
    hub.add(NAME, repository(*layouts))
    with hub.here(tmp_path / "cache"):
        folder = locate(MODEL, weights=False)
        assert not hub.asked(fetched, method="HEAD")
        seen = []
        fetch(MODEL, lambda new, total: seen.append((new, total)))
        assert sum(new for new, _ in seen) == seen[-1][1]
        assert Checkpoint(folder).names() == Checkpoint(tmp_path / "repository").names()
        assert [r for r in hub.asked(fetched) if "cdn" in r[1]]
        for other in ("msgpack", ".h5", *(["pytorch"] if fetched == "model.safetensors" else [])):
            assert not hub.asked(other)
        hub.requests.clear()
        fetch(MODEL, lambda *_: pytest.fail("fetched again"))
        assert locate(MODEL) == folder
        assert not [r for r in hub.requests if "resolve" in r[1] or "cdn" in r[1]]
        hub.requests.clear()
        assert locate(MODEL, cached=True) == folder  # as every worker asks
        assert not hub.requests
    with hub.here(tmp_path / "cache", offline=True):
        assert locate(MODEL) == folder


def test_a_cut_connection_goes_on_where_it_was_cut(hub, repository, tmp_path):
    hub.add(NAME, repository("safetensors"))
    hub.cut["model.safetensors"] = 30_000
    out = io.StringIO()
    with hub.here(tmp_path / "cache"):
        fetch_here(MODEL, Console(out))
        found = locate(MODEL) / "model.safetensors"
    original = tmp_path / "repository" / "model.safetensors"
    assert found.read_bytes() == original.read_bytes()
    first, second = (r for r in hub.asked("cdn", "model.safetensors"))
    assert first[2] is None
    assert second[2] == "bytes=30000-"
    assert "fetching" in out.getvalue()
    assert "100%" not in out.getvalue()


def test_of_many_files_only_those_that_are_missing_are_fetched(hub, repository, tmp_path):
    hub.add(NAME, repository("bin_sharded"))
    with hub.here(tmp_path / "cache"):
        folder = locate(MODEL)
        lost = folder / "pytorch_model-00002-of-00003.bin"
        lost.resolve().unlink()
        lost.unlink()
        hub.requests.clear()
        assert locate(MODEL, cached=True) == folder
        assert {r[1].rpartition("/")[2] for r in hub.asked("cdn")} == {lost.name}
        lost.resolve().unlink()
        lost.unlink()
    with (
        hub.here(tmp_path / "cache", offline=True),
        pytest.raises(UserError, match="was not fetched before, and HF_HUB_OFFLINE is set"),
    ):
        locate(MODEL)


def test_the_hub_is_down_and_all_is_here(hub, repository, tmp_path):
    hub.add(NAME, repository("safetensors"))
    with hub.here(tmp_path / "cache"):
        folder = locate(MODEL)
    with Hub() as other:
        pass  # nothing answers at its address now
    with other.here(tmp_path / "cache"):
        assert locate(MODEL) == folder
        shutil.rmtree(tmp_path / "cache")
        with pytest.raises(UserError, match="the hub did not give it") as told:
            locate(MODEL)
    assert not isinstance(told.value, SettingsError)


@pytest.mark.parametrize("weights", [True, False])
def test_what_the_hub_refuses_is_a_wrong_setting(hub, repository, tmp_path, weights):
    hub.add(NAME, repository("safetensors"), gated=True)
    hub.add("me/open", tmp_path / "repository")
    refused = {
        NAME: r"is gated: agree to its terms on http://127.*/facebook/opt-125m, then run `hf auth",
        "facebook/opt-99": r"no model that the hub shows us .* Check the name",
        "me/open": r"model.revision=v9: me/open has none of that name",
    }
    for name, words in refused.items():
        revision = "v9" if name == "me/open" else None
        with hub.here(tmp_path / "cache"), pytest.raises(SettingsError, match=words) as told:
            locate(ModelSettings(name="m", path=name, revision=revision), weights=weights)
        assert "\n" not in str(told.value)
