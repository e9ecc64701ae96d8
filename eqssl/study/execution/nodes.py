"""Nodes at which trials fail, such as one that lacks a package: retries, and in the end all trials, go elsewhere."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from ray.tune import PlacementGroupFactory

from eqssl.study.execution.cluster import Resources, alive_nodes, room_for

logger = logging.getLogger(__name__)

ADDRESS, NODE_ID = "NodeManagerAddress", "ray.io/node-id"  # key of a node in `ray.nodes`, and Ray's own label
RECOVERED = 3  # trials that failed at a node and progressed at another, after which no trial starts there any more


@dataclass
class _Node:
    is_proven: bool = False  # whether it passed the preflight, or a trial has progressed here
    failures: Counter[str] = field(default_factory=Counter)  # by trial, since it last progressed here
    recovered: set[str] = field(default_factory=set)  # trials of these that went on elsewhere since any progressed here


class FailingNodes:
    """The choice of nodes for trials, from their failures and progress; addresses identify nodes, as in Ray's errors.

    A trial avoids a proven node where it failed twice, and any other one where it failed. All trials avoid a node where
    three failed that went on elsewhere. A node is only avoided while another one has room for a trial.

    Args:
        reserved: resources of a trial's process, under Ray's names.
        proven: addresses of nodes that have passed the preflight; others join later.
    """

    def __init__(self, reserved: Resources, proven: Iterable[str] = ()):
        self._reserved = dict(reserved)
        self._nodes = defaultdict(_Node, {address: _Node(is_proven=True) for address in proven})

    def failed(self, trial_id: str, address: str) -> None:
        """Note an attempt that failed."""
        self._nodes[address].failures[trial_id] += 1

    def progressed(self, trial_id: str, address: str) -> None:
        """Note a further epoch or the end of a trial, which is evidence against the other nodes where it failed."""
        here = self._nodes[address]
        here.is_proven = True
        for trial in (*here.recovered, trial_id):
            here.failures.pop(trial, None)
        here.recovered.clear()
        for other, node in self._nodes.items():
            if trial_id in node.failures.keys() - node.recovered:
                node.recovered.add(trial_id)
                if len(node.recovered) == RECOVERED:
                    logger.warning(
                        "node %s is avoided from now on: %d trials failed there and went on elsewhere", other, RECOVERED
                    )

    def requirement(self, trial_id: str) -> PlacementGroupFactory:
        """Return the resources for a trial's next attempt, at a node that it does not avoid."""
        avoided = {
            address
            for address, node in self._nodes.items()
            if node.failures[trial_id] > (1 if node.is_proven else 0) or len(node.recovered) >= RECOVERED
        }
        nodes = alive_nodes() if avoided else []
        bad = [node["NodeID"] for node in nodes if node[ADDRESS] in avoided]
        others = [node["Resources"] for node in nodes if node[ADDRESS] not in avoided]
        if not bad or not room_for(others, self._reserved):
            return PlacementGroupFactory([self._reserved])
        return PlacementGroupFactory([self._reserved], bundle_label_selector=[{NODE_ID: f"!in({', '.join(bad)})"}])
