"""A profile that is known, given back by a server of `simbatch serve`: measured, and fitted from what that leaves.

The machine that runs this may do other things too, so launches, which are waited for, may come late: their bounds are
wide here. benchmarks/serve_planted.py is the same for more profiles, for a machine that is quiet.
"""

import pytest

from benchmarks.serve_planted import differences, measured

DEVICE, LAUNCH = 0.03, 0.5
STREAMS = 1.0  # of decodes: where others take the cores, a client sees the front end more than the device


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    given, fits = measured(0, tmp_path_factory.mktemp("planted"), 0.6)
    return {name: differences(given, fit) for name, fit in fits.items()}


@pytest.mark.parametrize("name", ["profile", "recorder"])
def test_planted_device_and_launches_come_back(found, name):
    for key, share in found[name].items():
        assert abs(share) < (LAUNCH if key.startswith("launch") else DEVICE), (key, found[name])


def test_the_three_fits_agree_on_decodes(found):
    for key in ("decode of 4", "decode of 16"):
        assert abs(found["profile"][key] - found["recorder"][key]) < DEVICE
        assert abs(found["profile"][key] - found["streams"][key]) < STREAMS, found["streams"]
