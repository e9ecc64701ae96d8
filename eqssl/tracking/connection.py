"""The connection to MLflow, and the requests that studies and single runs share."""

import logging
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqssl.config import RunConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
BATCH = 1000  # metrics of one request, MLflow's maximum


class NoMLflow(Exception):
    """MLflow is not installed, or its import fails."""


def import_mlflow() -> None:
    """Set MLflow's options and import it.

    Raises:
        NoMLflow: for an import that fails, with the reason.
    """
    # MLflow's own retries take minutes, and create a duplicate run where only the answer was lost.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # between the lines of the progress
    try:
        import mlflow.store.db.utils  # noqa: F401 (takes seconds)
    except Exception as error:  # of any type, by any of its packages
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise NoMLflow(f"MLflow cannot be imported ({reason})") from error


def connect(uri: str, experiment: str) -> "tuple[MlflowClient, str]":
    """Return a client and the id of the experiment, created if missing.

    Raises:
        NoMLflow: where MLflow cannot be imported.
        ValueError: for a server that cannot be reached or a URI that MLflow does not accept.
    """
    import_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        artifacts = _prepare_database(uri) if uri.startswith(SQLITE) else None
        client = MlflowClient(tracking_uri=uri)
        try:
            return client, client.create_experiment(experiment, artifacts)
        except MlflowException:
            found = client.get_experiment_by_name(experiment)
            if found is None:
                raise
        if found.lifecycle_stage != "active":
            raise ValueError(f"its experiment {experiment} was deleted: restore it, or `mlflow gc` it for good")
        return client, found.experiment_id
    except Exception as error:  # of any type, by the store's library
        raise ValueError(f"--tracking-uri is {uri!r}, which cannot be used: {first_line(error)}") from error


def _prepare_database(uri: str) -> str:
    """Create a database once and atomically, as MLflow cannot use a half-made one; return a URI for artifacts."""
    from mlflow import MlflowClient

    from eqssl.data.write import make_once

    file = uri.removeprefix(SQLITE)
    path = Path(file).absolute()

    def create() -> None:
        temporary = f"{file}.{uuid.uuid4().hex}"  # not absolute, since a URI reads % and ? in a folder's name
        MlflowClient(tracking_uri=f"{SQLITE}{temporary}").search_experiments(max_results=1)
        Path(temporary).replace(path)

    make_once(path, create)
    return (path.parent / "mlartifacts").as_uri()  # the same from any working folder


def title_of(config: RunConfig) -> str:
    """Return the data, the method and the date of a run, which tell it from others of its experiment."""
    path = (config.data.path or "").rstrip("/").rpartition("/")[2]
    data = f"{config.data.source} {path}".strip()
    return f"{data}, {config.method.name}, {time.strftime('%Y-%m-%d %H:%M')}"


def log_params(client: "MlflowClient", run_id: str, params: dict[str, Any]) -> None:
    """Log options as parameters of a run, as text."""
    from mlflow.entities import Param

    client.log_batch(run_id, params=[Param(name, str(value)) for name, value in params.items()])


def log_metrics(client: "MlflowClient", run_id: str, steps: Iterable[tuple[Mapping[str, float], int, int]]) -> None:
    """Log metrics of steps, each with its number and its time in ms since 1970, in few requests."""
    from mlflow.entities import Metric

    entries = [Metric(name, value, time_ms, step) for of, step, time_ms in steps for name, value in of.items()]
    for start in range(0, len(entries), BATCH):
        client.log_batch(run_id, metrics=entries[start : start + BATCH])


def now_ms() -> int:
    """Return the time in ms since 1970."""
    return time.time_ns() // 1_000_000


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, cut to 300 characters."""
    return str(error).strip().split("\n", 1)[0][:300]
