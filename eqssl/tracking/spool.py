"""A queue that holds more than memory does."""

import os
import pickle
import tempfile
import threading
from typing import Any


class Spool:
    """A queue in a temporary file, which holds any number of entries and is empty again once all are taken."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the study)
        self._taken_to = 0
        self._changed = threading.Condition()
        self.waiting = 0

    def put(self, entry: object) -> None:
        """Append an entry.

        Raises:
            OSError: for a full disk; the entry is then not in the queue.
        """
        data = pickle.dumps(entry)
        with self._changed:
            end = self._file.seek(0, os.SEEK_END)
            try:
                self._file.write(data)
                self._file.flush()
            except OSError:
                self._file.truncate(end)
                raise
            self.waiting += 1
            self._changed.notify()

    def take(self) -> Any:
        """Wait for the first entry, and return it."""
        with self._changed:
            self._changed.wait_for(lambda: self.waiting)
            self._file.seek(self._taken_to)
            entry = pickle.load(self._file)
            self._taken_to = self._file.tell()
            self.waiting -= 1
            if not self.waiting:
                self._taken_to = 0
                self._file.truncate(0)
        return entry
