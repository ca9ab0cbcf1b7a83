"""Azure's timestamps: `2023-11-16 18:17:03.9799600` and `2024-05-10 00:00:00.009930+00:00`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.workload.traces.rows import BadValueError

_FORM = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,12}))?(?:(Z)|([+-])(\d\d):?(\d\d))?", re.ASCII)
_PS_BY_DIGITS: list[int] = [10**zeros for zeros in range(12, -1, -1)]  # what the last of so many decimals is worth
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class TimestampParser:
    """Timestamps to ps since 1970, in UTC unless they say otherwise, exact to all their digits.

    Rows of the same minute share its conversion, which makes a parser several times faster than none.
    """

    def __init__(self) -> None:
        self._minutes: dict[str, int] = {}

    def __call__(self, value: object) -> int:
        """One timestamp; BadValueError when it is none."""
        text = str(value)
        body = text.removesuffix("+00:00")
        minute = self._minutes.get(body[:17])  # "2023-11-16 18:17:"
        if minute is not None:
            seconds = body[17:19]
            fraction = body[20:]
            digits = seconds + fraction
            plain = digits.isascii() and digits.isdigit() and len(seconds) == 2 and 0 < len(fraction) <= 12
            if plain and body[19] == "." and seconds < "60":
                return minute + int(digits) * _PS_BY_DIGITS[len(fraction)]
        return self._parse(text.strip())

    def _parse(self, text: str) -> int:
        match = _FORM.fullmatch(text)
        if match is None:
            raise BadValueError("must be a timestamp", "such as 2023-11-16 18:17:03.9799600")
        day, clock, fraction, _, sign, hours, minutes = match.groups()
        try:
            zone = (
                timezone(timedelta(hours=int(hours), minutes=int(minutes)) * (-1 if sign == "-" else 1))
                if sign
                else UTC
            )
            moment = datetime.fromisoformat(f"{day} {clock}").replace(tzinfo=zone)
        except ValueError as error:
            raise BadValueError(f"is no date or time: {error}", "check day, month and time") from None
        since = moment - _EPOCH
        whole_s = since.days * 86_400 + since.seconds
        if zone is UTC or not zone.utcoffset(None):
            if len(self._minutes) > 100_000:
                self._minutes.clear()
            self._minutes[text[:17]] = (whole_s - moment.second) * PS_PER_S
        return whole_s * PS_PER_S + int((fraction or "0").ljust(12, "0"))
