"""How far a profile can be trusted, in the sentences that every result says of it."""

from __future__ import annotations

from simbatch.sim.cost.profile import Profile

NO_REAL_RUN = "no real run stands behind it"
NO_HOST_TIMES = (
    "The profile has no host times (scheduling, launching, HTTP): under load TTFT is likely 20 to 50 % too low, "
    "as against real runs on an H100 (docs/accuracy.md)."
)
ASSUMED_HOST = (
    "Host and front end are assumed, not measured on this server: TTFT may be off by 15 to 50 %, TPOT by 5 to 20 %, "
    "most with small models (docs/accuracy.md). `--host` takes those of a machine that was measured (docs/hosts.md)."
)


def lacks_host_times(profile: Profile) -> bool:
    """Whether a GPU's computing is all that its steps hold: those measured as whole calls hold the host's part too."""
    error = profile.fit_error
    return profile.is_gpu and profile.host is None and (error is None or error.against == "tables")


def caveats(profile: Profile) -> tuple[str, ...]:
    """What every result of this profile must say beside its error."""
    said = []
    if lacks_host_times(profile):
        said.append(NO_HOST_TIMES)
    sections = (profile.host, profile.front_end)
    if any(section is not None and section.assumed for section in sections):
        said.append(ASSUMED_HOST)
    if (link := getattr(profile, "link", None)) is not None:
        said.append(
            f"All-reduce between the GPUs is computed for a link of {link.text()}: other boards differ, and TPOT with "
            "them by tens of per cent."
        )
    return tuple(said)


def error_line(profile: Profile) -> str | None:
    """The fit's error, of what it is one, and how far real runs were; None where nothing was fitted."""
    if profile.streams is not None:
        return profile.streams.summary()
    if profile.recorder is not None:
        return f"{profile.recorder.summary()}; device: {profile.recorder.error.summary()}"
    error = profile.fit_error
    if error is None:
        return None
    if profile.compared is not None:
        return f"{error.summary()}; {profile.compared.summary()}"
    return f"{error.summary()}; {NO_REAL_RUN}" if error.against == "tables" else error.summary()
