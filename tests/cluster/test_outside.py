"""From a machine outside the cluster: `ray://` and `ray job submit`, as docs/clusters.md says."""

import importlib.util
import re

import pytest
from helpers import machines
from helpers.readme import (
    DATA,
    LEFT_TOKEN,
    LENGTH,
    MODE,
    MODEL,
    PLACE,
    ROOT,
    check_stores,
    copy_token,
    ended,
    join,
    joined,
    replaced,
    start_head,
)
from helpers.reduced import check_tables

from neuronstats.errors import DONE, FAILED

INSTALLED = all(importlib.util.find_spec(name) for name in ("grpc", "aiohttp"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(machines.why_not()), reason=f"NO CLUSTER TEST: {machines.why_not()}"),
    pytest.mark.skipif(not INSTALLED, reason="NO CLIENT TEST: pip install -e '.[cluster]'"),
]


@pytest.fixture(scope="module")
def cluster(network, inputs):
    """A head, another machine, and one outside, which has their token."""
    head, second, outside = (network.machine() for _ in range(3))
    start_head(head, "--dashboard-host=0.0.0.0")
    joined(join(second, head))
    copy_token(outside, head)
    return head, outside


def test_through_the_client_a_run_is_the_same(network, cluster, alone):
    head, outside = cluster
    for command in (f"collect.py {MODEL} {DATA} {LENGTH}", "reduce.py"):
        line = f"python jobs/{command} run=/mnt/run ray.address=ray://{head.ip}:10001"
        ended(outside.start(PLACE + MODE + line), DONE)
    check_stores(alone, network.shared / "run")
    check_tables(alone, network.shared / "run")

    wrong = f"export RAY_AUTH_TOKEN={LEFT_TOKEN}; "
    _, err = ended(outside.start(PLACE + MODE + wrong + line), FAILED)
    assert "has this shell the head's RAY_AUTH_MODE and token" in err, err


def test_a_submitted_job_is_the_same(network, cluster, alone):
    head, outside = cluster
    page = (ROOT / "docs" / "clusters.md").read_text()
    (line,) = re.findall(r"^ray job submit .*?(?=\n```)", page, re.MULTILINE | re.DOTALL)
    words = {"model=opt-66b": MODEL, "data=paper": f"{DATA} {LENGTH}"}
    line = replaced(line, {"HEAD": head.ip, "/shared/runs/opt-66b": "/mnt/submitted", **words})
    out, _ = ended(outside.start(PLACE + MODE + line), DONE)
    assert "succeeded" in out
    check_stores(alone, network.shared / "submitted")
