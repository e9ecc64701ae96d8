"""When to save within an epoch: now and then, and in time before a spot node is gone, two minutes after its notice."""

import logging
import threading
import time

import ray
from ray._private.state import state  # the one place that tells which nodes are drained; Ray Train asks it as well

logger = logging.getLogger(__name__)

POLL_S = 5.0
SAVE_EVERY_S = 300.0  # what a fault costs at most, however long an epoch is
SAVE_EVERY_LEAVING_S = 10.0  # while the node is still there


def this_node() -> str:
    """Return the id of the node that this process runs on."""
    return ray.get_runtime_context().get_node_id()


class NodeWatch:
    """Asks Ray every five seconds, while entered, whether one of these nodes is being drained.

    Args:
        nodes: their ids; without any, nothing is asked.
    """

    def __init__(self, nodes: set[str]):
        self._nodes, self._drained, self._saved_s = nodes, False, time.monotonic()
        self._ended = threading.Event()

    def __enter__(self) -> "NodeWatch":
        if self._nodes:
            threading.Thread(target=self._poll, daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()

    def due(self) -> bool:
        """Return whether the state should be saved now: every five minutes, at the notice, and often from then on."""
        if time.monotonic() - self._saved_s < (SAVE_EVERY_LEAVING_S if self._drained else SAVE_EVERY_S):
            return False
        self._saved_s = time.monotonic()
        return True

    def _poll(self) -> None:
        told = False
        while not self._drained and not self._ended.wait(POLL_S):
            try:
                if not self._nodes.isdisjoint(state.get_draining_nodes()):
                    self._saved_s, self._drained = float("-inf"), True
            except Exception as error:  # the head may be away for a moment
                if not told:
                    logger.warning("Ray does not say which nodes leave: %s: %s", type(error).__name__, error)
                told = True
