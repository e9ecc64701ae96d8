"""A user whose AWS is moto's server, and whose way to the nodes is `ssh` and `rsync` in scripts of this machine."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.head import BIN

ROOT = Path(__file__).parents[2]
REGION, ADDRESS = "us-west-2", "203.0.113.7"
ACCOUNT = {
    "AWS_DEFAULT_REGION": REGION, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true", "RAY_USAGE_STATS_ENABLED": "0",
}  # fmt: skip
# FOLDER has a home per node in `nodes`, named by the node's address. A node runs what it is sent if `profile` is there.
SCRIPTS = {
    "ssh": """
        until [[ $1 = ubuntu@* ]]; do shift; done
        printf '%s\\0' "$*" >> FOLDER/asked
        [ -e FOLDER/profile ] || exit 0
        [[ $* = *"ray stop"* ]] && exit 0  # it would look for every Ray of the machine
        home=FOLDER/nodes/${1#ubuntu@}
        mkdir -p $home
        [ -e $home/.bashrc ] || echo '. FOLDER/profile' > $home/.bashrc
        cd $home
        exec env -i HOME=$home USER=$(id -un) bash -c "${*:2}" < /dev/null
    """,
    "rsync": """
        source=${@: -2:1} target=${@: -1}
        printf '%s\\0' "$target" >> FOLDER/asked
        address=${target%%:*}
        target=FOLDER/nodes/${address#ubuntu@}/${target#*:"~/"}
        mkdir -p "$(dirname "$target")"
        cp "${source/#"~"/$HOME}" "$target"
    """,
    "curl": f"""
        [[ $* = *checkip* ]] && exec echo {ADDRESS}
        exec {shutil.which("curl")} "$@"
    """,
}


def commands_of(heading: str) -> str:
    """Return the commands under a heading of docs/cluster.md."""
    guide = (ROOT / "docs" / "cluster.md").read_text()
    (block,) = re.findall(rf"^\*\*{heading}\.\*\* (?:.+\n)+\n((?:    .*\n)+)", guide, re.M)
    return block.replace("MY-BUCKET", "studies")


def write_scripts(folder: Path, scripts: dict[str, str]) -> None:
    for name, text in scripts.items():
        (folder / name).write_text("#!/bin/bash\nset -e\n" + text.replace("FOLDER", str(folder)))
        (folder / name).chmod(0o755)


class User:
    """A shell in a folder that holds his home and his `ray_cluster.yaml`.

    Args:
        folder: empty; its path must be short where nodes run.
        variables: beside the account's.
        inside: the command that runs another one where the user is.
    """

    def __init__(self, folder: Path, variables: dict[str, str], inside: tuple[str, ...] = ()):
        if not shutil.which("aws"):
            pytest.skip("docs/cluster.md makes the account by AWS's own command line, `aws`")
        self.folder, self.inside = folder, inside
        write_scripts(folder, SCRIPTS)
        self.environment = os.environ | ACCOUNT | variables
        for name in ("HOME", "TMPDIR"):
            (folder / name).mkdir()
            self.environment[name] = str(folder / name)
        self.environment["PATH"] = f"{folder}:{BIN}:{os.environ['PATH']}"

    def run(self, commands: str, timeout_s: float = 600) -> str:
        """Return what commands print, all of which must succeed."""
        command = [*self.inside, "bash", "-ec", f"cd {self.folder}\n{commands}"]
        done = subprocess.run(
            command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def up(self, **edits: str) -> str:
        """Make the account and the cluster as the guide says, and return the security group.

        Args:
            **edits: text of `ray_cluster.yaml` and its replacement, beside group and bucket.
        """
        group = self.run(commands_of("Once per account") + "echo $SG").split()[-1]
        text = (ROOT / "ray_cluster.yaml").read_text()
        for old, new in {"sg-EDIT": group, "EDIT-eqssl": "studies", **edits}.items():
            assert old in text
            text = text.replace(old, new)
        (self.folder / "ray_cluster.yaml").write_text(text)
        commands = [line for line in commands_of("Up").splitlines() if "ray dashboard" not in line]
        self.run("\n".join(commands).replace("ray up", "ray up --yes"))
        return group
