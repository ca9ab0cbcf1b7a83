"""BurstGPT's traces of ChatGPT and GPT-4 at a campus, releases 1 to 3."""

from simbatch.sim.workload.formats import Columns, Format

FORMATS = [
    Format(
        "burstgpt",
        Columns("Timestamp", "Request tokens", "Response tokens"),
        unit="s",
        source="github.com/HPMLL/BurstGPT",
    )
]
