"""What results rest on: versions of packages, the commit of a checkout, and the folder of the command."""

import contextlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("eqssl", "torch", "torchvision", "timm", "ray", "optuna", "mlflow", "pyarrow", "numpy")


def environment() -> dict[str, str]:
    """Return the versions that the results rest on, and the commit where the package is a checkout."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            from eqssl import __version__  # a checkout that is not installed

            versions[name] = __version__
    versions |= {"python": platform.python_version(), "platform": platform.platform()}
    return versions | ({"commit": found} if (found := commit(Path(__file__).parent)) else {})


def commit(folder: Path) -> str | None:
    """Return the commit of a folder under version control, with `-dirty` after it where a known file was changed."""
    git = ["git", "-C", str(folder)]
    try:
        if not subprocess.run([*git, "ls-files"], capture_output=True, check=True).stdout:
            return None  # a package installed inside another project's checkout
        described = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(described, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def go_to(folder: str) -> None:
    """Work where the command was given, on a node that has this folder: Ray starts and moves its processes as it likes,
    and a relative --data.path is the command's.
    """
    with contextlib.suppress(OSError):
        os.chdir(folder)
