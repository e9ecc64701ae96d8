"""Studies: one question each, over a space of options, with several seeds a configuration."""

from eqssl.study.command import main, on_test, run_study
from eqssl.study.comparison import Candidate, Setting, tune
from eqssl.study.definition import REFERENCE_ROWS, Study
from eqssl.study.options import StudyOptions
from eqssl.study.search.space import choice, log_uniform, uniform
from eqssl.study.summary import load_study

__all__ = [
    "REFERENCE_ROWS",
    "Candidate",
    "Setting",
    "Study",
    "StudyOptions",
    "choice",
    "load_study",
    "log_uniform",
    "main",
    "on_test",
    "run_study",
    "tune",
    "uniform",
]
