"""Whoever wants to know how a study goes: the record, the search, the progress, the tracking."""

from typing import TYPE_CHECKING

from eqssl.study.search.space import Trial

if TYPE_CHECKING:
    from eqssl.study.store.records import TrialRecord


class Listener:
    """Told in the study's own process, in the order of events; each method may be left as it is."""

    def trial_started(self, trial: Trial) -> None:
        """A process begins with the trial, for the first time or again."""

    def epoch_ended(self, trial: Trial, metrics: dict[str, float]) -> None:
        """An epoch has been trained; its checkpoint, if one was due, is on disk."""

    def trial_ended(self, trial: Trial, record: "TrialRecord") -> None:
        """The trial is complete or has failed for good."""
