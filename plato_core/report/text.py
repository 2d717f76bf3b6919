"""Numbers, durations and foreign text as people read them."""

import math
import re
from collections.abc import Iterable

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_USER_INFO = re.compile(  # scheme://user:password@, not host:port/path@more
    r"(?P<scheme>[A-Za-z][\w+.-]*://)(?P<user>[^\s/@:]*)"
    r"(?P<password>:(?!\d+(?:[/?#\s]|$))(?:[^\s/]*(?=@)|[^\s@]*(?=@)))?@"
)
_SECRET_PARAMETER = re.compile(r"(?i)([?&][^=&\s]*(?:password|passwd|pwd|token|secret|key)[^=&\s]*=)[^&#\s]*")


def number(value: object) -> str:
    """Return a value with at most four significant digits, integers whole: `0.0012`, `5e-05`, `16384`."""
    if value is None:
        return "-"
    if isinstance(value, bool | int | str):
        return str(value)
    if isinstance(value, float):
        if math.isfinite(value) and 1000 <= abs(value) < 1e6:
            return f"{value:.0f}"
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(number(item) for item in value) + "]"
    return str(value)


def counted(number_of: int, noun: str) -> str:
    """Return a number of things: `1 trial`, `4 trials`."""
    return f"{number_of} {noun}{'' if number_of == 1 else 's'}"


def measure(value: float | None) -> str:
    """Return a return or a metric with one decimal where it is large: `312.4`, `-1.25`, `0.0123`."""
    if value is None:
        return "-"
    if 10 <= abs(value) < 1e6:
        return f"{value:.1f}"
    return f"{value:.3g}"


def count(value: int) -> str:
    """Return a large count in at most five characters: `950`, `12.0k`, `1.25M`."""
    for divisor, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= divisor:
            scaled = value / divisor
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{letter}"
    return str(value)


def duration(seconds: float) -> str:
    """Return a time span in its two largest units: `45 s`, `1 min 03 s`, `2 h 05 min`."""
    whole = int(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest:02d} s" if rest else f"{minutes} min"
    hours, rest = divmod(whole // 60, 60)
    return f"{hours} h {rest:02d} min" if rest else f"{hours} h"


def plain(text: str) -> str:
    """Return foreign text as one line without escape sequences, control characters and passwords in URIs."""
    return hide_passwords(_CONTROLS.sub(" ", _ESCAPES.sub("", text)).strip())


def hide_passwords(text: str) -> str:
    """Return `text` with `***` for the passwords of the URIs in it.

    Of a web address the user's name goes too: a token often stands there.
    """

    def hidden(match: re.Match[str]) -> str:
        scheme, user, password = match["scheme"], match["user"], match["password"]
        if scheme.startswith("http"):
            return f"{scheme}***@"
        return f"{scheme}{user}:***@" if password else match[0]

    return _SECRET_PARAMETER.sub(r"\1***", _USER_INFO.sub(hidden, text))


def last_line(text: str, longest: int = 300) -> str:
    """Return the line of an error's text that says what went wrong: the last one that is not blank."""
    lines: Iterable[str] = (plain(line) for line in reversed(text.splitlines()))
    found = next((line for line in lines if line), "no message")
    return cut(found, longest)


def cut(text: str, longest: int) -> str:
    """Return a text of so many characters at most; where it was longer, with dots at its end."""
    return text if len(text) <= longest else text[: longest - 3] + "..."
