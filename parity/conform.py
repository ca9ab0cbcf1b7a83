"""Hold a version of vLLM against the simulator: `python -m parity.conform 0.33.0 [...] --vllm-python PYTHON`.

Its sources are fetched once (`sources.py`) and run on the CPU environment of another version. All recordings, those of
sessions among them, are recorded anew by its own scheduler, fresh random cases with them, and played here; its defaults
are compared with the table (`sim/scheduler/config.py`), and the names that this project uses of its inside are looked
for. What came of it is a certificate, `parity/certificates/VERSION.json`, and a row of docs/versions.md. Exits with 1
if anything differs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from parity.check import RECORDINGS, SESSIONS, TIMING, first_difference, load
from parity.fuzz import PROBE, fresh_cases
from parity.serve_flags import names_used, wrong_defaults
from parity.sources import NotToBeHadError, environment, site_of
from parity.versions_page import CERTIFICATES, known_versions, write_page
from simbatch.sim.scheduler.config import CHANGES

PROCESSES = 2
LIMIT_S = 900
DAY_S = 24 * 3600
TURN_S = 100  # by turns, the second version is left out where the first took longer


class Fresh(NamedTuple):
    """How many fresh random cases there are of each kind, and the seed of the first; half of `sessions` have times."""

    cases: int
    timing: int
    sessions: int
    seed: int


def certify(version: str, python: str, fresh: Fresh, planted: Sequence[str] = ()) -> dict[str, Any]:
    """The certificate of one version; `planted` are changes that are switched here, to see whether it notices."""
    folders = site_of(version, python)
    with tempfile.TemporaryDirectory() as work:
        cases = _cases(fresh)
        parts = _write([case | {"vllm_version": version, "planted": list(planted)} for case in cases], Path(work))
        facts = _probe(parts, python, folders)
        paths = [path for part in parts for path in sorted(part.glob("*.json"))]
        with ProcessPoolExecutor(PROCESSES) as pool:
            found = dict(zip([path.stem for path in paths], pool.map(_compare, paths), strict=True))
    played = {name: said for name, said in found.items() if said != NOT_RECORDED}
    differences = {name: said for name, said in played.items() if said is not None} | facts["failed"]
    return {
        "version": version,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seed": fresh.seed,
        "num_recordings": sum(not name.startswith(("fresh", "timed")) for name in played),
        "num_fresh": sum(name.startswith(("fresh", "timed")) for name in played),
        "num_sessions": sum(case["name"] in played for case in cases if "system_prompts" in case),
        "with_times": facts["timed"],
        "differences": dict(sorted(differences.items())),
        "wrong_defaults": wrong_defaults(version, facts),
        "missing_names": facts["missing"],
        "defaults": facts["defaults"],
    }


NOT_RECORDED = "not recorded"


def _cases(fresh: Fresh) -> list[dict[str, Any]]:
    """Those that ship and fresh ones."""
    folders = RECORDINGS, TIMING, SESSIONS
    cases = [json.loads(path.read_text()) for folder in folders for path in sorted(folder.glob("*.json"))]
    for case in cases:
        if "timing" in case and not case["name"].startswith("t_"):
            case["name"] = f"t_{case['name']}"
    return [*cases, *fresh_cases(*fresh)]


def _write(cases: list[dict[str, Any]], work: Path) -> list[Path]:
    """In a folder for each process."""
    parts = [work / str(number) for number in range(PROCESSES)]
    for part in parts:
        part.mkdir()
        (part / "names.txt").write_text("\n".join(names_used()))
    for number, case in enumerate(cases):
        path = parts[number % PROCESSES] / f"{case['name']}.json"
        path.write_text(json.dumps(case))
    return parts


def _probe(parts: list[Path], python: str, folders: list[Path]) -> dict[str, Any]:
    """Let the real scheduler decide, in a process a folder; what they say, put together."""
    logs = [(part / "log").open("w") for part in parts]
    running = [
        subprocess.Popen([python, str(PROBE), str(part)], env=environment(folders), stdout=log, stderr=log)
        for part, log in zip(parts, logs, strict=True)
    ]
    try:
        for process in running:
            process.wait(LIMIT_S)
    finally:
        for process, log in zip(running, logs, strict=True):
            process.kill()
            log.close()
    for part in parts:
        if not (part / "facts.txt").is_file():
            sys.exit(f"vLLM's sources cannot be run:\n{(part / 'log').read_text()[-3000:]}")
    first, *others = (json.loads((part / "facts.txt").read_text()) for part in parts)
    for other in others:
        first["failed"] |= other["failed"]
    return first  # type: ignore[no-any-return]


def _compare(path: Path) -> str | None:
    """Where the first difference is, both sides of it below."""
    recording = path.with_suffix(".jsonl.gz")
    if not recording.is_file():
        return NOT_RECORDED
    try:
        difference = first_difference(json.loads(path.read_text()), load(recording))
    except Exception as error:
        return f"simbatch cannot play it: {type(error).__name__}: {error}"
    return None if difference is None else f"{difference.where}\n{difference}"


def is_conform(certificate: dict[str, Any]) -> bool:
    """Whether nothing differs."""
    return not certificate["differences"] and not certificate["wrong_defaults"]


def say(certificate: dict[str, Any], took_s: float) -> None:
    """A line, and more where something differs."""
    differences = certificate["differences"]
    num = certificate["num_recordings"] + certificate["num_fresh"]
    of = f"{certificate['num_recordings']} recordings and {certificate['num_fresh']} fresh cases"
    of += f", {certificate['num_sessions']} of them of sessions"
    print(f"vLLM {certificate['version']}: {num - len(differences)} of {num} identical ({of}), {took_s:.0f} s")
    for name, said in list(differences.items())[:5]:
        print(f"{name}: the first difference is at {said}")
    for said in certificate["wrong_defaults"]:
        print(f"default: {said}")
    if certificate["missing_names"]:
        print(f"used by the profiler or in a server, and not there: {', '.join(certificate['missing_names'])}")


def by_turns() -> list[str]:
    """The newest version that is certified, and another one every day."""
    *others, newest = known_versions()
    return [newest, others[int(time.time() // DAY_S) % len(others)]]


def main() -> int:
    """Certify every version that is named; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "versions", nargs="*", metavar="VERSION", help="none: the newest and, every day, another one; no certificate"
    )
    parser.add_argument("--vllm-python", default=os.environ.get("VLLM_PYTHON", ".venv-vllm/bin/python"))
    parser.add_argument("--cases", type=int, default=80, help="fresh ones")
    parser.add_argument("--timing", type=int, default=40, help="fresh ones with times of host and device")
    parser.add_argument("--sessions", type=int, default=40, help="fresh ones of sessions, half of them with times")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the fresh ones")
    parser.add_argument(
        "--plant", choices=sorted(CHANGES), action="append", default=[], help="switch a rule; implies --dry"
    )
    parser.add_argument("--dry", action="store_true", help="write no certificate")
    options = parser.parse_args()
    if shutil.which(options.vllm_python) is None:
        sys.exit(f"{options.vllm_python} is no Python: name an environment with vLLM's CPU build by --vllm-python")
    is_all_well, start_s, is_dry = True, time.monotonic(), options.dry or options.plant or not options.versions
    for version in options.versions or by_turns():
        begin_s = time.monotonic()
        if not options.versions and begin_s - start_s > TURN_S:
            print(f"vLLM {version}: skipped, the newest took long enough")
            continue
        try:
            fresh = Fresh(options.cases, options.timing, options.sessions, options.seed)
            certificate = certify(version, options.vllm_python, fresh, options.plant)
        except NotToBeHadError as error:
            print(f"{error}; skipped")
            is_all_well = is_all_well and not options.versions
            continue
        say(certificate, time.monotonic() - begin_s)
        is_all_well = is_all_well and is_conform(certificate)
        if not is_dry:
            (CERTIFICATES / f"{version}.json").write_text(json.dumps(certificate, indent=1) + "\n")
            write_page()
    return 0 if is_all_well else 1


if __name__ == "__main__":
    sys.exit(main())
