"""Names that do not exist, for error messages: the current name of a renamed option, or the nearest names."""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

RENAMED = {  # option, or field of a dataclass -> its current name
    "encoder.split": "encoder.equi_fraction",
    "recon.roles": "recon.attention",
    "train.accumulate": "train.grad_accum_steps",
    "train.shard": "train.fsdp",
    "race": "seed_schedule",
    "stopping": "pruner",
    "confirm": "final_test",
    "trials": "configs",
    "configurations": "configs",
    "twins": "matched_controls",
    "knob": "hyperparameter",
    "on": "builds_on",
}
RENAMED_FIELDS = {old.rpartition(".")[2]: new.rpartition(".")[2] for old, new in RENAMED.items()}
T = TypeVar("T")


def names_fields(kind: type[T]) -> type[T]:
    """Make a dataclass refuse an unknown argument, with its fields and the new or nearest name in the message."""
    init: Callable[..., None] = kind.__init__
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]

    @functools.wraps(init)
    def checked(self: T, *arguments: Any, **values: Any) -> None:
        for name in values.keys() - set(names):
            raise TypeError(f"{kind.__name__} has no argument {name!r}{instead_of(name, names)}")
        init(self, *arguments, **values)

    kind.__init__ = checked  # type: ignore[method-assign, assignment]
    return kind


def instead_of(name: str, names: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the existing names, and the new or nearest one."""
    names = list(names)
    new = RENAMED_FIELDS.get(name)
    return f"; there are: {', '.join(names)}" + (f"; it is now {new}" if new in names else did_you_mean(name, names))


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return the end of an error message with up to three names close to an unknown one; empty without any."""
    near = difflib.get_close_matches(name, sorted(allowed), n=3)
    text = ", ".join(near[:-1]) + " or " * (len(near) > 1) + "".join(near[-1:])
    return f"; did you mean {text}?" if near else ""
