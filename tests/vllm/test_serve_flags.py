"""Every flag of the installed vLLM's own parser has an answer in the table that `simbatch init` reads."""

import sys

from parity.serve_flags import differences, listed
from simbatch.sim.scenario.flags import spellings

STATUSES = {"used", "no_effect", "not_simulated"}


def test_every_flag_of_the_parser_has_an_answer():
    actions = [action for action in listed(sys.executable)["actions"] if action["options"]]
    assert len(actions) > 300
    assert [*differences(actions)] == []
    rows = [spellings()[option][0] for action in actions for option in action["options"] if option != "-h"]
    assert {row.status for row in rows} == STATUSES
    assert all(row.key or row.reason for row in rows)
