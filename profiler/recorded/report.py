"""What a fit from a recorder's files says to people, and to scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simbatch.profiler.recorded.from_recorder import RecorderProfile

REGIMES = ("decode", "prefill", "mixed")


def report_text(fitted: RecorderProfile) -> str:
    """What was covered, the held-out errors, what host and front end take, and what is not told."""
    fit, host = fitted.sections.fit, fitted.sections.host
    clock = "the device's own clock" if fit.has_device_times else "when waits for the device ended"
    lines = [
        f"{fitted.profile.name}: {fit.steps:,} steps and {fit.requests:,} requests of {fit.recorded_s:,.0f} s, "
        f"{'asynchronous' if fit.async_scheduling else 'synchronous'} scheduling, device times by {clock}",
        "",
        _row("device, held out", "steps", "MAPE", "p95", "bias"),
    ]
    for regime in REGIMES:
        error = getattr(fit.error, regime)
        lines.append(
            _row(regime, f"{error.num_steps:,}", f"{error.mape:.1%}", f"{error.p95:.1%}", f"{error.bias:+.1%}")
        )
    shares = ", ".join(f"{share:.0%} of {name} steps" for name, share in fit.device_shows.items())
    lines += [f"(shows in {shares}; the rest hides behind launches)", ""]
    if fit.gaps is not None:
        floor = "" if fit.gaps.noise_ms is None else f"; {fit.gaps.noise_ms:.3f} ms of it no model can tell"
        off = f"{fit.gaps.error_ms:.3f} ms off of {fit.gaps.mean_ms:.3f} on average{floor}"
        lines.append(f"gaps between updates, held out: {off}; their sum {fit.gaps.total:+.1%}")
    lines += ["host, ms:", *_host(host, fit.launches)]
    shown = {key: value for key, value in fitted.sections.front_end.items() if key != "source"}
    lines.append(
        "front end, ms: " + ", ".join(f"{key.removesuffix('_s')} {1e3 * value:.4g}" for key, value in shown.items())
    )
    lines += [f"not told: {key}: {what}" for key, what in fit.taken.items()]
    return "\n".join(line.rstrip() for line in lines)


def report_dict(fitted: RecorderProfile) -> dict[str, Any]:
    """The same for `--json`."""
    return {
        "name": fitted.profile.name,
        "recorder": fitted.sections.fit.model_dump(mode="json"),
        "host": fitted.sections.host,
        "front_end": fitted.sections.front_end,
    }


def _host(host: dict[str, Any], numbers: dict[str, int]) -> list[str]:
    parts = {f"launch {kind} ({numbers[kind]:,})": figures for kind, figures in host["launch"].items()}
    parts |= {"update": host["update"], "admit": host["admit"], "": {"lag_s": host["lag_s"], "tail_s": host["tail_s"]}}
    lines = []
    for name, figures in parts.items():
        told = ", ".join(f"{key.removesuffix('_s')} {1e3 * value:.4g}" for key, value in figures.items() if value)
        if told:
            lines.append(f"  {name:<26}{told}")
    return lines


def _row(first: str, *others: str) -> str:
    return f"{first:<22}" + "".join(f"{other:>10}" for other in others)
