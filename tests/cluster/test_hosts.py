"""Two hosts with addresses of their own, of which one cannot be reached for a while."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.cluster.story import SHIPPED, WORKER, Job, actors, assert_trained_the_same, trained_without_faults
from tests.head import Head, Node

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LINK, SPACE, HERE, THERE = "eqssl0", "eqssl", "10.213.77.1", "10.213.77.2"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def second_host() -> Iterator[list[str]]:
    """Make a network namespace that one link joins to this one; yield the command that runs another one there."""
    on = ["ip", "netns", "exec", SPACE]
    for left in (["link", "delete", LINK], ["netns", "delete", SPACE]):  # by a run that was killed
        with suppress(OSError, subprocess.CalledProcessError):
            ip(*left)
    try:
        ip("netns", "add", SPACE)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespace can be made here, which takes root and iproute2: {error}")
    try:
        ip("link", "add", LINK, "type", "veth", "peer", "name", f"{LINK}p")
        ip("link", "set", f"{LINK}p", "netns", SPACE)
        ip("address", "add", f"{HERE}/24", "dev", LINK)
        ip("link", "set", LINK, "up")
        for words in (
            ("link", "set", f"{LINK}p", "name", LINK),
            ("address", "add", f"{THERE}/24", "dev", LINK),
            ("link", "set", LINK, "up"),
            ("link", "set", "lo", "up"),
        ):
            ip("-n", SPACE, *words)
        yield on
    finally:
        ip("netns", "delete", SPACE)  # and the link with it


@pytest.fixture(scope="module")
def hosts():
    """Yield a head with one CPU, and the command for the other host."""
    with second_host() as on, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", LINK)  # as where a host has several networks
        head = Head(["--num-cpus", "1", *SHIPPED], host=HERE)
        yield head, on
        head.kill()


def join(head: Head, on: list[str]) -> Node:
    return Node(head, on, ["--node-ip-address", THERE])


def wait_for_workers(head: Head, job: Job, count: int) -> None:
    while len(actors(head, WORKER)) != count:
        assert job.thread.is_alive(), job.text()
        time.sleep(0.5)


def test_an_elastic_trial_goes_on_with_one_host_while_the_other_cannot_be_reached(hosts, tmp_path):
    head, on = hosts
    node = join(head, on)
    places = {"output": tmp_path / "results", "tracking-uri": f"sqlite:///{tmp_path}/mlflow.db"}
    try:
        job = Job(head, "parted", tmp_path, places | {"workers-per-trial": "1:2"})
        started, epoch = job.next_epoch()
        assert len(actors(head, WORKER)) == 2
        ip("link", "set", LINK, "down")
        while any(one["node_id"] == node.id and one["state"] == "ALIVE" for one in head.listed("nodes")):
            assert time.monotonic() < started + 120
            time.sleep(0.5)
        job.wait_for(epoch + 1)
        print(f"\n{time.monotonic() - started:.1f} s from the partition until one host had trained an epoch")
        assert len(actors(head, WORKER)) == 1
        ip("link", "set", LINK, "up")
        node.kill()  # given up for dead, it would have ended by itself
        node = join(head, on)
        wait_for_workers(head, job, 2)
        job.next_epoch()
        # Another number of processes sums in another order, which training magnifies from epoch to epoch.
        assert_trained_the_same(job.finished(), trained_without_faults(), tolerance=0.01)
    finally:
        node.kill()
