from contextlib import nullcontext

import pytest

from eqssl.study.execution.nodes import HEAD, Cluster, Nodes, add_types, check_config, read_config, untold

RAY_UP = """
head_node_type: head
max_workers: 8
available_node_types:
  head: {max_workers: 0, resources: {CPU: 0, train_driver: 4}, node_config: {}}
  spot: {min_workers: 0, max_workers: 8, resources: {CPU: 8, GPU: 1}, node_config: {}}
  large: {min_workers: 0, max_workers: 2, resources: {CPU: 32, GPU: 4}, node_config: {}}
"""
KUBERAY = """
kind: RayJob
spec:
  rayClusterSpec:
    workerGroupSpecs:
      - maxReplicas: 3
        template: {spec: {containers: [{resources: {limits: {cpu: 7500m, nvidia.com/gpu: 2}}}]}}
      - maxReplicas: 4
        template: {spec: {containers: [{resources: {limits: {cpu: "4"}}}]}}
"""
KUBERAY_OTHERWISE = r"""
spec:
  workerGroupSpecs:
    - maxReplicas: 3
      numOfHosts: 2
      rayStartParams: {num-cpus: "3", num-gpus: "1", resources: '"{\"accelerator\": 2}"'}
      template: {spec: {containers: [{resources: {limits: {cpu: "4"}}}]}}
    - maxReplicas: 1
      resources: {CPU: "2", fast: "4", memory: 1Gi}
      template: {spec: {containers: [{resources: {requests: {amd.com/gpu: 1}}}]}}
    - maxReplicas: 1
      template: {spec: {containers: [{resources: {requests: {cpu: 5500m}}}]}}
"""
HEAD_NODE = Nodes(1, {"train_driver": 4.0, HEAD: 1.0})


@pytest.fixture
def config(tmp_path):
    def written(text):
        path = tmp_path / "cluster.yaml"
        path.write_text(text)
        return read_config(str(path))

    return written


def test_what_is_needed_must_fit_on_one_node():
    cluster = Cluster([Nodes(3, {"CPU": 4.0})])
    assert cluster.hold({"CPU": 4}) == 3 and cluster.hold({"CPU": 3}) == 3 and cluster.hold({"CPU": 2}) == 6
    assert cluster.hold({"CPU": 5}) == 0
    assert cluster.hold({"CPU": 1, "GPU": 1}) == 0


def test_a_share_of_a_gpu_is_exact():
    assert Cluster([Nodes(1, {"GPU": 1.0})]).hold({"GPU": 0.1}) == 10


def test_a_share_of_a_gpu_lies_on_one_of_them():
    assert Cluster([Nodes(1, {"GPU": 2.0})]).hold({"GPU": 0.6}) == 2
    assert Cluster([Nodes(1, {"GPU": 2.0})]).hold({"GPU": 0.5}) == 4
    assert Cluster([Nodes(1, {"GPU": 8.0})]).hold({"GPU": 2}) == 4


def test_the_nodes_that_hold_most_are_added_first_and_no_more_than_allowed_in_all(config):
    cluster = add_types([HEAD_NODE], config(RAY_UP))
    assert cluster.hold({"GPU": 1}) == 2 * 4 + 6  # two large ones, and six more are eight
    assert cluster.hold({"train_driver": 1}) == 4
    text = cluster.text(["CPU", "GPU", "train_driver"])
    assert text == "1 x 4 train_driver; may come: 8 x 8 CPU + 1 GPU and 2 x 32 CPU + 4 GPU, 8 in all"


def test_groups_of_kuberay(config):
    cluster = add_types([HEAD_NODE], config(KUBERAY))
    assert [nodes.resources for nodes in cluster.addable] == [{"CPU": 8, "GPU": 2}, {"CPU": 4}]
    assert cluster.hold({"CPU": 4}) == 3 * 2 + 4


def test_groups_of_kuberay_tell_of_themselves_in_all_of_rays_ways(config):
    cluster = add_types([HEAD_NODE], config(KUBERAY_OTHERWISE))
    assert [(nodes.count, nodes.resources) for nodes in cluster.addable] == [
        (6, {"CPU": 3, "GPU": 1, "accelerator": 2}), (1, {"CPU": 2, "GPU": 1, "fast": 4}), (1, {"CPU": 6}),
    ]  # fmt: skip


def test_machines_that_somebody_owns_tell_nothing(config):
    types = "{local.cluster.node: {resources: {}, node_config: {}}}"
    text = f"head_node_type: local.cluster.node\nmax_workers: 2\navailable_node_types: {types}"
    assert untold(config(text)) == []  # a head alone
    owned = config(text.replace("resources", "max_workers: 2, resources"))
    assert untold(owned) == ["local.cluster.node"] and untold(config(RAY_UP)) == untold(config(KUBERAY)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RAY_UP, None),
        (KUBERAY, None),
        (RAY_UP.replace("resources: {CPU: 8, GPU: 1}, ", ""), "allowed: one with resources of spot"),
        (KUBERAY.replace("maxReplicas: 4", "replicas: 4"), "cannot be read: KeyError..maxReplicas"),
        (KUBERAY.replace("7500m", "many"), "cannot be read: ValueError"),
        ("spec: {}", "cannot be read: KeyError"),
    ],
)
def test_a_configuration_that_does_not_tell_what_its_nodes_have_is_refused(tmp_path, text, message):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"--cluster-config is .*{message}") if message else nullcontext():
        check_config(str(path))


@pytest.mark.parametrize(
    ("text", "message"), [("a: 1", "allowed"), ("a: [", "cannot be read"), (None, "cannot be read")]
)
def test_another_file_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "cluster.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=f"--cluster-config is .*cluster.yaml.*{message}"):
        read_config(str(path))
