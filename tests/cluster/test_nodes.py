"""A study on the cluster of `ray_cluster.yaml`: every command of user, head and worker, on a host without a network.

The host is made of namespaces of this machine, EC2 and S3 are a server on it, and a node is a home directory that `ssh`
enters. So this is not tried: an AMI, its GPU and systemd, SSH itself, the installation of uv, and a spot notice, since
of two nodes on a host `ray drain-node` takes the head. Packages come from uv's cache; `ray stop` is left out.
"""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from tests.cluster.cloud import ACCOUNT, ROOT, User, commands_of, write_scripts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
HEAD = "172.31.0.4"  # the first private address that moto gives
NAMESPACES = ["unshare", "--net", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child"]
HOST = f"""
    set -e
    ip link set lo up
    ip address add {HEAD}/16 dev lo
    ip route add default dev lo
    mkdir -p FOLDER/ray /tmp/ray
    mount --bind FOLDER/ray /tmp/ray
    {sys.executable} -m moto.server -H 127.0.0.1 -p 5555 > FOLDER/moto.log 2>&1 &
    until (exec 3<> /dev/tcp/127.0.0.1/5555) 2> /dev/null; do sleep 0.2; done
    touch FOLDER/ready
    sleep infinity
"""
ENDPOINT = "http://127.0.0.1:5555"
AS_ON_AN_AMI = {
    "sudo": 'exec "$@"',
    "systemctl": "[ -e ~/unit.$3 ]  # is-active --quiet UNIT",
    "systemd-run": """
        while [[ $1 = --* ]]; do
            [[ $1 = --unit=* ]] && unit=${1#*=}
            [[ $1 = --on-calendar=* ]] && unit=$unit.timer
            shift
        done
        touch ~/unit.$unit
        [[ $unit = *.timer ]] && exit
        run=(env -i HOME=$HOME USER=$USER setsid bash -c '. FOLDER/profile; exec "$@"' - "$@")
        "${run[@]}" > ~/$unit.log 2>&1 < /dev/null &
    """,
}


@pytest.fixture
def user(tmp_path):
    """Return a user on a host whose processes all end with the test."""
    pytest.importorskip("moto")
    uv, aws, git = (shutil.which(name) for name in ("uv", "aws", "git"))
    if not (uv and aws and git and (ROOT / ".git").exists()):
        pytest.skip("uv, aws, git and a git checkout are needed")
    if not in_uvs_cache(uv, tmp_path):
        pytest.skip("uv's cache lacks packages that a node installs")
    folder = tmp_path / "host"
    folder.mkdir()
    write_scripts(folder, AS_ON_AN_AMI | {"host": HOST})
    process = subprocess.Popen([*NAMESPACES, folder / "host"], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (folder / "ready").exists():
            if process.poll() is not None:
                pytest.skip(f"no namespaces can be made here, which takes root and iproute2: {process.stderr.read()}")
            assert time.monotonic() < deadline
            time.sleep(0.2)
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as children:
            inside = ("nsenter", "--net", "--pid", "--mount", "--target", children.read().strip())
        user = User(folder, {"AWS_ENDPOINT_URL": ENDPOINT}, inside)
        settings = ACCOUNT | {"AWS_ENDPOINT_URL": ENDPOINT, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
        settings |= {"UV_OFFLINE": "1", "UV_CACHE_DIR": uv_cache(uv)}
        path = ":".join([str(folder), *(os.path.dirname(os.path.realpath(program)) for program in (uv, aws)), "$PATH"])
        exports = [f"export {name}={value}" for name, value in (settings | {"PATH": path}).items()]
        (folder / "profile").write_text("\n".join(exports) + "\n")
        yield user
    finally:
        process.kill()  # and with it, as the first process of its namespace, all others
        process.wait()
        shutil.rmtree(folder / "nodes", ignore_errors=True)  # two installations of torch


def uv_cache(uv: str) -> str:
    return subprocess.run([uv, "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()


def in_uvs_cache(uv: str, folder) -> bool:
    """Return whether the installation would need no network."""
    packages = ["ray[default,train,tune]==2.60.0", "boto3", "-e", f"{ROOT}[s3]"]
    commands = (
        [uv, "venv", "--offline", folder / "empty"],
        [uv, "pip", "install", "--offline", "--dry-run", "--python", folder / "empty" / "bin" / "python", *packages],
    )
    return all(subprocess.run(command, capture_output=True).returncode == 0 for command in commands)


def test_a_study_runs_on_a_cluster_that_grows_and_is_taken_down(user):
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    user.up(
        **{
            "https://github.com/EDIT/eqssl.git": str(ROOT),
            "EQSSL_REF=main": f"EQSSL_REF={commit}",
            "max_workers: 8  # EDIT": "max_workers: 1  # EDIT",
            "resources: {CPU: 8, GPU: 1}": "resources: {CPU: 2, GPU: 0}",
            "EQSSL_GPUS_PER_WORKER=1": "EQSSL_GPUS_PER_WORKER=0",
        }
    )
    (head,) = (user.folder / "nodes").iterdir()
    remote = "export RAY_AUTH_MODE=token RAY_ADDRESS=http://localhost:8265; "
    output = user.run(remote + "ray job submit --submission-id lw1 -- python studies/loss_weight.py --smoke", 900)
    assert "Job 'lw1' succeeded" in output

    user.run("aws s3 cp --recursive s3://studies/results results")
    (summary,) = (user.folder / "results").rglob("summary.json")
    trials = json.loads(summary.read_text())["trials"]
    assert trials and {trial["status"] for trial in trials} == {"COMPLETE"}
    (worker,) = workers(user)
    assert worker["InstanceLifecycle"] == "spot"
    assert (user.folder / "nodes" / worker["PrivateIpAddress"] / "venv").is_dir()

    user.run(commands_of("Down").splitlines()[0])  # ray exec ... backup.sh
    new = user.folder / "new"
    new.mkdir()
    config = json.loads((head / "ray_bootstrap_config.yaml").read_text())
    shutil.copy(head / "cluster.env", new)
    services = "touch ~/unit.mlflow ~/unit.mlflow-backup.timer; . FOLDER/profile; . ~/cluster.env\n"
    restore = services.replace("FOLDER", str(user.folder)) + config["head_setup_commands"][-1]
    user.run(f"export HOME={new}\n{restore}")
    assert runs(new) == runs(head) > len(trials)

    output = user.run(commands_of("Down"))
    assert json.loads(output[output.rindex("[") :]) == []


def workers(user) -> list[dict]:
    """Return the instances of workers that run."""
    there = "Name=tag:ray-node-type,Values=worker Name=instance-state-name,Values=pending,running"
    answer = user.run(f"aws ec2 describe-instances --filters {there} --query 'Reservations[].Instances[]'")
    return json.loads(answer)


def runs(home) -> int:
    """Return how many runs the database of MLflow in a node's home holds."""
    import sqlite3

    with sqlite3.connect(home / "mlflow" / "mlflow.db") as database:
        return database.execute("SELECT count(*) FROM runs").fetchone()[0]
