from eqssl.training import Alone, Context, Result, train  # noqa: F401  (interim)
