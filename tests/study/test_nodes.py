import pytest

from eqssl.study.nodes import HEAD, Cluster, Nodes, add_types, read_config

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


@pytest.mark.parametrize(
    ("text", "message"), [("a: 1", "allowed"), ("a: [", "cannot be read"), (None, "cannot be read")]
)
def test_another_file_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "cluster.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=f"--cluster-config is .*cluster.yaml.*{message}"):
        read_config(str(path))
