"""What is shipped for clusters: valid by Ray's own schema, and by what no schema asks."""

import json
import re
import subprocess
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from eqssl.study.execution.cluster import GPUS_PER_WORKER, RAY_VERSION

ROOT = Path(__file__).parents[2]
FILES = {name: (ROOT / name).read_text() for name in ("ray_cluster.yaml", "ray_job.yaml")}
CONFIG = yaml.safe_load(FILES["ray_cluster.yaml"])
HEAD = CONFIG["available_node_types"][CONFIG["head_node_type"]]
WORKERS = {name: kind for name, kind in CONFIG["available_node_types"].items() if name != CONFIG["head_node_type"]}
COMMANDS = {key: CONFIG[key] for key in CONFIG if key.endswith("_commands")}
JOB = yaml.safe_load(FILES["ray_job.yaml"])["spec"]
SECRETS = [
    r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    r"-----BEGIN",
    r"(?i)(password|passwd|secret|secret_access_key|auth_token)\s*[:=]\s*['\"]?\w",
    r"\b[0-9a-f]{32,}\b",
    r"https?://[^/\s]+:[^/\s]+@",
]


@pytest.fixture(scope="module")
def prepared():
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(CONFIG)


def test_the_cluster_is_valid_by_rays_own_schema(prepared):
    from ray.autoscaler._private.util import validate_config

    validate_config(prepared)


def test_the_head_takes_no_task_and_there_is_one(prepared):
    assert HEAD["min_workers"] == HEAD["max_workers"] == 0
    assert HEAD["resources"]["CPU"] == HEAD["resources"]["GPU"] == 0
    assert "InstanceMarketOptions" not in HEAD["node_config"]
    most = prepared["max_workers"] * max(kind["resources"]["GPU"] for kind in WORKERS.values())
    assert HEAD["resources"]["train_driver"] == most


def test_workers_come_and_go_and_spot_is_tried_first():
    spot, fallback = WORKERS["gpu_spot"], WORKERS["gpu_on_demand"]
    assert spot["node_config"]["InstanceMarketOptions"]["MarketType"] == spot["labels"]["market"] == "spot"
    assert "InstanceMarketOptions" not in fallback["node_config"] and fallback["labels"]["market"] == "on-demand"
    assert spot["priority"] > fallback["priority"]
    assert spot["resources"] == fallback["resources"] and spot["resources"]["GPU"] > 0
    for kind in WORKERS.values():
        assert kind["min_workers"] == 0 < kind["max_workers"] <= CONFIG["max_workers"]
    assert CONFIG["idle_timeout_minutes"] >= 10
    assert CONFIG["provider"]["cache_stopped_nodes"] is False


def test_ec2_knows_every_option_of_a_node():
    from botocore.session import get_session

    shape = get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for kind in CONFIG["available_node_types"].values():
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        check_shape(kind["node_config"], shape)


def check_shape(value, shape):
    if shape.type_name == "structure":
        assert value.keys() <= shape.members.keys(), value
        for name, part in value.items():
            check_shape(part, shape.members[name])
    elif shape.type_name == "list":
        for part in value:
            check_shape(part, shape.member)
    else:
        assert value in (getattr(shape, "enum", None) or [value])


def test_one_version_of_ray_everywhere():
    installed = re.findall(r"\"ray\[default,train,tune\]==([\d.]+)\"", FILES["ray_cluster.yaml"])
    images = re.findall(r"(?:rayproject/ray:|:ray-)([\d.]+\d)", FILES["ray_job.yaml"])
    assert installed == [RAY_VERSION] and set(images) == {JOB["rayClusterSpec"]["rayVersion"]} == {RAY_VERSION}


def test_a_worker_that_comes_later_installs_what_the_head_has():
    assert re.search(r"export UV_EXCLUDE_NEWER=20\d\d-\d\d-\d\d ", COMMANDS["setup_commands"][0])
    assert "uv pip install" in COMMANDS["setup_commands"][1]


def test_the_head_may_only_start_and_end_instances_of_its_cluster():
    text = (ROOT / "docs" / "cluster.md").read_text()
    (policy,) = re.findall(r"--policy-name nodes --policy-document '(\{.*?\})'", text, re.DOTALL)
    cluster = CONFIG["cluster_name"]
    limited = {"ec2:RunInstances": "aws:RequestTag", "ec2:TerminateInstances": "aws:ResourceTag"}
    for statement in json.loads(policy)["Statement"]:
        for action in {statement["Action"]} if isinstance(statement["Action"], str) else set(statement["Action"]):
            resources = statement["Resource"]
            if action in limited and "instance/" in str(resources):
                tag = f"{limited[action]}/ray-cluster-name"
                assert statement["Condition"] == {"StringEquals": {tag: cluster}}
            assert resources != "*" or action in ("ec2:Describe*", "ssm:GetParameters")


def test_the_python_of_the_nodes_is_one_that_the_package_runs_on():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    lowest = tuple(int(part) for part in needed.removeprefix(">=").split("."))
    cluster = re.findall(r"uv venv --python (\d+)\.(\d+)", FILES["ray_cluster.yaml"])
    job = re.findall(r"-py(\d)(\d+)-", FILES["ray_job.yaml"])
    assert cluster == job and tuple(map(int, cluster[0])) >= lowest


@pytest.mark.parametrize("name", FILES)
def test_no_secret_and_no_public_address(name):
    for pattern in SECRETS:
        assert not re.search(pattern, FILES[name]), pattern
    assert "0.0.0.0" not in FILES[name] and "::/0" not in FILES[name]


def test_ports_are_the_loopbacks_and_the_token_is_asked_for():
    head = COMMANDS["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head and "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert re.findall(r"--host (\S+)", FILES["ray_cluster.yaml"]) == ["127.0.0.1"]
    assert CONFIG["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    environment = COMMANDS["setup_commands"][0]
    assert "export RAY_AUTH_MODE=token" in environment and "export RAY_JOB_STOP_WAIT_TIME_S=60" in environment
    assert "export RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S=900" in environment
    for kind in CONFIG["available_node_types"].values():
        assert kind["node_config"]["SecurityGroupIds"]  # or Ray makes one that lets in SSH from anywhere


def test_a_study_knows_the_gpus_of_nodes_that_are_still_to_come():
    gpus = {kind["resources"]["GPU"] for kind in WORKERS.values()}
    (cluster,) = re.findall(rf"export {GPUS_PER_WORKER}=(\d+) ", FILES["ray_cluster.yaml"])
    (head,) = JOB["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    job = next(variable["value"] for variable in head["env"] if variable["name"] == GPUS_PER_WORKER)
    assert {float(cluster)} == {float(job)} == gpus


def test_ray_starts_inside_the_checkout():
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "cd ~/eqssl && ray start " in COMMANDS[key][-1]


def test_commands_are_shell_in_the_wrapping_that_ray_gives_them():
    from ray.autoscaler._private.command_runner import _with_interactive
    from ray.autoscaler._private.util import with_head_node_ip

    commands = [command for part in COMMANDS.values() for command in with_head_node_ip(part, "10.0.0.1")]
    for command in commands:
        run = _with_interactive(command)
        subprocess.run(["bash", "-n", "-c", " ".join(run)], check=True)
        subprocess.run(["bash", "-n", "-c", f"({command})"], check=True)
    for script in scripts().values():
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def scripts() -> dict[str, str]:
    """Return the files that the commands write."""
    commands = "\n".join(command for part in COMMANDS.values() for command in part)
    return dict(re.findall(r"cat > ~/(\S+) <<'END'\n(.*?\n)END\n", commands, re.S))


class Metadata(BaseHTTPRequestHandler):
    """An instance's metadata: a notice once it has been asked for twice, and nothing without a session."""

    asked = 0

    def do_PUT(self):
        self._answer(200, b"session")

    def do_GET(self):
        Metadata.asked += 1
        authorised = self.headers["X-aws-ec2-metadata-token"] == "session"
        there = authorised and self.path == "/latest/meta-data/spot/instance-action" and Metadata.asked > 1
        self._answer(200 if there else 404, b'{"action": "terminate"}')

    def _answer(self, status, body):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def test_a_spot_notice_drains_the_node(tmp_path):
    script = scripts()["spot_notice.sh"]
    assert "while sleep 5" in script
    (tmp_path / "spot_notice.sh").write_text(script.replace("sleep 5", "sleep 0.1"))
    (tmp_path / "cluster.env").touch()
    ray = tmp_path / "ray"
    ray.write_text('#!/bin/sh\necho "$@" > ~/drained\n')
    ray.chmod(0o755)
    server = HTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    address = f"http://127.0.0.1:{server.server_port}"
    subprocess.run(["bash", tmp_path / "spot_notice.sh", address], env=environment, check=True, timeout=30)
    server.shutdown()
    drained = (tmp_path / "drained").read_text()
    assert (
        "drain-node --reason DRAIN_NODE_REASON_PREEMPTION" in drained and "--deadline-remaining-seconds 120" in drained
    )
    assert Metadata.asked == 2


def test_a_job_on_kubernetes_can_be_tried_again():
    assert JOB["backoffLimit"] > 0 and JOB["shutdownAfterJobFinishes"] is True
    assert "--resume" in JOB["entrypoint"].split() and (ROOT / JOB["entrypoint"].split()[1]).is_file()


def test_a_cluster_on_kubernetes_is_that_on_aws():
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = JOB["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True and cluster["autoscalerOptions"]["version"] == "v2"
    resource = {"metadata": {"name": "study", "namespace": "default"}, "spec": cluster}
    config = _derive_autoscaling_config_from_ray_cr(resource)  # validates it by Ray's schema
    types = config["available_node_types"]
    head = types.pop("headgroup")
    assert config["idle_timeout_minutes"] == CONFIG["idle_timeout_minutes"]
    assert head["max_workers"] == 0
    assert {name: head["resources"].get(name, 0) for name in HEAD["resources"]} == HEAD["resources"]
    assert {name.replace("-", "_") for name in types} == WORKERS.keys()
    for name, kind in types.items():
        same = WORKERS[name.replace("-", "_")]
        assert {part: kind["resources"][part] for part in same["resources"]} == same["resources"]
        assert (kind["priority"], kind["labels"], kind["min_workers"]) == (same["priority"], same["labels"], 0)


def test_only_the_spot_group_runs_on_spot_nodes():
    groups = {group["groupName"]: group["template"]["spec"] for group in JOB["rayClusterSpec"]["workerGroupSpecs"]}
    head = JOB["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    markets = {name: spec["nodeSelector"]["karpenter.sh/capacity-type"] for name, spec in groups.items()}
    assert markets == {"gpu-spot": "spot", "gpu-on-demand": "on-demand"}
    assert head["nodeSelector"]["karpenter.sh/capacity-type"] == "on-demand"
    for spec in (head, *groups.values()):
        assert spec["restartPolicy"] == "Never"  # or the autoscaler takes an old node for a new one
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in groups["gpu-spot"]["tolerations"]
