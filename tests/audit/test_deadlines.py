"""Deadlines of article 12(3) of the GDPR."""

from __future__ import annotations

from datetime import date

import pytest

from lightning_unlearn import deadline


@pytest.mark.parametrize(
    ("received", "months", "due"),
    [
        ("2026-01-31", 1, "2026-03-02"),  # 28 February is a Saturday
        ("2026-01-31", 3, "2026-04-30"),
        ("2024-01-31", 1, "2024-02-29"),
        ("2025-12-15", 1, "2026-01-15"),
        ("2025-11-30", 3, "2026-03-02"),
        ("2026-05-15", 1, "2026-06-15"),
    ],
)
def test_the_day_of_the_same_number_or_the_next_working_day(received: str, months: int, due: str) -> None:
    assert deadline(date.fromisoformat(received), months) == date.fromisoformat(due)


def test_holidays_put_it_off() -> None:
    easter = [date(2026, 4, 3), date(2026, 4, 6)]
    assert deadline(date(2026, 3, 3), holidays=easter) == date(2026, 4, 7)  # Good Friday, weekend, Easter Monday
