"""When enough was measured."""

from simbatch.profiler.fit.from_samples import HeldOut
from simbatch.profiler.profile.stopping import MIN_WAVES, PATIENCE, SURE, Stopping


def test_measuring_stops_when_the_error_does_not_improve():
    stopping, looks = Stopping(), []
    num_episodes = MIN_WAVES
    for error in (0.2, 0.1, 0.099, 0.0985, 0.098, 0.05):
        assert stopping.is_time_to_look(num_episodes)
        looks.append(stopping.look(num_episodes, found(error, SURE)))
        assert not stopping.is_time_to_look(num_episodes)
        num_episodes = stopping.next_look
    assert looks.index(True) == 1 + PATIENCE
    assert not Stopping().look(50, None)  # too few steps to fit: go on


def test_measuring_goes_on_while_totals_are_unsure():
    stopping = Stopping()
    assert not any(stopping.look(50 + i, found(0.1, 1.5 * SURE)) for i in range(10))
    assert stopping.look(60, found(0.1, SURE))


def found(error, total_error):
    return HeldOut({"decode": error, "mixed": error}, {"decode": total_error, "mixed": SURE / 2})
