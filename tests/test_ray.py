"""Runs as tasks of a Ray cluster of two nodes, each in a network namespace of its own, of which one dies.

`tox -e ray` installs Ray and runs this; it needs root and iproute2, and is skipped without.
"""

from contextlib import suppress
from functools import cache
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
from time import monotonic, sleep
from uuid import uuid4

import pytest

from dcvit import claims, ledger
from dcvit.errors import OK
from tests.helpers import ROOT, environment, python, without_times

pytest.importorskip("ray")

PATIENCE = 150.0  # seconds for anything here
NODES = {"dcvit-ray-a": "10.231.77.1", "dcvit-ray-b": "10.231.77.2"}  # namespace -> address
HEAD, OTHER = NODES
ADDRESS = f"{NODES[HEAD]}:6379"
TABLE = ("reproductions.table5_backbones", "--only", "DeiT-T")  # two runs of ten seconds


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


def inside(namespace, *command):
    return ["ip", "netns", "exec", namespace, *map(str, command)]


@pytest.fixture
def namespaces():
    """Two network namespaces with a cable between them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    try:
        for name in NODES:
            ip("netns", "add", name)
        ip("link", "add", "veth-a", "netns", HEAD, "type", "veth", "peer", "name", "veth-b", "netns", OTHER)
        for name, device in zip(NODES, ("veth-a", "veth-b"), strict=True):
            ip("-n", name, "address", "add", f"{NODES[name]}/24", "dev", device)
            for link in (device, "lo"):
                ip("-n", name, "link", "set", link, "up")
        yield
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    finally:
        for name in NODES:
            kill_all(name)
            with suppress(subprocess.CalledProcessError):
                ip("netns", "delete", name)


def kill_all(namespace):
    """Ends every process in one of our namespaces, as the loss of that machine would."""
    with suppress(subprocess.CalledProcessError):
        for number in ip("netns", "pids", namespace).split():
            with suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)


@cache
def secured():
    """Of every process here: a token of this test's own, whatever Ray has left in the home folder of who runs it.

    Ray wants it to be the same on all nodes: a head that finds a token there asks for it, a node that joins does not.
    """
    return {**environment(), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid4().hex}


@pytest.fixture
def cluster(namespaces, tmp_path_factory):
    """Ray on both, with one processor each."""
    ray = Path(sys.executable).with_name("ray")
    common = ("--num-cpus=1", "--block", "--disable-usage-stats", "--object-store-memory=100000000")
    temporary = Path("/tmp") / f"dcvit-ray-{os.getpid()}"  # a socket's path must be short
    starts = {
        HEAD: ("--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={temporary}"),
        OTHER: (f"--address={ADDRESS}",),
    }
    check = f"import ray; ray.init(address={ADDRESS!r}, log_to_driver=False); print(ray.cluster_resources()['CPU'])"
    processes = []
    try:
        for name, own in starts.items():
            words = inside(
                name, sys.executable, ray, "start", f"--node-ip-address={NODES[name]}", *own, *common
            )
            with open(tmp_path_factory.mktemp(name) / "log", "wb") as log:
                processes.append(subprocess.Popen(words, env=secured(), stdout=log, stderr=log))
            sleep(5)
        until(
            lambda: said(inside(HEAD, *python("-c", check))).strip() == "2.0",
            "the nodes did not find each other",
        )
        yield
    finally:
        for name in NODES:
            kill_all(name)
        for process in processes:
            process.wait(PATIENCE)
        shutil.rmtree(temporary, ignore_errors=True)


def said(command):
    return subprocess.run(command, env=secured(), capture_output=True, text=True, check=False).stdout


def until(condition, problem):
    """Waits for a condition, and returns what it gave."""
    begun = monotonic()
    while not (found := condition()):
        assert monotonic() - begun < PATIENCE, problem
        sleep(0.2)
    return found


def records(out):
    return {
        path.parent.name: without_times(ledger.read(path.parent)) for path in out.glob("ledger/*/record.json")
    }


def held(out):
    return [folder for folder in out.glob("ledger/*") if claims.state_of(folder) == "held"]


def test_runs_go_on_elsewhere_when_their_node_dies(cluster, tmp_path):
    options = ("--device", "cpu", "--out")
    local = python("-m", *TABLE, *options, tmp_path / "local")
    subprocess.run(local, env=environment(), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    out = tmp_path / "ray"
    words = python("-m", *TABLE, *options, out, "--executor", "ray", "--ray-address", ADDRESS)
    with open(tmp_path / "printed", "wb") as printed:
        driver = subprocess.Popen(
            inside(HEAD, *words), env=secured(), cwd=ROOT, stdout=printed, stderr=printed
        )
    until(lambda: len(held(out)) == 2, "the runs did not begin on both nodes")
    assert len({claims.holder_of(folder).pid for folder in held(out)}) == 2
    sleep(3)
    kill_all(OTHER)
    assert driver.wait(PATIENCE) == OK, (tmp_path / "printed").read_text()
    assert records(out) == records(tmp_path / "local")
    assert len(records(out)) == 2
