"""The registry of metrics: name, label, direction, needs and level of everything that a trial reports.

Tables, the choice, tracking, the report and the options read a metric's properties here and nowhere else.
"""

from dataclasses import dataclass
from typing import Literal

Direction = Literal["maximize", "minimize"]
Need = Literal["labels", "factors", "pose", "binary factors", "split"]
PARTS = ("inv", "equi")  # prefixes of metrics of one part of the features


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Properties of a metric, or of a family of metrics with one member per factor.

    Args:
        name: of a metric such as `knn`; of a family, what precedes the slash: `r2` has the members `r2/<factor>`.
        label: column title and axis label.
        direction: maximize or minimize; what improves the metric.
        needs: properties of the data or the encoder without which the metric is absent.
        level: quick or full: the evaluation level that computes it; train: logged by the training; cost: says
            nothing about an encoder.
        per_factor: whether this is a family.
        is_accuracy: whether it is a share of correctly classified images.
        in_main_table: whether tables of configurations have a column for it.
        is_compared: whether differences between configurations are tested.
    """

    name: str
    label: str
    direction: Direction = "maximize"
    needs: tuple[Need, ...] = ()
    level: Literal["quick", "full", "train", "cost"] = "quick"
    per_factor: bool = False
    is_accuracy: bool = False
    in_main_table: bool = False
    is_compared: bool = False

    @property
    def sign(self) -> int:
        """1 for a metric that is better when larger, else -1."""
        return 1 if self.direction == "maximize" else -1


METRICS: dict[str, Metric] = {}


def register_metric(metric: Metric) -> None:
    """Add a metric to the registry, in the place of an earlier one of its name."""
    METRICS[metric.name] = metric


def find_metric(name: str) -> Metric:
    """Return the properties of a metric by its full name.

    Args:
        name: such as `linear`, `r2/pose` or `inv/r2/pose`.

    Raises:
        KeyError: for a name that is not registered.
    """
    part, _, rest = name.partition("/")
    plain = rest if part in PARTS and name not in METRICS else name
    if plain in METRICS:
        return METRICS[plain]
    family = METRICS.get(plain.rpartition("/")[0])
    if family is None or not family.per_factor:
        raise KeyError(name)
    return family


def factor_of(name: str) -> str | None:
    """Return the factor that a metric of a family is about: `pose` of `inv/r2/pose`; None for other metrics."""
    return name.rpartition("/")[2] if "/" in name and find_metric(name).per_factor else None


def label_of(name: str) -> str:
    """Return a metric's label: that of the registry, the factor's name for a member of a family, else the name."""
    try:
        return factor_of(name) or find_metric(name).label
    except KeyError:
        return name


for _metric in (
    Metric(name="knn", label="kNN", needs=("labels",), is_accuracy=True, in_main_table=True, is_compared=True),
    Metric(name="linear", label="linear", needs=("labels",), is_accuracy=True, in_main_table=True, is_compared=True),
    Metric(name="r2_mean", label="R² mean", needs=("factors",), in_main_table=True, is_compared=True),
    Metric(name="r2", label="R² per factor", needs=("factors",), per_factor=True, is_compared=True),
    Metric(name="pose_deg", label="pose error (degrees)", direction="minimize", needs=("pose",)),
    Metric(name="geodesic_deg", label="angle error (degrees)", direction="minimize", needs=("factors",)),
    Metric(name="auroc", label="AUROC per factor", needs=("binary factors",), per_factor=True, is_compared=True),
    Metric(
        name="mlp_r2_mean",
        label="R² mean (MLP)",
        needs=("factors",),
        level="full",
        in_main_table=True,
        is_compared=True,
    ),
    Metric(
        name="mlp_r2", label="R² per factor, MLP", needs=("factors",), level="full", per_factor=True, is_compared=True
    ),
    Metric(
        name="extrapolation_r2", label="R² outside the fitted range", needs=("factors",), level="full", per_factor=True
    ),
    Metric(
        name="equivariance",
        label="equivariance",
        needs=("factors",),
        level="full",
        per_factor=True,
        in_main_table=True,
        is_compared=True,
    ),
    Metric(name="equivariance_raw", label="equivariance, features as they are", needs=("factors",), level="full"),
    Metric(name="invariance", label="invariance", needs=("factors",), level="full"),
    Metric(
        name="inv/invariance",
        label="invariance (inv)",
        needs=("factors",),
        level="full",
        in_main_table=True,
        is_compared=True,
    ),
    Metric(name="hit1", label="retrieval, hit at 1", needs=("factors",), level="full"),
    Metric(name="std", label="standard deviation, mean of features"),
    Metric(name="std_min", label="standard deviation, smallest"),
    Metric(name="spread", label="spread"),
    Metric(name="rank", label="effective rank"),
    *(Metric(name=name, label=name, direction="minimize", level="train") for name in ("loss", "ssl", "recon")),
    *(Metric(name=name, label=name, level="cost") for name in ("epoch", "lr", "parameters")),
    Metric(name="requires_transform", label="conditioned on the transform", level="cost"),
    Metric(
        name="sees_theta", label="conditioned on the transform", level="cost"
    ),  # in results stored before its renaming
    *(Metric(name=name, label=name, direction="minimize", level="cost") for name in ("train_s", "evaluate_s")),
    Metric(name="recon/error", label="reconstruction error", direction="minimize", level="train"),
    Metric(name="recon/use_target", label="use of the target view", level="train"),
    Metric(name="recon/use_other", label="use of the other view", level="train"),
):
    register_metric(_metric)
