"""The environment of results: versions of packages, and the commit of a checkout."""

import functools
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "torchvision", "timm", "ray", "optuna", "mlflow", "pyarrow", "numpy")
OF_WORKERS = ("eqssl", "commit", "python", "torch", "ray")  # in the record of a trial


def environment() -> dict[str, str]:
    """Return versions by package, and the commit if this package is a checkout."""
    from eqssl import __version__

    versions = {"eqssl": __version__}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    versions |= {"python": platform.python_version(), "platform": platform.platform()}
    return versions | ({"commit": found} if (found := commit(Path(__file__).parent)) else {})


@functools.cache
def worker_environment() -> dict[str, str]:
    """Return the part of `environment` that may change a trial's metrics, once per process."""
    known = environment()
    return {name: known[name] for name in OF_WORKERS if name in known}


def commit(folder: Path) -> str | None:
    """Return the commit of a folder under version control, followed by `-dirty` if a tracked file was changed."""
    git = ["git", "-C", str(folder)]
    try:
        if not subprocess.run([*git, "ls-files"], capture_output=True, check=True).stdout:
            return None  # a package installed inside another project's checkout
        described = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(described, capture_output=True, check=True, encoding="utf-8").stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
