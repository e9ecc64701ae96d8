"""Notices to trials whose processes are about to end: a spot node leaves in two minutes, or the study is stopped."""

import asyncio
import logging
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

logger = logging.getLogger(__name__)

POLL_S = 5.0


def this_node() -> str:
    """Return the id of the node that this process runs on."""
    return ray.get_runtime_context().get_node_id()


def draining_nodes() -> set[str]:
    """Return the ids of nodes that have a preemption notice.

    The public `ray.train.get_preemption_info` is a barrier for all workers of Ray Train; this reads its source.
    """
    from ray._private.state import state

    return set(state.get_draining_nodes())


def start_here(actor: type) -> Any:
    """Start an actor on this node that reserves nothing, and return its handle."""
    here = NodeAffinitySchedulingStrategy(this_node(), soft=False)
    return ray.remote(actor).options(num_cpus=0, scheduling_strategy=here).remote()


class SaveNotice:
    """Asks trials to save their state before their processes end; one actor per study."""

    def __init__(self) -> None:
        self._stopped = False
        self._waiting: dict[str, tuple[set[str], asyncio.Event]] = {}  # trial id -> its nodes and event

    async def wait(self, trial_id: str, nodes: set[str]) -> None:
        """Wait for a notice for one of the trial's nodes, a stop of the study, or the end of the trial."""
        event = asyncio.Event()
        self._waiting[trial_id] = nodes, event
        if not self._stopped:
            await event.wait()

    async def saved(self, trial_id: str) -> None:
        """Note that a trial has saved its state, or has ended."""
        if trial_id in self._waiting:
            self._waiting.pop(trial_id)[1].set()

    async def stop(self) -> None:
        """Ask all trials to save, and wait until they have."""
        self._stopped = True
        for _, event in self._waiting.values():
            event.set()
        while self._waiting:
            await asyncio.sleep(0.1)

    async def watch_nodes(self) -> None:
        """Look for notices every five seconds, forever."""
        warned = False
        while True:
            await asyncio.sleep(POLL_S)
            try:
                leaving = draining_nodes()
            except Exception as error:  # the head may be unreachable for a moment; another Ray may lack the function
                if not warned:
                    logger.warning("no notice of a leaving node can be seen: %s: %s", type(error).__name__, error)
                warned, leaving = True, set()
            for nodes, event in self._waiting.values():
                if not leaving.isdisjoint(nodes):
                    event.set()
