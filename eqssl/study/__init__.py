"""Studies: one question each, over a space of options, with several seeds a configuration."""

from eqssl.study.comparison import Entrant, Setting, tune
from eqssl.study.confirm import on_test, run_confirmed
from eqssl.study.definition import REFERENCE_ROWS, Study
from eqssl.study.execution.pace import relative_times
from eqssl.study.flow import main, run_study
from eqssl.study.options import StudyOptions
from eqssl.study.search.space import choice, log_uniform, uniform
from eqssl.study.summary import load_study

__all__ = [
    "REFERENCE_ROWS",
    "Entrant",
    "Setting",
    "Study",
    "StudyOptions",
    "choice",
    "load_study",
    "log_uniform",
    "main",
    "on_test",
    "relative_times",
    "run_confirmed",
    "run_study",
    "tune",
    "uniform",
]
