"""Seeds as a budget: every configuration starts with one, and only the best of a stage get more."""

REDUCTION = 3  # where only the best go on, one in so many
RACE = (1, 3)  # seeds of a configuration after the first stages of a race; after the last it has all


def stages_of(seeds: int, race: bool) -> list[int]:
    """Return how many seeds a configuration has after each stage."""
    return [*(stage for stage in RACE if race and stage < seeds), seeds]


def trials_of(configurations: int, stages: list[int]) -> int:
    """Return how many trials so many configurations take over all stages."""
    trials, before = 0, 0
    for seeds in stages:
        trials += configurations * (seeds - before)
        configurations, before = -(-configurations // REDUCTION), seeds
    return trials
