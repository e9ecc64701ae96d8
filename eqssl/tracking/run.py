"""A single run outside a study in MLflow."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from eqssl.config import RunConfig, digest, identity
from eqssl.tracking.connection import connect, first_line, log_metrics, log_params, now_ms, title_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)


@contextmanager
def track_run(
    uri: str, experiment: str, config: RunConfig, *, resume: bool = False
) -> Iterator[Callable[[dict[str, float]], None]]:
    """Log a single run outside a study; yield a function that logs an epoch's metrics.

    A server that goes away later costs metrics and no training.

    Args:
        uri: of MLflow.
        experiment: created if missing.
        config: logged as flat parameters.
        resume: continue the last interrupted run of this configuration.

    Raises:
        ValueError: for a server that cannot be reached.
    """
    try:
        client, run_id = _open_run(uri, experiment, config, resume)
    except ValueError:
        raise
    except Exception as error:  # of any type, by the store's library
        logger.warning("the run is not tracked: %s", first_line(error))
        yield lambda metrics: None
        return

    def log(metrics: dict[str, float]) -> None:
        try:
            log_metrics(client, run_id, [(metrics, int(metrics["epoch"]), now_ms())])
        except Exception as error:  # of any type, by the store's library
            logger.warning("epoch %d is not tracked: %s", metrics["epoch"], first_line(error))

    status = "FAILED"
    try:
        yield log
        status = "FINISHED"
    except SystemExit:  # a signal
        status = "KILLED"
        raise
    finally:
        with suppress(Exception):
            client.set_terminated(run_id, status)


def _open_run(uri: str, experiment: str, config: RunConfig, resume: bool) -> "tuple[MlflowClient, str]":
    """Return a client and the id of a new run, or of the last interrupted one of the configuration to resume."""
    client, experiment_id = connect(uri, experiment)
    tags = {"kind": "run", "config": digest(config)}
    query = f"tags.config = '{tags['config']}' and attributes.status != 'FINISHED'"
    found = client.search_runs([experiment_id], query, max_results=1) if resume else []
    run_id = (found[0] if found else client.create_run(experiment_id, tags=tags, run_name=title_of(config))).info.run_id
    client.update_run(run_id, status="RUNNING")
    log_params(client, run_id, identity(config))
    return client, run_id
