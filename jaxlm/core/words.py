"""Numbers as people read them, and text that is safe to show."""


def count(number: float) -> str:
    """Three digits and a decimal prefix: 12.3k, 4.56M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * size:
            return f"{_three(number / size)}{unit}"
    return f"{number:.0f}" if float(number).is_integer() else _three(number)


def size(number: float) -> str:
    """Bytes: 3.21 GB. Decimal, as disks and accelerators are sold."""
    text = count(number)
    return f"{text[:-1]} {text[-1]}B" if text[-1].isalpha() else f"{text} B"


def duration(seconds: float) -> str:
    """Two units at most: 45 s, 4 m 12 s, 3 h 07 m, 2 d 04 h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def printable(text: str) -> str:
    """The same with control characters spelled out: a file's name must not steer a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _three(number: float) -> str:
    digits = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{digits}f}"
