"""When a trial saves its state within an epoch: every five minutes, and at once before its processes are gone.

A spot node is gone two minutes after its notice, and a study that is stopped ends the processes of its trials.
"""

import asyncio
import logging
import threading
import time
from contextlib import suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

logger = logging.getLogger(__name__)

POLL_S = 5.0
SAVE_EVERY_S = 300.0  # what a fault costs at most, however long an epoch is
SAVE_EVERY_LEAVING_S = 10.0  # while the node is still there


def this_node() -> str:
    """Return the id of the node that this process runs on."""
    return ray.get_runtime_context().get_node_id()


def draining_nodes() -> set[str]:
    """Return the ids of the nodes that are about to leave.

    Ray's public `ray.train.get_preemption_info` is a barrier of all workers of Ray Train; this is its source.
    """
    from ray._private.state import state

    return set(state.get_draining_nodes())


def start_here(actor: type) -> Any:
    """Start an actor on this node, without a CPU of its own, and return its handle."""
    here = NodeAffinitySchedulingStrategy(this_node(), soft=False)
    return ray.remote(actor).options(num_cpus=0, scheduling_strategy=here).remote()


class SaveNotice:
    """Tells trials to save their state before their processes are gone; an actor of the study."""

    def __init__(self) -> None:
        self._stopped = False
        self._waiting: dict[str, tuple[set[str], asyncio.Event]] = {}  # trial id -> its nodes

    async def wait(self, trial_id: str, nodes: set[str]) -> None:
        """Wait until a node of the trial is about to leave, or the study is stopped, or the trial has ended."""
        event = asyncio.Event()
        self._waiting[trial_id] = nodes, event
        if not self._stopped:
            await event.wait()

    async def saved(self, trial_id: str) -> None:
        """Take note that a trial has saved its state after the notice, or has ended."""
        if trial_id in self._waiting:
            self._waiting.pop(trial_id)[1].set()

    async def stop(self) -> None:
        """Tell all trials, and wait until they have saved."""
        self._stopped = True
        for _, event in self._waiting.values():
            event.set()
        while self._waiting:
            await asyncio.sleep(0.1)

    async def watch_nodes(self) -> None:
        """Ask Ray every five seconds which nodes leave, for good."""
        warned = False
        while True:
            await asyncio.sleep(POLL_S)
            try:
                leaving = draining_nodes()
            except Exception as error:  # the head may be away for a moment, and another Ray lack the function
                if not warned:
                    logger.warning("Ray does not say which nodes leave: %s: %s", type(error).__name__, error)
                warned, leaving = True, set()
            for nodes, event in self._waiting.values():
                if not leaving.isdisjoint(nodes):
                    event.set()


class SaveSchedule:
    """Tells when a trial saves its state, while entered.

    Args:
        trial_id: of the trial.
        nodes: ids of those that it runs on.
        notice: handle of a `SaveNotice`; None: the state is saved every five minutes only.
    """

    def __init__(self, trial_id: str, nodes: set[str], notice: Any):
        self._trial_id, self._nodes, self._notice = trial_id, nodes, notice
        self._saved_s, self._leaving, self._ended = time.monotonic(), False, False

    def __enter__(self) -> "SaveSchedule":
        if self._notice:
            notice: ray.ObjectRef = self._notice.wait.remote(self._trial_id, self._nodes)
            threading.Thread(target=self._wait_for, args=(notice,), daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended = True
        self.saved()

    def _wait_for(self, notice: ray.ObjectRef) -> None:
        with suppress(ray.exceptions.RayError):  # the study is gone
            ray.get(notice)
        if not self._ended:
            self._saved_s, self._leaving = float("-inf"), True

    def is_due(self) -> bool:
        """Return whether to save now."""
        if time.monotonic() - self._saved_s < (SAVE_EVERY_LEAVING_S if self._leaving else SAVE_EVERY_S):
            return False
        self._saved_s = time.monotonic()
        return True

    def saved(self) -> None:
        """Take note that the state is saved."""
        if self._notice and (self._leaving or self._ended):
            self._notice.saved.remote(self._trial_id)
