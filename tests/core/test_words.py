"""Numbers as people read them."""

import pytest

from jaxlm.core.words import count, duration, printable, size


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (0.5, "0.50"), (999, "999"), (999.7, "1.00k"), (4_560_000, "4.56M"), (7e9, "7.00G")],
)
def test_counts_have_three_digits(number, text):
    assert count(number) == text


def test_bytes_have_a_unit():
    assert [size(n) for n in (12, 3_210_000_000)] == ["12 B", "3.21 GB"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (59, "59 s"),
        (59.9, "1 m 00 s"),
        (252, "4 m 12 s"),
        (11_220, "3 h 07 m"),
        (187e3, "2 d 03 h"),
    ],
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text


def test_what_is_shown_cannot_steer_a_terminal():
    assert printable("a\x1b[2J\rb ä") == "a\\x1b[2J\\rb ä"
