"""The server of a report: its pages and details, to this machine alone."""

import shutil
import threading
import urllib.error
import urllib.request

import pytest

from neuronstats.report.page import data as pieces
from neuronstats.report.page.serve import make_server


@pytest.fixture(scope="module")
def server(report, run, tmp_path_factory):
    """The address of the page, served, with every neuron's detail."""
    live = shutil.copytree(report, tmp_path_factory.mktemp("live") / "out")
    info = live / "data/info.js"
    info.write_text(info.read_text().replace('"live": false', '"live": true'))

    def detail(number, layer, neuron):
        if number:
            return None
        return pieces.neuron_script(run, 0, layer, neuron, pieces.ReportSettings())

    with make_server(live, detail, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def ask(url, host=None, method="GET"):
    headers = {"Host": host} if host else {}
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def test_the_server_gives_pages_and_details(server, report):
    assert ask(server + "/index.html") == (200, (report / "index.html").read_bytes())
    status, content = ask(server + "/live/0/0/0.js")
    assert status == 200
    assert content.startswith(b'NS.detail(0,0,{"0":')


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_every_method_checks_the_host_and_follows_no_link_outwards(report, tmp_path, method):
    out = shutil.copytree(report, tmp_path / "out")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/index.html").write_text("mine")
    (out / "folder").symlink_to(tmp_path / "secret")
    (out / "file.html").symlink_to(tmp_path / "secret/index.html")
    (out / "below").mkdir()
    (out / "below/index.html").symlink_to(tmp_path / "secret/index.html")
    (out / "inside.html").symlink_to("index.html")
    with make_server(out, lambda *_: b"NS", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        for path in ("/", "/index.html", "/live/0/0/0.js", "/inside.html"):
            assert ask(address + path, method=method)[0] == 200
            assert ask(address + path, "elsewhere.example", method) == (403, b"")
        for path in ("/folder/", "/folder/index.html", "/file.html", "/below/", "/none"):
            assert ask(address + path, method=method)[0] == 404
        server.shutdown()


def test_the_server_gives_nothing_else(server):
    assert ask(server + "/live/0/0/99999.js")[0] == 404
    assert ask(server + "/live/0/-1/0.js")[0] == 404
    assert ask(server + "/live/7/0/0.js")[0] == 404
    assert ask(server + "/../run.yaml")[0] == 404
    assert ask(server + "/data/")[0] == 404
    assert ask(server + "/index.html", host="elsewhere.example")[0] == 403
