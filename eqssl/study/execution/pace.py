"""How long one run takes beside another, timed in turns, so that whatever else the machine does falls on both."""

import json
from collections.abc import Mapping
from typing import Any

from eqssl.config import RunConfig, digest, from_dict, replace, to_dict
from eqssl.files import as_path, read
from eqssl.study.execution.plugins import Plugins, register, registered
from eqssl.study.execution.trial import cached_data
from eqssl.study.options import StudyOptions
from eqssl.study.store.records import write_json

STEPS, SECONDS = 4, 15.0  # of a round, and of all rounds of a pair
Overrides = Mapping[str, Any]


def relative_times(
    pairs: Mapping[str, tuple[Overrides, Overrides]], options: StudyOptions, name: str
) -> dict[str, float]:
    """Return by how much the first run of each pair takes longer than the second, steps of training alone.

    Args:
        pairs: by name; what differs from the options.
        options: of the study.
        name: of the file in OUTPUT that keeps the ratios of these runs, so that a resumed study has the same.
    """
    path = as_path(options.output, "--output") / name
    configs = {row: [replace(options.run, dict(of)) for of in pair] for row, pair in pairs.items()}
    timed = {row: [digest(config) for config in pair] for row, pair in configs.items()}
    known = json.loads(read(path) or "{}")
    if known.get("timed") != timed:
        import ray

        from eqssl.study.execution import cluster

        runs = {row: [to_dict(config) for config in pair] for row, pair in configs.items()}
        with cluster.ray_running(options.cluster_config) as nodes:
            worker = cluster.room(options, nodes).worker
            ratios = ray.get(cluster.start_in_worker(_time, worker, runs, worker, registered()))
        known = {"timed": timed, "ratios": ratios}
        write_json(path, known)
    return known["ratios"]


def _time(pairs: dict[str, list[dict[str, Any]]], worker: dict[str, float], plugins: Plugins) -> dict[str, float]:
    import numpy as np
    import torch

    from eqssl.bench.subject import even_run
    from eqssl.bench.timing import interleave
    from eqssl.training.context import LocalContext

    register(plugins)
    torch.set_num_threads(worker["CPU"])
    ratios = {}
    for name, pair in pairs.items():
        runs = []
        for values in pair:
            config, context = from_dict(RunConfig, values), LocalContext()
            context.device = torch.device("cuda" if "GPU" in worker else "cpu")
            # So many epochs that none is the last, which is evaluated.
            config = replace(config, {"train.epochs": 10**6, "train.eval_every": 0})
            run = even_run(config, cached_data(config.data), context)
            run.steps_per_epoch = min(STEPS, run.steps_per_epoch)
            runs.append(run)
        seconds = interleave({str(place): run.next_epoch for place, run in enumerate(runs)}, SECONDS)
        ratios[name] = float(np.median(seconds["0"] / seconds["1"]))
    return ratios
