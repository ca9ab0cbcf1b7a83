"""Steps with prefills and those round them, predicted as the engine does them, and the parameters that do it best.

An episode begins with the decode step before a prefill, whose tokens wait for that one's launch, and ends with the
step behind the last prefill. Within it moments are predicted one from the other, by the engine's rule (`sim/engine`):
asynchronous S(k) = U(k-2), L = S + launch, D = max(max(D(k-1), S) + device, L), U = max(D, L(k+1)), synchronous
S(k) = U(k-1), U = max(S + device, L); the one that predicts better is the server's. Nothing is taken from the record
but the begin, so that only sums have to be right, whoever a single gap belongs to. A step before
which nobody decoded tells by the first token of a lone request instead, with the way in.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

from simbatch.profiler.fit.facts import Priors
from simbatch.profiler.fit.streams.steps import StepColumns, basis, joined, knots_of
from simbatch.profiler.fit.streams.windows import BLOCK, Scatter, scatter_of, windows_of
from simbatch.sim.streams import Floats, Ints

RARE = 0.01  # of the steps with prefills: fewer make no knot
TOTAL_SD, GAP_SD, FLOOR_S = 0.02, 0.3, 0.5e-3
LONE_SD = 0.05
ANCHOR_SD, BEND_SD = 0.15, 0.5
HIDDEN_S, LAUNCH_SD = 1e-3, 1.5  # a launch may be e to that many times its prior; below a ms nothing shows
SHARES = 200
BINDS = 1.3  # times a decode's step: a launch that long shows in the gap before its step
CLEARLY = 0.99  # of the cost: where two begins end as well, the usual one's end stays
FEW = 5  # steps of a kind of launch, to speak of it, and of so many tokens, to make a knot
PIECES = 0.4  # a launch in pieces of a graph over one without: 0.6 on one server, 0.3 or less on another
SLOPE_SD_S, SLOPE_HELD_S = 1e-4, 1e-6  # how near a launch's slope per request is held to its prior: told, not told
MOOD = 0.1  # a run's launches as a whole are longer or shorter by that, whatever runs (docs/accuracy.md, first look)
HOST = ("graph_s", "piecewise_s", "none_s", "per_seq_s", "per_prefill_s", "lone_s", "lone_per_token_s")


class Decode(NamedTuple):
    """Decode-only steps: see `steps`."""

    knots: Ints
    time_s: Floats
    context_s: float

    def step_s(self, num_decodes: Floats, context: Floats) -> Floats:
        """How long they last."""
        return basis(np.maximum(1, num_decodes), self.knots) @ self.time_s + self.context_s * context


class FittedEpisodes(NamedTuple):
    """Steps with prefills: token knots, and the host's launches; `cost` is half the sum of squared residuals."""

    cost: float
    is_async: bool
    kinds: tuple[int, ...]  # of launches that were seen: 1 piecewise, 2 none

    knots: Ints
    time_s: Floats
    token_s: float  # mean slope
    host: dict[str, float]
    sure: dict[str, float]  # standard error over value, by name
    scatter: Scatter  # of the knots' times first


class EpisodesProblem:
    """Predictions of episodes as a function of parameters; see the module."""

    def __init__(self, runs: Sequence[StepColumns], decode: Decode, priors: Priors, *, is_async: bool = True) -> None:
        self.decode, self.priors, self.is_async = decode, priors, is_async
        self.all, begins = joined(list(runs))
        windows = windows_of(runs)
        self.rows, self.is_step = windows.steps + begins[windows.run][:, None], windows.is_step
        run = self.all
        self.rounds = 1 + run.num_hidden
        self.has_prefill = run.tokens > 0
        self.total = np.maximum(1, (run.tokens + run.num_decodes) / self.rounds)
        used = np.zeros(len(run.tokens), dtype=bool)
        used[self.rows[self.is_step]] = True
        used[run.lone.step] = True
        self.used = used
        counts = self.total[self.has_prefill & used]
        seen = knots_of(counts, max(FEW, RARE * len(counts)), FEW) if len(counts) else np.array([2])
        self.knots = np.unique(np.concatenate([[1], seen]))
        self.basis = basis(self.total, self.knots)
        self.decode_s = decode.step_s(run.num_decodes, run.context)
        self.slope_sd_s = SLOPE_SD_S
        self.usual_s: Floats | None = None
        self.begins = begins
        self.kind = np.where(~self.has_prefill, 0, np.where(run.tokens + run.num_decodes <= priors.max_capture, 1, 2))
        self.spread(np.ones(1))

    def device_s(self, time_s: Floats) -> Floats:
        """Of every step."""
        run, token_s = self.all, self.token_s(time_s)
        mixed = self.rounds * (self.basis @ time_s)
        mixed = mixed + self.priors.attention * token_s * run.attention
        mixed = mixed + self.priors.mixed_context * self.decode.context_s * run.context
        return np.where(self.has_prefill, mixed, self.decode_s)

    def token_s(self, time_s: Floats) -> float:
        """Mean slope of the knots, of those above the largest CUDA graph if it can: a launch is no token's price."""
        if len(self.knots) < 2:
            return 0.0
        first = int(np.searchsorted(self.knots, self.priors.max_capture, side="right"))
        first = first if first < len(self.knots) - 1 else 0
        return float((time_s[-1] - time_s[first]) / (self.knots[-1] - self.knots[first]))

    def launch_s(self, host: Floats) -> Floats:
        """Of every step."""
        run = self.all
        base = np.choose(self.kind, host[:3])
        slopes = host[3] * run.num_decodes + host[4] * np.maximum(0, run.num_prefills - 1)
        return base + np.where(self.kind == 2, slopes, np.where(self.kind == 1, slopes / 2, 0.0))

    def predict(self, device_s: Floats, launch_s: Floats) -> Floats:
        """U of the steps of every episode, s after its begin; [episode, place]."""
        rows, update_s = self.rows, self.all.update_s
        begin_s = update_s[rows[:, 0] - 1]
        free, before, older = begin_s, begin_s, update_s[rows[:, 0] - 2]
        found = np.zeros(rows.shape)
        for place, number in enumerate(self.is_step.sum(axis=0).tolist()):  # the longest episodes stand first
            step, free, before, older = rows[:number, place], free[:number], before[:number], older[:number]
            if self.is_async:
                following = np.minimum(step + 1, len(update_s) - 1)
                free = self._longer(np.maximum(free, older) + device_s[step], older, launch_s[step], step)
                older, before = before, self._longer(free, before, launch_s[following], following)
            else:
                before = before + np.maximum(device_s[step], launch_s[step])
            found[:number, place] = before - begin_s[:number]
        return found

    def _longer(self, until_s: Floats, begin_s: Floats, launch_s: Floats, step: Ints) -> Floats:
        """The later of a moment and a launch's end, on average: the longer of a noisy launch and 20 ms is over both."""
        share = (until_s - begin_s) / np.maximum(launch_s, 1e-9)
        over = np.interp(share, *self.noise) + np.maximum(0, -share)
        noisy_s = until_s + launch_s * over
        return np.asarray(np.where(self.kind[step] > 0, noisy_s, np.maximum(until_s, begin_s + launch_s)))

    def weigh(self, fitted: FittedEpisodes) -> None:
        """From here on errors are shares of what was predicted: as shares of what was seen, slow steps weigh less."""
        if self.rows.size:
            found = self.predict(*self.times_s(fitted))
            self.usual_s = np.maximum(0.0, np.diff(found, axis=1, prepend=np.zeros((len(found), 1))))

    def spread(self, ratios: Floats) -> None:
        """From here on launches of prefills are that noisy."""
        ratios = ratios / ratios.mean()
        shares = np.linspace(0, float(ratios.max()), SHARES)
        self.noise = shares, np.maximum(0, ratios - shares[:, None]).mean(axis=1)

    def residuals(self, parameters: Floats) -> Floats:
        """Of blocks' sums, gaps, lone requests, and what is held near its prior."""
        time_s, host = self.unpack(parameters)
        device_s, launch_s = self.device_s(time_s), self.launch_s(host)
        parts = [
            *self._of_episodes(device_s, launch_s),
            self._of_lone(device_s, launch_s, host),
            *self._held(time_s, host),
        ]
        return np.concatenate(parts)

    def unpack(self, parameters: Floats) -> tuple[Floats, Floats]:
        """Knots' times and the host's."""
        number = len(self.knots)
        return np.cumsum(parameters[:number]), parameters[number:]

    def _of_episodes(self, device_s: Floats, launch_s: Floats) -> list[Floats]:
        if not self.rows.size:
            return []
        rows, is_step = self.rows, self.is_step
        found, begin_s = self.predict(device_s, launch_s), self.all.update_s[rows[:, 0] - 1][:, None]
        real = self.all.update_s[rows] - begin_s
        first = np.zeros((len(rows), 1))
        gaps, real_gaps = np.diff(found, axis=1, prepend=first), np.diff(real, axis=1, prepend=first)
        usual = real_gaps if self.usual_s is None else self.usual_s
        parts = [((gaps - real_gaps) / (GAP_SD * usual + FLOOR_S))[is_step] / np.sqrt(is_step.sum(axis=1).mean())]
        for begin in range(0, rows.shape[1], BLOCK):
            chosen = is_step[:, begin : begin + BLOCK]
            has = chosen.any(axis=1)
            ours = (gaps[:, begin : begin + BLOCK] * chosen).sum(axis=1)[has]
            theirs = (real_gaps[:, begin : begin + BLOCK] * chosen).sum(axis=1)[has]
            wide = (usual[:, begin : begin + BLOCK] * chosen).sum(axis=1)[has]
            parts.append((ours - theirs) / (TOTAL_SD * wide + FLOOR_S))
        return parts

    def _of_lone(self, device_s: Floats, launch_s: Floats, host: Floats) -> Floats:
        run = self.all
        found = host[5] + host[6] * run.lone.prompt + np.maximum(device_s[run.lone.step], launch_s[run.lone.step])
        return np.asarray((found - run.lone.ttft_s) / (LONE_SD * run.lone.ttft_s + FLOOR_S))

    def _held(self, time_s: Floats, host: Floats) -> list[Floats]:
        first = self.decode.step_s(np.array([1.0]), np.array([0.0]))[0]
        priors = self.priors
        held = [np.array([(time_s[0] - first) / (ANCHOR_SD * first)])]
        if len(self.knots) > 2:
            slopes = np.diff(time_s) / np.diff(self.knots)
            held.append(np.diff(slopes) / (BEND_SD * (slopes[1:] + slopes[:-1]) + 1e-9))
        near = np.array([priors.graph_s, priors.launch_s, priors.launch_s])
        held.append(np.log((host[:3] + HIDDEN_S) / (near + HIDDEN_S)) / LAUNCH_SD)
        held.append(np.array([(host[3] - priors.per_seq * host[2]) / self.slope_sd_s, host[4] / 3e-3]))
        held.append((host[5:7] - np.array([5e-3, 1e-6])) / np.array([1e-2, 3e-6]))
        return held

    def solve(self) -> FittedEpisodes:
        """The parameters that predict best, from the begins of `_starts`."""
        first = float(self.decode.step_s(np.array([1.0]), np.array([0.0]))[0])
        increments = np.diff(self.knots, prepend=self.knots[0]) * self.first_slope()
        increments[0] = first
        hidden = np.array([self.priors.graph_s, self.priors.launch_s, self.priors.launch_s, 1e-5, 1e-4, 5e-3, 1e-6])
        scale = np.concatenate([np.maximum(increments, 1e-5), np.array([1e-3, 1e-2, 1e-2, 1e-4, 1e-3, 1e-2, 1e-6])])
        found = [
            least_squares(
                self.residuals, np.concatenate([increments, host]), bounds=(0, np.inf), x_scale=scale, max_nfev=60
            )
            for host in self._starts(hidden)
        ]
        *usual, other = found
        best = min(usual, key=lambda each: float(each.cost))
        best = other if other.cost < CLEARLY * best.cost else best
        time_s, host = self.unpack(best.x)
        seen = tuple(kind for kind in (1, 2) if (self.kind[self.used] == kind).sum() >= FEW)
        if seen == (2,):
            host[1] = PIECES * host[2]
        elif seen == (1,):
            host[2] = host[1] / PIECES
        named = dict(zip(HOST, host.tolist(), strict=True))
        scatter = scatter_of(best, self.is_step, len(self.all.lone.step), len(self.knots))
        sure, token_s = self._sure(scatter, time_s, host), self.token_s(time_s)
        cost = float(best.cost)
        return FittedEpisodes(cost, self.is_async, seen, self.knots, time_s, token_s, named, sure, scatter)

    def _starts(self, hidden: Floats) -> list[Floats]:
        """Launches hidden; as long as the gap that they would fill, before their step or its own; only prefills' so."""
        host, gaps = hidden.copy(), np.diff(self.all.update_s, prepend=self.all.update_s[0])
        busy = self.all.num_decodes > 0
        for kind in (1, 2):
            chosen = np.flatnonzero((self.kind == kind) & busy & np.roll((self.kind == 0) & busy, 1))
            chosen = chosen[chosen > 1]
            if len(chosen) and self.is_async:
                host[kind] = float(np.median(gaps[chosen - 1]))
            elif len(chosen):
                host[kind] = float(np.quantile(gaps[chosen], 0.1))
        graphs = host.copy()
        graphs[0] = 0.9 * float(self.decode.time_s[0])
        return [hidden, graphs, host]

    def first_slope(self) -> float:
        """A token's price by plain ratio: what steps with prefills took beyond a decode, over their tokens."""
        first_s = float(self.decode.step_s(np.array([1.0]), np.array([0.0]))[0])
        gaps = np.diff(self.all.update_s, prepend=self.all.update_s[0])
        chosen = self.has_prefill & (self.all.num_decodes > 0)
        if not chosen.any():
            chosen = np.zeros_like(self.has_prefill)
            chosen[self.all.lone.step] = True
            return float(max(1e-7, (self.all.lone.ttft_s - first_s).sum() / max(1.0, self.all.lone.prompt.sum())))
        return float(max(1e-7, (gaps[chosen] - first_s).sum() / self.all.tokens[chosen].sum()))

    def _sure(self, scatter: Scatter, time_s: Floats, host: Floats) -> dict[str, float]:
        """Standard errors over values, by name."""
        values = np.maximum(np.concatenate([time_s, host]), 1e-9)
        errors = scatter.errors(np.eye(len(values)))
        names = [f"tokens_{knot}" for knot in self.knots] + list(HOST)
        slope = names.index("per_seq_s")
        errors[slope] = np.hypot(errors[slope], MOOD * float(values[names.index("none_s")]) / self._apart())
        return dict(zip(names, (errors / values).tolist(), strict=True))

    def running(self) -> list[float]:
        """Requests that run beside prefills, by run: the mean."""
        counted = self.used & self.has_prefill & (self.all.num_decodes > 0)
        parts = [slice(begin, end) for begin, end in pairwise(self.begins)]
        return [float(self.all.num_decodes[part][counted[part]].mean()) for part in parts if counted[part].any()]

    def _apart(self) -> float:
        """How far runs are from each other in that: the root of the sum of squares."""
        return max(1e-9, float(np.linalg.norm(np.array(self.running()) - np.mean(self.running() or [0.0]))))

    def ends_s(self, device_s: Floats, launch_s: Floats) -> Floats:
        """How long each episode is predicted to last."""
        return np.asarray(self.predict(device_s, launch_s)[np.arange(len(self.rows)), self.is_step.sum(axis=1) - 1])

    def launch_ratios(self, fitted: FittedEpisodes) -> Floats:
        """Real over predicted launches, where a launch is what a step's tokens waited for."""
        if not self.rows.size or not self.is_async:
            return np.zeros(0)
        _, launch_s = self.times_s(fitted)
        step = self.rows[:, 0]
        following = np.minimum(step + 1, len(launch_s) - 1)
        waits = (self.kind[step] == 0) & (self.kind[following] > 0)
        waits &= launch_s[following] > BINDS * self.decode_s[step]
        return np.asarray(
            (self.all.update_s[step] - self.all.update_s[self.rows[:, 0] - 1])[waits] / launch_s[following][waits]
        )

    def times_s(self, fitted: FittedEpisodes) -> tuple[Floats, Floats]:
        """Of every step, on the device and of its launch."""
        host = np.array([fitted.host[name] for name in HOST])
        time_s = np.interp(self.knots, fitted.knots, fitted.time_s)
        return self.device_s(time_s), self.launch_s(host)
