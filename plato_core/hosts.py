"""What a host's name or address tells of where it is."""

import ipaddress

_PRIVATE_NAMES = (".local", ".internal", ".lan", ".home", ".corp", ".intranet")


def is_loopback(host: str) -> bool:
    """Say whether a host is whoever asks for it."""
    try:
        return ipaddress.ip_address(host).is_loopback or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host in ("", "localhost") or host.endswith(".localhost")


def is_private(host: str) -> bool:
    """Say whether only a network of its own knows a host, as far as its name or address tells."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith(_PRIVATE_NAMES)
