"""How far the parts of a profile may be off, as distributions, and profiles drawn from them.

Each part is multiplied by a lognormal factor: `centre` is its median, `spread` the standard deviation of its logarithm
(0.05: 5 %, nine in ten within 8 %). Where they come from stands beside each figure; docs/plan.md has the same table. A
profile that was fitted to a server says itself how far runs were off that it had not seen, and that is taken where it
is more than the least. The sentences in which every result says how far its profile can be trusted stand here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, hypot, log1p
from statistics import NormalDist, median
from typing import Any

import numpy as np

from simbatch.sim.cost.profile import MeasuredProfile, Profile
from simbatch.sim.cost.sections import LaunchGrowth

PARTS = ("decode", "mixed", "host", "front_end", "num_gpu_blocks", "growth")
WORDS = {
    "decode": "the device's time of decode steps",
    "mixed": "the device's time of steps with prefills",
    "host": "the host's time (launches, updates, admissions)",
    "front_end": "the front end's time (HTTP, tokenising, streaming)",
    "num_gpu_blocks": "the number of KV blocks",
    "growth": "how launches grow with the requests at once",
}
STREAM = 0x5EEDBA4D  # apart from what else is drawn of a seed
_BITS = 53


@dataclass(frozen=True)
class Uncertain:
    """What a part is multiplied by to be right."""

    centre: float
    spread: float
    source: str

    @property
    def is_certain(self) -> bool:
        """Whether nothing is drawn."""
        return self.spread == 0 and self.centre == 1

    def at(self, deviation: float) -> float:
        """The factor so many standard deviations from the centre."""
        return self.centre * exp(self.spread * deviation)

    def text(self) -> str:
        """`x 0.93 to 1.10 (nine in ten): source`."""
        low, high = self.at(-1.645), self.at(1.645)
        return f"x {low:.2f} to {high:.2f} (nine in ten): {self.source}"


COMPOSED = {  # steps added up from ops or kernels
    "decode": Uncertain(1.02, 0.05, "two sources for one GPU differ by -6 to -3 % (docs/profiles.md)"),
    "mixed": Uncertain(1.04, 0.07, "two sources for one GPU differ by -10 to +4 % (docs/profiles.md)"),
}
COMPUTED = {  # a roofline
    "decode": Uncertain(1.05, 0.13, "roofline against 22 profiles: -20 to +4 %, and theirs (docs/memory.md)"),
    "mixed": Uncertain(1.0, 0.13, "roofline against 22 profiles: -17 to +19 %, and theirs (docs/memory.md)"),
}
MEASURED = {  # steps measured one by one, or in a server
    "decode": Uncertain(1.0, 0.03, "runs of one server differ by 2 to 4 % (docs/accuracy.md)"),
    "mixed": Uncertain(1.0, 0.04, "runs of one server differ by 2 to 5 % (docs/accuracy.md)"),
}
ALL_REDUCE = Uncertain(
    1.0, 0.12, "all-reduce is computed for a link: boards differ by tens of per cent (docs/profiles.md)"
)
ASSUMED_HOST = Uncertain(1.0, 0.7, "launches of 2 to 40 ms between machines, 8 to 12 assumed (docs/hosts.md)")
ASSUMED_FRONT_END = Uncertain(1.0, 0.6, "a request's way in of 5 to 40 ms between machines, 14 assumed (docs/hosts.md)")
MEASURED_HOST = Uncertain(1.0, 0.15, "launches wander: one run's mean is known to a tenth at best (docs/accuracy.md)")
MEASURED_FRONT_END = Uncertain(1.0, 0.2, "TTFT of runs not fitted on is off by 5 to 10 % (docs/accuracy.md)")
ONE_LENGTH = 2.0  # the longest prompts of a fit over the shortest: less does not tell a delay from a price a token
ONE_LENGTH_FRONT_END = Uncertain(
    1.0, ASSUMED_FRONT_END.spread, "told by prompts of one length: of others no more is known than between machines"
)
NOT_TOLD_DEVICE = ("attention", "context beside prefills", "decode context")  # of a fit: another profile's, scaled
REACH = 64  # requests: growth's factor is of a launch beside so many more than were seen
ESTIMATED_BLOCKS = Uncertain(1.0, 0.06, "the planner against start-up logs: half within 6 % (docs/memory.md)")
MEASURED_BLOCKS = Uncertain(1.0, 0.01, "as vLLM resolved them")


def uncertainty_of(profile: Profile) -> dict[str, Uncertain]:
    """Of each part that is in doubt; nothing of step times that a scenario writes itself."""
    if not isinstance(profile, MeasuredProfile) and profile.streams is None:
        return {}
    found = {**_device(profile), **_around(profile)}
    if isinstance(profile, MeasuredProfile):
        found["num_gpu_blocks"] = _blocks(profile)
    return {part: found[part] for part in PARTS if part in found and not found[part].is_certain}


def _device(profile: Profile) -> dict[str, Uncertain]:
    error = profile.fit_error
    if profile.is_estimate:
        base = COMPUTED
    elif error is not None and error.against == "tables":
        base = COMPOSED
    elif _lacks_parts(profile):
        base = {
            part: Uncertain(1.0, each.spread, f"parts are another profile's, or nobody's; {each.source}")
            for part, each in COMPOSED.items()
        }
    else:
        base = MEASURED
    seen = _seen_error(profile)
    return {
        part: _widened(each, ALL_REDUCE if getattr(profile, "link", None) is not None else None, seen)
        for part, each in base.items()
    }


def _lacks_parts(profile: Profile) -> bool:
    """Whether a fit from streams took its parts of the device's time from elsewhere, or some from no profile."""
    taken = {} if profile.streams is None else profile.streams.taken
    return {*NOT_TOLD_DEVICE} <= {*taken} or taken.get("attention", "").startswith("of no profile")


def _seen_error(profile: Profile) -> float:
    """How far totals were off that the fit had not seen: the mean over its results, or of the recorder's gaps."""
    if profile.streams is not None:
        predicted = [abs(run.predicted.tpot) for run in profile.streams.runs if run.predicted is not None]
        # of two results each is predicted by one load alone, which says nothing of what both together tell
        return median(predicted) if len(predicted) > 2 else abs(profile.streams.halves or 0.0)
    if profile.recorder is not None and profile.recorder.gaps is not None:
        return abs(profile.recorder.gaps.total)
    return 0.0


def _widened(base: Uncertain, link: Uncertain | None, seen: float) -> Uncertain:
    """Also by the link's doubt; and by what the fit says of itself, where that is more."""
    spread, source = base.spread, base.source
    if log1p(seen) > spread:
        spread, source = log1p(seen), f"totals that the fit had not seen are off by {100 * seen:.1f} %"
    if link is None:
        return Uncertain(base.centre, spread, source)
    return Uncertain(base.centre, hypot(spread, link.spread), f"{source}; {link.source}")


def _around(profile: Profile) -> dict[str, Uncertain]:
    """Host and front end, where the profile has them."""
    found = {}
    if profile.host is not None:
        found["host"] = ASSUMED_HOST if profile.host.assumed else MEASURED_HOST
        if (growth := profile.host.growth) is not None:
            source = f"a launch with {growth.around + REACH:.0f} requests running, where {growth.around:.0f} were seen"
            found["growth"] = Uncertain(1.0, REACH * growth.error_s / growth.launch_s, source)
    if profile.front_end is not None:
        found["front_end"] = ASSUMED_FRONT_END if profile.front_end.assumed else MEASURED_FRONT_END
        if _has_one_length(profile):
            found["front_end"] = ONE_LENGTH_FRONT_END
    return found


def _has_one_length(profile: Profile) -> bool:
    """Whether it was fitted to prompts that are all about as long."""
    prompts = [] if profile.streams is None else [run.prompt_tokens for run in profile.streams.runs]
    return bool(prompts) and max(high for _, high in prompts) < ONE_LENGTH * min(low for low, _ in prompts)


def _blocks(profile: MeasuredProfile) -> Uncertain:
    return ESTIMATED_BLOCKS if "est" in profile.memory.num_gpu_blocks_from else MEASURED_BLOCKS


def deviations(seed: int, draw: int) -> dict[str, float]:
    """How many standard deviations each part is off in a draw; the same for all profiles, whatever they have.

    The normal quantile of PCG64's raw bits: the same on any machine and with any version of numpy.
    """
    bits = np.random.PCG64(np.random.SeedSequence([STREAM, seed, draw])).random_raw(len(PARTS))
    shares = [((int(raw) >> (64 - _BITS)) + 0.5) / (1 << _BITS) for raw in bits]
    return {part: NormalDist().inv_cdf(share) for part, share in zip(PARTS, shares, strict=True)}


def factors(profile: Profile, off: Mapping[str, float]) -> dict[str, float]:
    """What each part is multiplied by that is so many standard deviations off; one that is not named, by its centre."""
    return {part: each.at(off.get(part, 0.0)) for part, each in uncertainty_of(profile).items()}


def scaled(profile: Profile, by: Mapping[str, float]) -> dict[str, Any]:
    """The profile with its times multiplied, as plain data; blocks are a setting of the engine's, and stay."""
    content: dict[str, Any] = profile.model_dump(mode="json")
    times = content["step_time"]
    decode, mixed = by.get("decode", 1.0), by.get("mixed", 1.0)
    if times["form"] == "linear":
        _multiply(times, decode, skip=("per_prefill_token_s",))
        times["per_prefill_token_s"] = times.get("per_prefill_token_s", 0.0) * mixed
    else:
        _multiply(times["decode"], decode)
        _multiply(times["mixed"], mixed)
    if profile.host is not None and profile.host.growth is not None:
        _grow(content["host"]["launch"], profile.host.growth, by.get("growth", 1.0))
    for section, key in (("host", "host"), ("front_end", "front_end")):
        if content[section] is not None:
            _multiply(content[section], by.get(key, 1.0), skip=("spread", "growth"))
    return content


def _grow(launch: dict[str, dict[str, float]], growth: LaunchGrowth, factor: float) -> None:
    """Turn launches round what they take beside as many requests as were seen; half as far in pieces of a graph.

    Seen 20 ms beside 10 requests, 1.32 beside 64 more: 6.4 ms there, so 0.1 a request more, and 1 ms less beside none.
    """
    for kind, share in (("piecewise", 0.5), ("none", 1.0)):
        before = launch[kind]["per_seq_s"]
        after = max(0.0, before + share * (factor - 1) * growth.launch_s / REACH)
        launch[kind]["per_seq_s"] = after
        launch[kind]["base_s"] = max(0.0, launch[kind]["base_s"] - (after - before) * growth.around)


def _multiply(section: dict[str, Any], factor: float, skip: tuple[str, ...] = ()) -> None:
    """Every time in it and below, which is every key in seconds."""
    for key, value in section.items():
        if key in skip:
            continue
        if isinstance(value, dict):
            _multiply(value, factor)
        elif key.endswith("_s"):
            section[key] = [each * factor for each in value] if isinstance(value, list) else value * factor


NO_REAL_RUN = "no real run stands behind it"
NO_HOST_TIMES = (
    "The profile has no host times (scheduling, launching, HTTP): under load TTFT is likely 20 to 50 % too low, "
    "as against real runs on an H100 (docs/accuracy.md)."
)
HOST_IS_ASSUMED = (
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
        said.append(HOST_IS_ASSUMED)
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
