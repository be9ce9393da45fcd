"""Ray as evomerge starts it by itself: no socket of it listens beyond this machine, and who has no token is refused."""

import ipaddress
import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # Ray takes some seconds to start

# With the user's defaults, and workers that have begun: prints who listens where, and what two calls were answered.
STARTED = """
import json, sys
import grpc, psutil
if sys.argv[1] == "imported":
    import ray
from evomerge.study.workers import Cluster
from evomerge.study.workers.actors import Actors
from evomerge.study.workers.connection import _GCS_CALL, Connection

def answer(channel):
    try:
        channel.unary_unary(_GCS_CALL)(b"", timeout=20)
        return "OK"
    except grpc.RpcError as e:
        return e.code().name

connection = Connection(Cluster(workers=2))
from ray._private.grpc_utils import init_grpc_channel
actors = Actors(connection, lambda device: lambda item: item)
for item in range(2):
    actors.submit(item, item)
found = {"items": sorted(actors.wait()[1] for _ in range(2)), "sockets": []}
me = psutil.Process()
for process in (me, *me.children(recursive=True)):
    for c in process.net_connections("inet"):
        if c.status == psutil.CONN_LISTEN:
            found["sockets"].append((process.name(), c.laddr.ip, c.laddr.port))
address = connection.ray.get_runtime_context().gcs_address
found |= {"address": address, "without": answer(grpc.insecure_channel(address))}
found |= {"with": answer(init_grpc_channel(address))}
actors.close()
connection.close()
print("FOUND", json.dumps(found))
"""


@pytest.fixture(scope="module", params=["by evomerge", "imported"])
def started(request, tmp_path_factory):
    """By a process in which nobody has imported Ray yet, and by one that has, as users of Python may: Ray reads its
    variables on import."""
    # A home without a token, and none of the variables by which this test run may have told Ray something else.
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", STARTED, request.param], capture_output=True, text=True, timeout=250,
        stdin=subprocess.DEVNULL, env=kept | {"HOME": str(tmp_path_factory.mktemp("home"))},
    )  # fmt: skip
    line = next((x for x in done.stdout.splitlines() if x.startswith("FOUND ")), None)
    assert line is not None, done.stderr[-3000:]
    found = json.loads(line.removeprefix("FOUND "))
    assert found["items"] == [0, 1]
    return found


def test_it_listens_on_this_machine_alone(started):
    programs = {name for name, _, _ in started["sockets"]}
    assert {"gcs_server", "raylet"} <= programs and len(programs) > 2, started["sockets"]  # workers listen too
    assert [s for s in started["sockets"] if not is_loopback(s[1])] == []


def is_loopback(address):
    """Whether it is 127.* or ::1; as ::ffff:127.0.0.1 too, which a socket of IPv6 shows of one of IPv4."""
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def test_who_has_no_token_is_refused(started):
    assert started["address"].startswith("127.0.0.1:")
    assert (started["without"], started["with"]) == ("UNAUTHENTICATED", "OK")
