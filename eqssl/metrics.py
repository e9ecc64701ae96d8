"""The registry of metrics: name, label, direction, needs and level of everything that a trial reports.

Tables, the choice, tracking, the report and the options read a metric's properties here and nowhere else.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from eqssl.renames import did_you_mean

if TYPE_CHECKING:  # only for types: the registry imports no torch
    from eqssl.evaluation.features import EncodedViews

Direction = Literal["maximize", "minimize"]
Level = Literal["quick", "full", "train", "cost"]
Need = Literal["labels", "factors", "pose", "binary factors", "split", "masks"]
PARTS = ("inv", "equi")  # prefixes of metrics of one part of the features


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Properties of a metric, or of a family of metrics with one member per factor.

    Args:
        name: of a metric, such as `knn`; of a family, the part before the slash: `r2` has the members `r2/<factor>`.
        label: column title and axis label.
        direction: maximize or minimize, whichever improves the metric.
        needs: properties of the data or the encoder without which the metric is absent.
        level: quick or full: the evaluation level that computes it; train: logged by the training; cost: does
            not describe the encoder.
        per_factor: whether this is a family.
        is_accuracy: whether it is a share of correctly classified images.
        in_main_table: whether tables of configurations have a column for it.
        is_compared: whether differences between configurations are tested. With `in_main_table`, it is tested together
            with the other metrics of that table (Benjamini-Hochberg), and may change which of them are significant.
        fn: function of a user's metric, from the `EncodedViews` of all features, or of the part inv or equi, to its
            value, or to factor -> value for a family; it is called at its level if the data meet `needs`. Default:
            the protocol computes the metric.

    Raises:
        ValueError: for an unknown direction or level, or a function at a level at which no encoder is evaluated.
    """

    name: str
    label: str
    direction: Direction = "maximize"
    needs: tuple[Need, ...] = ()
    level: Level = "quick"
    per_factor: bool = False
    is_accuracy: bool = False
    in_main_table: bool = False
    is_compared: bool = False
    fn: "Callable[[EncodedViews], float | Mapping[str, float]] | None" = None

    def __post_init__(self) -> None:
        for name, kind in {"direction": Direction, "level": Level}.items():
            if (value := getattr(self, name)) not in get_args(kind):
                near = did_you_mean(value, get_args(kind))
                raise ValueError(f"metric {self.name}: {name} is {value!r}; allowed: {', '.join(get_args(kind))}{near}")
        if self.fn is not None and self.level not in ("quick", "full"):
            raise ValueError(f"metric {self.name}: level is {self.level!r}; allowed with fn: quick, full")

    @property
    def sign(self) -> int:
        """1 for a metric that is better when larger, else -1."""
        return 1 if self.direction == "maximize" else -1


FULL: dict[str, Any] = {"needs": ("factors",), "level": "full"}
MAIN: dict[str, Any] = {"in_main_table": True, "is_compared": True}
METRICS = {metric.name: metric for metric in (
    Metric(name="knn", label="kNN", needs=("labels",), is_accuracy=True, **MAIN),
    Metric(name="linear", label="linear", needs=("labels",), is_accuracy=True, **MAIN),
    Metric(name="r2_mean", label="R² mean", needs=("factors",), **MAIN),
    Metric(name="r2", label="R² per factor", needs=("factors",), per_factor=True, is_compared=True),
    Metric(name="pose_deg", label="pose error (degrees)", direction="minimize", needs=("pose",)),
    Metric(name="geodesic_deg", label="angle error (degrees)", direction="minimize", needs=("factors",)),
    Metric(name="mlp_geodesic_deg", label="angle error, MLP (degrees)", direction="minimize", **FULL),
    Metric(name="auroc", label="AUROC per factor", needs=("binary factors",), per_factor=True, is_compared=True),
    Metric(name="mlp_r2_mean", label="R² mean (MLP)", **FULL, **MAIN),
    Metric(name="mlp_r2", label="R² per factor, MLP", **FULL, per_factor=True, is_compared=True),
    Metric(name="extrapolation_r2", label="R² outside the fitted range", **FULL, per_factor=True),
    Metric(name="extrapolation_r2_mean", label="R² mean outside the fitted range", **FULL),
    Metric(name="extrapolation_geodesic_deg", label="angle error outside the fitted range (degrees)",
           direction="minimize", **FULL),
    Metric(name="equivariance", label="equivariance", **FULL, per_factor=True, **MAIN),
    Metric(name="equivariance_raw", label="equivariance, unwhitened features", **FULL),
    Metric(name="invariance", label="invariance", **FULL),
    Metric(name="inv/invariance", label="invariance (inv)", **FULL, **MAIN),
    Metric(name="hit1", label="retrieval, hit at 1", **FULL),
    Metric(name="dense/r2", label="dense R²", needs=("masks",), level="full", is_compared=True),
    Metric(name="std", label="standard deviation, mean of features"),
    Metric(name="std_min", label="standard deviation, smallest"),
    Metric(name="spread", label="spread"),
    Metric(name="rank", label="effective rank"),
    *(Metric(name=name, label=name, direction="minimize", level="train") for name in ("loss", "ssl", "recon")),
    *(Metric(name=name, label=name, level="cost") for name in ("epoch", "lr", "parameters")),
    Metric(name="requires_transform", label="conditioned on the transform", level="cost"),
    # In results stored before its renaming:
    Metric(name="sees_theta", label="conditioned on the transform (former name)", level="cost"),
    *(Metric(name=name, label=name, direction="minimize", level="cost") for name in ("train_s", "evaluate_s")),
    Metric(name="recon/error", label="reconstruction error", direction="minimize", level="train"),
    Metric(name="recon/use_target", label="use of the target view", level="train"),
    Metric(name="recon/use_other", label="use of the other view", level="train"),
    Metric(name="recon/weight", label="weight of the reconstruction", level="cost"),
    Metric(name="recon_share/loss", label="share of the loss", level="cost"),
    Metric(name="recon_share/gradient", label="share of the gradient", level="cost"),
    *(Metric(name=f"train_std/{p}", label=f"standard deviation in training ({p})", level="train") for p in PARTS),
)}  # fmt: skip
_COMPUTED = frozenset(METRICS)  # by the protocol or the training


def register_metric(metric: Metric) -> None:
    """Add a metric to the registry, replacing an earlier one of its name.

    Raises:
        ValueError: for a function with the name of a metric that the protocol or the training computes.
    """
    if metric.fn is not None and metric.name in _COMPUTED:
        raise ValueError(f"metric {metric.name} is computed without fn; allowed with fn: another name")
    METRICS[metric.name] = metric


def stored_properties(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the properties of registered metrics as plain values, for a process that does not register them.

    Args:
        names: full names; those that are not registered are left out.

    Returns:
        Name of the metric or family -> label, direction and all other properties that differ from the
            default, except `fn`.
    """
    found = {}
    for name in names:
        with suppress(KeyError):
            metric = find_metric(name)
            kept = [f for f in fields(Metric) if f.name not in ("name", "fn")]
            values = {f.name: getattr(metric, f.name) for f in kept if getattr(metric, f.name) != f.default}
            found[metric.name] = {"direction": metric.direction} | values
    return found


def register_stored(properties: Mapping[str, Mapping[str, Any]]) -> None:
    """Register metrics that another process had registered, from `stored_properties`; known ones are kept."""
    allowed = {f.name for f in fields(Metric)}
    for name, values in properties.items():
        if name not in METRICS:
            known: dict[str, Any] = {key: of for key, of in values.items() if key in allowed}
            known["needs"] = tuple(known.get("needs", ()))
            register_metric(Metric(name=name, **known))


def part_of(name: str) -> str | None:
    """Return the part of the features that a metric measures: `inv` for `inv/r2/pose`.

    It is None for metrics of all features, and for those that are registered with their part, such as `inv/invariance`.
    """
    part = name.partition("/")[0]
    return part if part in PARTS and name not in METRICS else None


def find_metric(name: str) -> Metric:
    """Return the properties of a metric by its full name.

    Args:
        name: such as `linear`, `r2/pose` or `inv/r2/pose`.

    Raises:
        KeyError: for a name that is not registered.
    """
    part = part_of(name)
    plain = name.removeprefix(f"{part}/") if part else name
    if plain in METRICS:
        return METRICS[plain]
    family = METRICS.get(plain.rpartition("/")[0])
    if family is None or not family.per_factor:
        raise KeyError(name)
    return family


def metric_of(name: str) -> Metric:
    """Return `find_metric`, or a metric to be maximised if the name is not registered, as in a user's evaluation."""
    try:
        return find_metric(name)
    except KeyError:
        return Metric(name=name, label=name)


def is_accuracy(name: str) -> bool:
    """Return whether a metric is an accuracy of all features."""
    return name in METRICS and METRICS[name].is_accuracy


def factor_of(name: str) -> str | None:
    """Return the factor that a metric of a family is about: `pose` for `inv/r2/pose`; None for other metrics."""
    family, _, factor = name.removeprefix(f"{part_of(name)}/").rpartition("/")
    return factor if family in METRICS and METRICS[family].per_factor else None


def label_of(name: str) -> str:
    """Return a metric's unique label, such as `linear (inv)` for `inv/linear`; the name if it has none."""
    part = part_of(name)
    metric = METRICS.get(name.removeprefix(f"{part}/"))
    if metric is None:
        return name
    return f"{metric.label} ({part})" if part else metric.label
