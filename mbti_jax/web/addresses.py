"""Network addresses: whom a request comes from, and which hosts it may name.

One address stands for one client. That is the best that can be known without accounts: session ids and
cookies are thrown away by whoever wants more than their share. Clients behind one router or proxy count
as one. The machine's own address says nothing, since a proxy on it may pass on requests of many: there
is no share for it.
"""

import ipaddress
import re

LOOPBACK = "loopback"
# host, [IPv6], each perhaps with a port.
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::([0-9]{1,5}))?", re.IGNORECASE)
# An IPv6 network of one subscriber.
_SUBSCRIBER_BITS = 64


def client_of(host: str) -> str:
    """Whom an address belongs to: itself, its IPv6 network, or `LOOPBACK`."""
    address = _ip(host)
    if address is None:
        return host
    if address.is_loopback:
        return LOOPBACK
    if address.version == 6:
        return str(ipaddress.ip_network((address, _SUBSCRIBER_BITS), strict=False))
    return str(address)


def share(most: int, client: str) -> int:
    """How many of `most` places one client may take: half of them, and all on the own machine."""
    return most if client == LOOPBACK else max(1, most // 2)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone, by its address or as `localhost`."""
    address = _ip(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def is_address(host: str) -> bool:
    """Whether a host is given by its number. No other site can have such a name point somewhere else."""
    return _ip(host) is not None


def is_host(text: str) -> bool:
    """Whether a text is a host without a port."""
    match = _HOST.fullmatch(text)
    return match is not None and match[2] is None


def host_and_port(text: str, default: int | None = None) -> tuple[str, int | None]:
    """The parts of a Host header, in lower case, IPv6 without its brackets.

    Raises:
        ValueError: it is not one host.
    """
    match = _HOST.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a host")
    return match[1].strip("[]").lower(), int(match[2]) if match[2] else default


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        # A scope, as in fe80::1%eth0, says which network card is meant.
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
