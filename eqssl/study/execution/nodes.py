"""The nodes of a cluster: those that are there, and those that its autoscaler may add."""

import json
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
        return min((_shares(name, self.resources.get(name, 0), amount) for name, amount in need.items()), default=0)


def _shares(name: str, total: float, amount: float) -> int:
    """Return how often a resource has an amount, of which a part of a GPU never lies on two of them."""
    if name == "GPU" and amount < 1:
        return int(total) * int(1 / amount + 1e-9)
    return int(total / amount + 1e-9)


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


def check_config(path: str) -> None:
    """Refuse a configuration that does not tell what its nodes have.

    Raises:
        ValueError: naming the file and what is missing.
    """
    config = read_config(path)
    try:
        missing, _ = untold(config), add_types([], config)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"--cluster-config is {path!r}, which cannot be read: {error!r}") from error
    if missing:
        raise ValueError(f"--cluster-config is {path!r}; allowed: one with resources of {', '.join(missing)}")


def untold(config: dict[str, Any]) -> list[str]:
    """Return the types of `ray up` whose resources are not told; those of a cloud are by the head's own file."""
    return [name for name, (count, resources) in _types(config).items() if count and not resources]


def add_types(there: Sequence[Nodes], config: dict[str, Any]) -> Cluster:
    """Return a cluster with the nodes that its configuration lets its autoscaler add.

    Args:
        there: nodes that stay.
        config: of `ray up`, or a RayJob or RayCluster of KubeRay.
    """
    if "spec" in config:
        return Cluster(there, [_kubernetes_group(group) for group in _groups(config)])
    most = config.get("max_workers", math.inf)
    addable = [Nodes(int(min(count, most)), resources) for count, resources in _types(config).values() if count]
    return Cluster(there, addable, most)


def _types(config: dict[str, Any]) -> dict[str, tuple[float, Resources]]:
    """Return the most nodes and the resources of each type of `ray up`."""
    head, most = config.get("head_node_type"), config.get("max_workers", math.inf)
    return {
        name: (kind.get("max_workers", 0 if name == head else most), kind.get("resources", {}))
        for name, kind in config.get("available_node_types", {}).items()
    }


def _groups(config: dict[str, Any]) -> list[dict[str, Any]]:
    return config["spec"].get("rayClusterSpec", config["spec"])["workerGroupSpecs"]


def _kubernetes_group(group: dict[str, Any]) -> Nodes:
    """Return the pods of a group with what Ray counts there: its own words first, then the first container's."""
    own, start = group.get("resources", {}), group.get("rayStartParams", {})
    container = group["template"]["spec"]["containers"][0].get("resources", {})
    pod = container.get("requests", {}) | container.get("limits", {})
    gpus = next((amount for name, amount in pod.items() if name.endswith("gpu")), 0)
    counted = {
        "CPU": own.get("CPU", start.get("num-cpus", pod.get("cpu", 0))),
        "GPU": own.get("GPU", start.get("num-gpus", gpus)),
    }
    others = {name: amount for name, amount in own.items() if name not in (*counted, "memory")}
    if not own and "resources" in start:  # JSON within quotes for a shell
        others = json.loads(start["resources"].replace("\\", "").strip("\"'"))
    resources = {name: _whole(amount) for name, amount in (counted | others).items()}
    pods = group["maxReplicas"] * group.get("numOfHosts", 1)
    return Nodes(pods, {name: amount for name, amount in resources.items() if amount or name == "CPU"})


def _whole(quantity: float | str) -> int:
    """Return a quantity of Kubernetes, such as `7500m`, rounded up."""
    text = str(quantity)
    return math.ceil(float(text[:-1]) / 1000 if text.endswith("m") else float(text))
