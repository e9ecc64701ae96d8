"""Designs: their points lie in the space, spread over it, and are the same every time."""

import numpy as np
import pytest

from eqssl.study.search.designs import design_points
from eqssl.study.search.space import choice, log_uniform, uniform

SPACE = {"recon.weight": log_uniform(0.1, 10.0), "augment.crop": uniform(0.0, 1.0)}
CONDITIONAL = {
    "recon.attention": choice("target-queries", "concat"),
    "recon.tokens": choice("map", "vector").when("recon.attention", "target-queries"),
}


def design(sampler, space, count, seed):
    """Return the design for a base of the first values."""
    base = {option: parameter.grid(2)[0] for option, parameter in space.items()}
    return design_points(sampler, space, count, seed, base)


def test_grid_of_several_ranges_has_no_more_points_than_asked():
    points = design("grid", SPACE, 10, 0)
    assert len(points) == 9 and len({tuple(p.values()) for p in points}) == 9
    assert {p["augment.crop"] for p in points} == {0.0, 0.5, 1.0}


def test_grid_of_lists_and_ranges_has_no_more_points_than_asked_and_both_ends_of_a_range():
    space = {**SPACE, "recon.view": choice("first", "second", "clean")}
    assert len(design("grid", space, 30, 0)) == 27
    points = design("grid", space, 5, 0)
    assert len(points) == 12 and {p["augment.crop"] for p in points} == {0.0, 1.0}


def test_grid_of_too_many_combinations_is_refused():
    space = {f"augment.{n}": uniform(0.0, 1.0) for n in range(14)}
    with pytest.raises(ValueError, match="--sampler is grid, of which this space has 16,384 configurations; allowed"):
        design("grid", space, 5, 0)


def test_grid_leaves_out_what_does_not_exist():
    points = design("grid", CONDITIONAL, 1, 0)
    assert sorted(map(str, points)) == sorted(
        map(
            str,
            [
                {"recon.attention": "target-queries", "recon.tokens": "map"},
                {"recon.attention": "target-queries", "recon.tokens": "vector"},
                {"recon.attention": "concat"},
            ],
        )
    )


@pytest.mark.parametrize(
    ("space", "count", "points"),
    [
        ({f"augment.{n}": uniform(0.0, 1.0) for n in range(12)}, 20, 4096),
        ({"recon.weight": uniform(0.99, 0.9915)}, 24, 16),  # in four digits there are no more
        ({"recon.view": choice("clean"), "augment.crop": uniform(0.0, 1.0).when("recon.view", "none")}, 24, 1),
    ],
)
def test_grid_that_cannot_be_finer_is_had_at_once(space, count, points):
    assert len(design("grid", space, count, 0)) == points


def test_one_at_a_time_varies_each_alone():
    points = design("one-at-a-time", SPACE, 8, 0)
    assert [list(p) for p in points] == [["recon.weight"]] * 4 + [["augment.crop"]] * 4
    assert [p["augment.crop"] for p in points[4:]] == [0.0, 0.3333, 0.6667, 1.0]


def test_one_at_a_time_leaves_out_a_parameter_that_does_not_exist_beside_the_base():
    points = design_points("one-at-a-time", CONDITIONAL, 4, 0, {"recon.attention": "concat", "recon.tokens": "map"})
    assert points == [{"recon.attention": "target-queries"}, {"recon.attention": "concat"}]


@pytest.mark.parametrize("sampler", ["grid", "one-at-a-time", "qmc"])
def test_a_space_without_parameters_has_one_point(sampler):
    assert design(sampler, {}, 1, 0) == [{}]


def test_sobol_leaves_out_what_does_not_exist():
    points = design("qmc", CONDITIONAL, 8, 0)
    assert all(("recon.tokens" in point) == (point["recon.attention"] == "target-queries") for point in points)


def test_sobol_fills_every_cell_evenly_and_is_the_same_again():
    points = design("qmc", SPACE, 16, 3)
    assert points == design("qmc", SPACE, 16, 3) != design("qmc", SPACE, 16, 4)
    places = np.array([(np.log10(p["recon.weight"]) / 2 + 0.5, p["augment.crop"]) for p in points])
    counts = np.histogram2d(*places.T, bins=4, range=[(0, 1), (0, 1)])[0]
    assert (counts == 1).all()


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "nsga2", "nsga3"])
def test_a_sampler_is_no_design(sampler):
    assert design(sampler, SPACE, 5, 0) is None
