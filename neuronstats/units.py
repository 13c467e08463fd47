"""Numbers, durations and bytes as people read them."""


def duration(seconds: float) -> str:
    """Write a duration: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def counted(number: int, noun: str) -> str:
    """Write a number with its noun: 1 layer, 2 layers."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def short(number: float) -> str:
    """Write a number with 3 significant digits and a letter: 1.23M."""
    for letter in ("", "k", "M", "G", "T"):
        if abs(number) < 999.5 or letter == "T":
            return f"{number:.3g}{letter}"
        number /= 1000
    raise AssertionError


def size(number: float) -> str:
    """Write a number of bytes for people: 3 significant digits, decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(number) < 999.5 or unit == "TB":
            return f"{number:.3g} {unit}"
        number /= 1000
    raise AssertionError
