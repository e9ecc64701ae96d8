"""The interface of a study's listeners: records, search, progress and tracking."""

from typing import TYPE_CHECKING

from eqssl.study.search.space import Trial

if TYPE_CHECKING:
    from eqssl.study.store.records import TrialRecord


class Listener:
    """Receives the events of a study, in order, in the study's own process."""

    def trial_started(self, trial: Trial) -> None:
        """A process starts the trial, for the first time or again."""

    def epoch_ended(self, trial: Trial, metrics: dict[str, float]) -> None:
        """An epoch has been trained; its checkpoint, if one was due, is on disk."""

    def trial_retried(self, trial: Trial, error: str) -> None:
        """An attempt has failed; the trial starts again from its checkpoint."""

    def trial_ended(self, trial: Trial, record: "TrialRecord") -> None:
        """The trial is complete, was stopped early or has failed for good."""

    def time_passed(self, running: int, waiting: int) -> None:
        """A moment has passed; gives the numbers of trials that are running and that wait for a node."""
