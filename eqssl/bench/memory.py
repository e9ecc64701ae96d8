"""Peak memory of each training, in a process of its own."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context
from pathlib import Path

from eqssl.bench.options import Options
from eqssl.bench.table import Row

AT_MOST = 1.2
OURS = ("ours", "ours with reconstruction")


def measure(options: Options) -> list[Row]:
    """Return the peak of every subject, ours against the plain loop's; only Linux tells."""
    if not Path("/proc/self/smaps_rollup").is_file():
        return [Row(part="memory", name="all", note="skipped: /proc/self/smaps_rollup is not there")]
    from eqssl.bench.plain import peer_names

    peaks = {}
    for subject in ("imports alone", *peer_names(), *OURS):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            peaks[subject] = pool.submit(peak, subject, options).result()
    rows = []
    for subject, (mib, of_workers) in peaks.items():
        note = f"and {of_workers:.0f} MiB in its loader's workers" if of_workers else ""
        made = {"part": "memory", "name": subject, "value": mib, "unit": "MiB", "note": note}
        if subject in OURS:
            made |= {"against": "plain loop", "ratio": mib / peaks["plain loop"][0], "at_most": AT_MOST}
        rows.append(Row(**made))
    return rows


def peak(subject: str, options: Options) -> tuple[float, float]:
    """Train two epochs and return the peak of this process' memory and what its workers hold beside it, MiB.

    Args:
        subject: a peer, one of `OURS` or `imports alone`.
        options: sizes.
    """
    from eqssl.bench.plain import loop
    from eqssl.bench.subject import start
    from eqssl.training.memory import keep_freed

    if subject in OURS:
        keep_freed()  # which takes memory, and which a loop written by hand does not have
    if subject != "imports alone":
        recon = subject == OURS[1]
        run = start(options.run(options.encoders[0], split=0.5 if recon else 0.0, recon=recon), options.steps)
        epoch = run.next_epoch if subject in OURS else loop(subject, options, run, options.workers).epoch
        del run  # a peer does without our model
        for _ in range(2):
            epoch()
    # Not getrusage, whose peak begins with that of the process that spawned this one. Shared pages are shared out.
    of_workers = [_read(f"/proc/{child.pid}/smaps_rollup", "Pss:") for child in active_children()]
    return _read("/proc/self/status", "VmHWM:"), sum(of_workers)


def _read(path: str, field: str) -> float:
    """Return a field of a file in /proc, MiB."""
    lines = Path(path).read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024
