"""The commands of docs/cluster.md for AWS, run one after the other against moto's EC2, IAM, S3 and SSM.

Behind SSH there is nothing: `ssh` and `rsync` are scripts that note down every command and keep the files. What moto
does not do is resolving the image's parameter and enforcing roles; the roles' policies are compared with the requests.
"""

import fnmatch
import json
import os
import shlex
import time
from contextlib import contextmanager

import pytest
import yaml

from tests.cluster.cloud import ADDRESS, REGION, User, commands_of
from tests.storage import s3_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
IMAGE = "resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    """Bring the cluster up; add its security group and its head."""
    boto3 = pytest.importorskip("boto3")
    with s3_server() as port:
        endpoint = f"http://127.0.0.1:{port}"
        user = User(tmp_path_factory.mktemp("up"), {"AWS_ENDPOINT_URL": endpoint})
        user.client = lambda service: boto3.Session().client(
            service, REGION, endpoint_url=endpoint, aws_access_key_id="test", aws_secret_access_key="test"
        )
        user.group = user.up()
        (user.head,) = instances(user)
        user.volumes = volumes(user)
        yield user


def instances(user, *states: str) -> list[dict]:
    """Return the instances in some states, by default those that run."""
    answer = user.client("ec2").describe_instances()
    found = [one for reservation in answer["Reservations"] for one in reservation["Instances"]]
    return [one for one in found if one["State"]["Name"] in (states or ("pending", "running"))]


def volumes(user) -> dict[str, dict]:
    return {one["VolumeId"]: one for one in user.client("ec2").describe_volumes()["Volumes"]}


def tags(instance: dict) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in instance["Tags"]}


def asked(user, address: str) -> list[str]:
    """Return the files and the shell commands that a node was sent, in order."""
    entries = [entry.partition(" ") for entry in (user.folder / "asked").read_text().split("\0")]
    files = [target.removeprefix(f"ubuntu@{address}:") for target, _, _ in entries]
    commands = [shlex.split(command)[-1] if command else "" for _, _, command in entries]
    to_it = [target.split(":")[0] == f"ubuntu@{address}" for target, _, _ in entries]
    return [command or file for command, file, here in zip(commands, files, to_it, strict=True) if here]


def assert_has_what_all_nodes_have(user, instance: dict, profile: str) -> None:
    assert instance["ImageId"] == IMAGE
    assert instance["IamInstanceProfile"]["Arn"].endswith(f":instance-profile/{profile}")
    assert [group["GroupId"] for group in instance["SecurityGroups"]] == [user.group]
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    assert instance["KeyName"] == f"ray-autoscaler_{REGION}" and instance["PublicIpAddress"]
    assert instance["Placement"]["AvailabilityZone"] in ("us-west-2a", "us-west-2b", "us-west-2c")
    (disk,) = instance["BlockDeviceMappings"]
    assert disk["DeviceName"] == "/dev/sda1" and disk["Ebs"]["DeleteOnTermination"] is True
    volume = user.volumes[disk["Ebs"]["VolumeId"]]
    assert (volume["Size"], volume["VolumeType"], volume["Encrypted"]) == (150, "gp3", True)
    assert tags(instance)["ray-cluster-name"] == "eqssl"


def test_the_head_is_on_demand_with_the_image_disk_role_and_tags_of_the_file(up):
    assert up.head["InstanceType"] == "r6i.xlarge" and "InstanceLifecycle" not in up.head
    assert_has_what_all_nodes_have(up, up.head, "eqssl-head")
    assert up.head["Placement"]["AvailabilityZone"] == "us-west-2a"
    expected = {"Name": "ray-eqssl-head", "ray-node-type": "head", "ray-user-node-type": "head"}
    assert expected.items() <= tags(up.head).items()
    assert tags(up.head)["ray-node-status"] == "up-to-date"  # after all that was sent by SSH


def test_only_the_group_itself_and_the_user_reach_a_node(up):
    groups = up.client("ec2").describe_security_groups()["SecurityGroups"]
    assert {group["GroupName"] for group in groups} == {"default", "eqssl"}  # Ray made none
    (group,) = [group for group in groups if group["GroupId"] == up.group]
    inside, ssh = sorted(group["IpPermissions"], key=lambda rule: rule["IpProtocol"])
    assert inside["IpProtocol"] == "-1" and not inside["IpRanges"]
    assert [pair["GroupId"] for pair in inside["UserIdGroupPairs"]] == [up.group]
    assert (ssh["IpProtocol"], ssh["FromPort"], ssh["ToPort"]) == ("tcp", 22, 22) and not ssh["UserIdGroupPairs"]
    assert [one["CidrIp"] for one in ssh["IpRanges"]] == [f"{ADDRESS}/32"]


def test_the_roles_are_those_of_the_guide(up):
    profiles = up.client("iam").list_instance_profiles()["InstanceProfiles"]
    roles = {profile["InstanceProfileName"]: [role["RoleName"] for role in profile["Roles"]] for profile in profiles}
    assert roles == {"eqssl-head": ["eqssl-head"], "eqssl-worker": ["eqssl-worker"]}  # Ray made none


def test_the_head_gets_token_configuration_and_key_before_it_is_set_up_and_started(up):
    sent = asked(up, up.head["PublicIpAddress"])
    config = yaml.safe_load((up.folder / "ray_cluster.yaml").read_text())
    setup = [*config["setup_commands"], *config["head_setup_commands"]]
    ends = ["uptime", "~/.ray/auth_token", "~/ray_bootstrap_config.yaml", "~/ray_bootstrap_key.pem", *setup, "ray stop"]
    places = [next(i for i, one in enumerate(sent) if end in one) for end in ends]
    assert places == sorted(places)
    start = sent[-1]
    assert "export RAY_enable_autoscaler_v2=1" in start and "export RAY_NODE_TYPE_NAME=head" in start
    assert '"train_driver":8' in start and '"market":"on-demand"' in start
    assert "ray start --head" in start and places[-1] == len(sent) - 2
    assert_has_the_token(up, up.head["PublicIpAddress"])
    assert "PRIVATE KEY" in (up.folder / "nodes" / up.head["PublicIpAddress"] / "ray_bootstrap_key.pem").read_text()


def assert_has_the_token(user, address: str) -> None:
    homes = (user.folder / "nodes" / address, user.folder / "HOME")
    assert len({(home / ".ray" / "auth_token").read_text() for home in homes}) == 1


@contextmanager
def on_the_head(user):
    """Let this process be one of the head; yield its EC2 requests, as (action, parameters)."""
    import boto3
    from ray.autoscaler._private.aws import utils

    caches = (utils.resource_cache, utils.client_cache)
    requests = []
    session = boto3.Session(region_name=REGION)
    session.events.register(
        "before-parameter-build", lambda params, model, **_: requests.append((model.name, dict(params)))
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in user.environment.items():
            patch.setenv(name, value)
        patch.setenv("HOME", str(user.folder / "nodes" / user.head["PublicIpAddress"]))
        patch.setattr(boto3, "DEFAULT_SESSION", session)
        for cache in caches:
            cache.cache_clear()
        yield requests
        for cache in caches:
            cache.cache_clear()


@pytest.fixture(scope="module")
def workers(up):
    """Let the autoscaler's provider of the head add a worker of each type, by the file that the head was sent.

    Adds `up.spot` and `up.on_demand`, and `up.requests`: the EC2 requests of the head until both have ended.
    """
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler.v2.instance_manager.config import FileConfigReader
    from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter
    from ray.autoscaler.v2.instance_manager.ray_installer import RayInstaller
    from ray.core.generated.instance_manager_pb2 import Instance

    with on_the_head(up) as up.requests:
        reader = FileConfigReader(os.path.expanduser("~/ray_bootstrap_config.yaml"), skip_content_hash=True)
        config = reader.get_cached_autoscaling_config()
        provider = _get_node_provider(config.get_provider_config(), config.get_config("cluster_name"))
        cloud = NodeProviderAdapter(provider, reader)
        cloud.launch({"gpu_spot": 1, "gpu_on_demand": 1}, request_id="1")
        deadline = time.monotonic() + 60
        while len(ids := {one.node_type: name for name, one in cloud.get_non_terminated().items()}) < 3:
            assert time.monotonic() < deadline, cloud.poll_errors()
            time.sleep(0.2)
        assert ids["head"] == up.head["InstanceId"]
        found = {one["InstanceId"]: one for one in instances(up)}
        up.spot, up.on_demand = found[ids["gpu_spot"]], found[ids["gpu_on_demand"]]
        up.volumes = volumes(up)
        spot = Instance(cloud_instance_id=ids["gpu_spot"], instance_type="gpu_spot")
        RayInstaller(provider, config).install_ray(spot, up.head["PrivateIpAddress"])
        cloud.terminate([ids["gpu_on_demand"]], request_id="2")
        while len(instances(up)) > 2:
            assert time.monotonic() < deadline, cloud.poll_errors()
            time.sleep(0.2)
    return up


def test_one_worker_is_a_spot_instance_and_the_other_is_not(workers):
    assert workers.spot["InstanceLifecycle"] == "spot" and "InstanceLifecycle" not in workers.on_demand
    for worker, kind in ((workers.spot, "gpu_spot"), (workers.on_demand, "gpu_on_demand")):
        assert worker["InstanceType"] == "g6.2xlarge"
        assert_has_what_all_nodes_have(workers, worker, "eqssl-worker")
        expected = {"Name": "ray-eqssl-worker", "ray-node-type": "worker", "ray-user-node-type": kind}
        assert expected.items() <= tags(worker).items()
    options = [
        parameters.get("InstanceMarketOptions") for name, parameters in workers.requests if name == "RunInstances"
    ]
    spot = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
    assert sorted(options, key=bool) == [None, {"MarketType": "spot", "SpotOptions": spot}]


def test_an_idle_worker_is_terminated_and_not_stopped(workers):
    assert not instances(workers, "stopping", "stopped")
    (ended,) = instances(workers, "shutting-down", "terminated")
    assert ended["InstanceId"] == workers.on_demand["InstanceId"]


def test_a_worker_gets_the_token_is_set_up_and_joins_the_head(workers):
    sent = asked(workers, workers.spot["PrivateIpAddress"])
    config = yaml.safe_load((workers.folder / "ray_cluster.yaml").read_text())
    setup = [*config["setup_commands"], *config["worker_setup_commands"]]
    places = [next(i for i, one in enumerate(sent) if end in one) for end in ["~/.ray/auth_token", *setup, "ray stop"]]
    assert places == sorted(places) and places[-1] == len(sent) - 2
    head = workers.head["PrivateIpAddress"]
    assert f"export RAY_HEAD_IP={head}; " in sent[-1] and 'ray start --address="$RAY_HEAD_IP:6379"' in sent[-1]
    assert '"GPU":1' in sent[-1] and '"market":"spot"' in sent[-1]
    assert_has_the_token(workers, workers.spot["PrivateIpAddress"])


def allows(policy: dict, action: str, resource: str, request_tags: dict, resource_tags: dict) -> bool:
    """Return whether a policy of `Allow`s and `StringEquals` on tags allows an action on a resource."""
    given = {f"aws:RequestTag/{name}": value for name, value in request_tags.items()}
    given |= {f"aws:ResourceTag/{name}": value for name, value in resource_tags.items()}
    for statement in policy["Statement"]:
        actions, resources = (
            [statement[key]] if isinstance(statement[key], str) else statement[key] for key in ("Action", "Resource")
        )
        if (
            any(fnmatch.fnmatchcase(action, pattern) for pattern in actions)
            and any(fnmatch.fnmatchcase(resource, pattern) for pattern in resources)
            and statement.get("Condition", {}).get("StringEquals", {}).items() <= given.items()
        ):
            return True
    return False


def test_the_heads_role_allows_every_request_that_its_autoscaler_makes(workers):
    policy = workers.client("iam").get_role_policy(RoleName="eqssl-head", PolicyName="nodes")["PolicyDocument"]
    ec2 = f"arn:aws:ec2:{REGION}:123456789012"
    of_run = ["subnet", "security-group", "network-interface", "volume", "key-pair", "instance"]
    for name, parameters in workers.requests:
        given = {tag["Key"]: tag["Value"] for spec in parameters.get("TagSpecifications", []) for tag in spec["Tags"]}
        resources, of_it = ["*"], {}
        if name == "RunInstances":
            resources = [f"{ec2}:{kind}/1" for kind in of_run] + [f"arn:aws:ec2:{REGION}::image/ami-1"]
            resources += [f"{ec2}:spot-instances-request/1"] * ("InstanceMarketOptions" in parameters)
            assert allows(policy, "ec2:CreateTags", f"{ec2}:instance/1", given, {})
        elif name in ("CreateTags", "TerminateInstances"):
            resources, of_it = [f"{ec2}:instance/1"], tags(workers.spot)
        for resource in resources:
            assert allows(policy, f"ec2:{name}", resource, given, of_it), (name, resource)
    assert {"RunInstances", "CreateTags", "TerminateInstances"} <= {name for name, _ in workers.requests}
    assert not allows(policy, "ec2:TerminateInstances", f"{ec2}:instance/1", {}, {"ray-cluster-name": "another"})
    assert allows(policy, "ssm:GetParameters", "*", {}, {})  # EC2 resolves the image on behalf of who asks
    role = workers.client("iam").get_role(RoleName="eqssl-worker")["Role"]["Arn"]
    assert allows(policy, "iam:PassRole", role, {}, {})
    assert not allows(policy, "iam:PassRole", role.replace("worker", "head"), {}, {})


def test_down_ends_everything(workers):
    output = workers.run(commands_of("Down"))
    assert json.loads(output[output.rindex("[") :]) == []
    assert not instances(workers) and not instances(workers, "stopping", "stopped")
    sent = asked(workers, workers.head["PublicIpAddress"])
    assert any("~/mlflow/backup.sh" in one for one in sent[-3:])
    assert not volumes(workers)  # no disk is left that costs
