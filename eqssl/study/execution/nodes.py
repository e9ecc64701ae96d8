"""Nodes on which no trial can begin, such as one without a package: they are avoided and cost no attempts."""

import logging
import re
from collections import Counter
from collections.abc import Mapping

from ray.tune import PlacementGroupFactory

from eqssl.study.execution.cluster import alive_nodes

logger = logging.getLogger(__name__)

# In the last line of an error: a package, a library, a driver or space that a node lacks.
LACKS = re.compile(r"ImportError|ModuleNotFoundError|cannot open shared object|No space left|CUDA|NVIDIA|cuDNN|NCCL")
NODE_ID, ADDRESS = "ray.io/node-id", "NodeManagerAddress"  # Ray's own label, and key of a node
SAID_AGAIN = 3  # failures on a node, after which it is mentioned once more


class BadNodes:
    """The nodes on which trials fail for want of something, that never had a trial progress, while others had.

    Such a node always has room, so that it would fail one trial after another.

    Args:
        resources: of a trial, in Ray's names.
    """

    def __init__(self, resources: Mapping[str, float]):
        self._resources = dict(resources)
        self._good: set[str] = set()  # addresses
        self._failures: Counter[str] = Counter()  # by address

    def progressed(self, address: str | None) -> None:
        """Take note that a trial has trained an epoch on a node."""
        if address:
            self._good.add(address)
            self._failures.pop(address, None)

    def is_to_blame(self, address: str | None, error: str) -> bool:
        """Return whether a failed attempt is the node's fault, which is said for the first and the third one.

        Args:
            address: of the node, if it is known.
            error: its last line.
        """
        if not address or address in self._good or not self._good or not LACKS.search(error):
            return False
        self._failures[address] += 1
        if self._failures[address] in (1, SAID_AGAIN):
            logger.warning(
                "node %s is avoided, since no trial can begin there (%d failed, which costs them no attempt): %s",
                address, self._failures[address], error,
            )  # fmt: skip
        return True

    def elsewhere(self) -> PlacementGroupFactory | None:
        """Return the requirement of a trial to come: its resources on another node; None while all nodes are good."""
        nodes = alive_nodes() if self._failures else []
        bad = [node["NodeID"] for node in nodes if node[ADDRESS] in self._failures]
        if not bad or not any(node[ADDRESS] in self._good for node in nodes):
            return None
        return PlacementGroupFactory([self._resources], bundle_label_selector=[{NODE_ID: f"!in({', '.join(bad)})"}])
