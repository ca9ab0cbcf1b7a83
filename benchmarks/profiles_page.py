"""The table of shipped profiles in docs/profiles.md, written anew: `python -m benchmarks.profiles_page`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from simbatch.sim.cost.by_name import load_profile, shipped_names
from simbatch.sim.cost.model import step_ps_alike

PAGE = Path(__file__).parents[1] / "docs" / "profiles.md"
HEAD = "| profile | decode | prefill | mixed | a decode (ms) | 64 decodes (ms) | a prefill of 2,048 (ms) |"
CONTEXT, PROMPT = 1024, 2048
PS_PER_MS = 1e9


def rows() -> Iterator[str]:
    """Held-out errors, and what three steps last."""
    for name in shipped_names():
        profile = load_profile(name, folder=Path())
        cost, error = profile.cost_model(), profile.fit_error
        parts = (error.decode, error.prefill, error.mixed) if error else ()
        errors = [f"{100 * part.mape:.1f} %" if part.num_steps else "-" for part in parts] or ["-"] * 3
        decodes = [step_ps_alike(cost, n, n * CONTEXT) for n in (1, 64)]
        times = [*decodes, step_ps_alike(cost, 0, 0, PROMPT, PROMPT, PROMPT * PROMPT)]
        yield f"| `{name}` | {' | '.join(errors)} | {' | '.join(f'{time / PS_PER_MS:.1f}' for time in times)} |"


def main() -> None:
    """Put the rows in the place of those that stand there."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    first = lines.index(HEAD) + 2
    last = next(i for i in range(first, len(lines)) if not lines[i].startswith("|"))
    PAGE.write_text("\n".join([*lines[:first], *rows(), *lines[last:]]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
