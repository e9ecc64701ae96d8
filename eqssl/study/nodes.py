"""The nodes of a cluster: those that are there, and those that its autoscaler may add."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEAD = "node:__internal_head__"  # a resource that Ray gives the head alone
Resources = Mapping[str, float]


@dataclass(frozen=True)
class Nodes:
    """Nodes that are alike.

    Args:
        count: how many, at most.
        resources: of each, in Ray's names.
    """

    count: int
    resources: Resources

    def hold(self, need: Resources) -> int:
        """Return how many of what needs these resources fit on one node."""
        return min((int(self.resources.get(name, 0) / amount + 1e-9) for name, amount in need.items()), default=0)


@dataclass(frozen=True)
class Cluster:
    """What a cluster is when its autoscaler has done all that it may.

    Args:
        there: nodes that stay.
        addable: nodes of each type that the autoscaler may add, those of them that are there already included.
        most_added: of all types together.
    """

    there: Sequence[Nodes]
    addable: Sequence[Nodes] = ()
    most_added: float = math.inf

    def hold(self, need: Resources) -> int:
        """Return how many of what needs these resources fit on all nodes."""
        total, left = sum(nodes.count * nodes.hold(need) for nodes in self.there), self.most_added
        for nodes in sorted(self.addable, key=lambda nodes: -nodes.hold(need)):
            added = int(min(nodes.count, left))
            total, left = total + added * nodes.hold(need), left - added
        return total

    def text(self, names: Sequence[str]) -> str:
        """Return the nodes in words.

        Args:
            names: of the resources to tell of.
        """
        there, may_come = _text(self.there, names), _text(self.addable, names)
        if self.most_added < sum(nodes.count for nodes in self.addable):
            may_come += f", {self.most_added:g} in all"
        return f"{there}; may come: {may_come}" if self.addable else there


def _text(groups: Sequence[Nodes], names: Sequence[str]) -> str:
    return " and ".join(f"{nodes.count} x {amounts(nodes.resources, names)}" for nodes in groups)


def amounts(resources: Resources, names: Sequence[str]) -> str:
    """Return resources in words, such as `8 CPU + 1 GPU`."""
    return " + ".join(f"{resources[name]:g} {name}" for name in names if resources.get(name)) or f"0 {names[0]}"


def read_config(path: str) -> dict[str, Any]:
    """Return the configuration of a cluster.

    Args:
        path: of its YAML.

    Raises:
        ValueError: for a file that is not there or has no node types.
    """
    import yaml

    try:
        config = yaml.safe_load(Path(path).expanduser().read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"--cluster-config is {path!r}, which cannot be read: {error}") from error
    if not isinstance(config, dict) or not {"available_node_types", "spec"} & config.keys():
        raise ValueError(f"--cluster-config is {path!r}; allowed: a configuration of `ray up`, a RayJob or RayCluster")
    return config


def add_types(there: Sequence[Nodes], config: dict[str, Any]) -> Cluster:
    """Return a cluster with the nodes that its configuration lets its autoscaler add.

    Args:
        there: nodes that stay.
        config: of `ray up`, or a RayJob or RayCluster of KubeRay.
    """
    if "spec" in config:
        return Cluster(there, [_kubernetes_group(group) for group in _groups(config)])
    head, types = config.get("head_node_type"), config["available_node_types"]
    most = config.get("max_workers", math.inf)
    addable = [
        Nodes(int(min(kind.get("max_workers", 0 if name == head else most), most)), kind.get("resources", {}))
        for name, kind in types.items()
    ]
    return Cluster(there, [nodes for nodes in addable if nodes.count], most)


def _groups(config: dict[str, Any]) -> list[dict[str, Any]]:
    return config["spec"].get("rayClusterSpec", config["spec"])["workerGroupSpecs"]


def _kubernetes_group(group: dict[str, Any]) -> Nodes:
    """Return the pods of a group: what its first container may use is what Ray counts."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    cpus = str(limits.get("cpu", 0))
    resources = {"CPU": math.ceil(float(cpus[:-1]) / 1000 if cpus.endswith("m") else float(cpus))}
    if gpus := int(limits.get("nvidia.com/gpu", 0)):
        resources["GPU"] = gpus
    return Nodes(group["maxReplicas"], resources)
