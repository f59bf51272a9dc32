"""Who may ask the page's server what: the rules that each request must pass, and the headers of each answer.

The server answers on this machine, where other people's programs and every web page in the browser can reach it. So it
answers only those who have its secret (a link, then a cookie), only under names that cannot have been pointed at it from
outside (DNS rebinding), and never a request that another site has made. It has nothing but GET, and changes nothing.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    # pictures of patients stay out of the browser's cache on disk
    "Cache-Control": "no-store",
}
"""Headers of every answer: nothing from elsewhere, nothing inline, in no frame, and kept nowhere."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered: an HTTP status and a line for a person."""

    status: int
    reason: str


def host_is_ours(host: str, names: frozenset[str]) -> bool:
    """Whether a Host header names this server: an address in digits, localhost, or one of this machine's names.

    A name that somebody else points at this machine is none of these. The port does not matter: a tunnel has its own.

    >>> [host_is_ours(host, frozenset({"node7"})) for host in ("127.0.0.1:8765", "[::1]:80", "node7", "evil.example")]
    [True, True, True, False]
    """
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    if not name:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name in names
    return True


def own_names() -> frozenset[str]:
    """The names that this machine has for itself."""
    return frozenset(name.lower() for name in (socket.gethostname(), socket.getfqdn()) if name)


def refusal(
    *, host: str, names: frozenset[str], site: str | None, given: str | None, secret: str, is_page: bool
) -> Refusal | None:
    """Why a request is refused; None when it may be answered.

    ``site``: its Sec-Fetch-Site header; ``given``: the secret that it brings, by link or cookie; ``is_page``: it asks for
    the page itself, which a link from elsewhere may.
    """
    if not host_is_ours(host, names):
        return Refusal(403, "this server does not go by that name; use the link that lumid explore printed")
    if site in ("cross-site", "same-site") and not is_page:
        return Refusal(403, "another site asked for this")
    if given is None or not hmac.compare_digest(given.encode(), secret.encode()):
        return Refusal(403, "open the whole link that lumid explore printed: it holds the secret of this run")
    return None
