"""How a trial's own process and its workers talk: who waits for whom, and which report is of which trial."""

import asyncio
from collections import Counter
from typing import Any

TOGETHER_S = 10.0  # within which an error that all workers meet has come to all
POLL_S = 0.1
Spec = Report = dict[str, Any]
Key = tuple[int, str, int]


class Exchange:
    """Where a trial's own process and its workers meet; an actor, on the node of the former.

    Whoever waits here waits as long as it takes: a collective among the workers would end after half an hour.
    """

    def __init__(self):
        self._number, self._spec = 0, None
        self._handed_out = asyncio.Condition()
        self._answers: dict[Key, asyncio.Future[bool]] = {}  # of the reports of this trial
        self._reports: asyncio.Queue[tuple[Key | None, Report | None]] = asyncio.Queue()
        self._asked: Key | None = None  # the report that was taken
        self._failed: Counter[str] = Counter()

    async def hand_out(self, spec: Spec) -> None:
        """Give the workers a trial."""
        async with self._handed_out:
            self._number, self._spec = self._number + 1, spec
            self._answers.clear()
            self._handed_out.notify_all()

    async def trial(self, after: int) -> tuple[int, Spec]:
        """Wait for a trial that is still on, and later than that number; return its own and what was handed out."""
        async with self._handed_out:
            await self._handed_out.wait_for(lambda: self._spec is not None and self._number > after)
            return self._number, self._spec

    async def report(self, key: Key, report: Report | None) -> bool:
        """Return whether the trial goes on, once its own process knows.

        Args:
            key: number of the trial, name of the group of workers, count of its reports of this trial.
            report: of the worker of rank 0; the others give None, and wait for the same answer.
        """
        if key not in self._answers:
            if self._spec is None or key[0] != self._number:
                return False
            self._answers[key] = asyncio.get_running_loop().create_future()
        if report is not None:
            self._reports.put_nowait((key, report))
        return await self._answers[key]

    async def take(self) -> Report | None:
        """Wait for a report, which stays without an answer until `answer`; None: there are no workers any more."""
        self._asked, report = await self._reports.get()
        return report

    async def answer(self, goes_on: bool) -> None:
        """Answer the report that was taken; a trial that does not go on is nobody's any more."""
        if goes_on:
            self._answers[self._asked].set_result(True)
            return
        self._spec = None
        for answer in self._answers.values():  # those too that wait for a worker that died
            if not answer.done():
                answer.set_result(False)
        while not self._reports.empty():
            self._reports.get_nowait()

    async def close(self) -> None:
        """Tell the trial's own process that there are no workers any more."""
        self._reports.put_nowait((None, None))

    async def all_failed(self, group: str, world_size: int) -> bool:
        """Return whether all workers of a group have called this, within ten seconds."""
        self._failed[group] += 1
        for _ in range(round(TOGETHER_S / POLL_S)):
            if self._failed[group] == world_size:
                return True
            await asyncio.sleep(POLL_S)
        return False
