"""Deadlines of a request under article 12(3) of the GDPR, counted by Regulation 1182/71."""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterable
from datetime import date, timedelta

__all__ = ["deadline"]

_SATURDAY = 5


def deadline(received: date, months: int = 1, holidays: Iterable[date] = ()) -> date:
    """The last day of a period of months that begins with the receipt of a request.

    It is the day of the same number, or the last day of the month where there is none; on a Saturday, Sunday or
    holiday, the next working day. One month is the period to answer, three with the extension of article 12(3).

    Args:
        received: Day on which the request was received.
        months: Length of the period.
        holidays: Public holidays of the place; none are known here.

    Example:
        >>> str(deadline(date(2026, 1, 31))), str(deadline(date(2026, 1, 31), months=3))
        ('2026-03-02', '2026-04-30')
    """
    count = received.month - 1 + months
    year, month = received.year + count // 12, count % 12 + 1
    day = date(year, month, min(received.day, monthrange(year, month)[1]))
    free = set(holidays)
    while day.weekday() >= _SATURDAY or day in free:
        day += timedelta(days=1)
    return day
