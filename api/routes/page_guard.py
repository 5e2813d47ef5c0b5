"""Keeps pages to themselves: what they may load, and who may ask in their place.

A page from elsewhere in the same browser can send requests to a Ferry on loopback. It cannot read
our pages, so it has no token; and by a name of its own that leads to loopback (DNS rebinding) it
gets no answer.
"""

from __future__ import annotations

from hmac import compare_digest
from ipaddress import ip_address
from secrets import token_urlsafe
from urllib.parse import urlsplit

from flask import Response, request

from api.routes.flask_side import services
from shared.errors import ForeignPage

PAGE_COOKIE = "ferry_page"
PAGE_HEADER = "X-Ferry-Page"
PAGE_TOKEN_BYTES = 18
PAGES_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def guarded_page(html: str) -> Response:
    """Return a page that loads nothing from elsewhere, with a cookie that only our pages repeat."""
    check_host()
    token = request.cookies.get(PAGE_COOKIE) or token_urlsafe(PAGE_TOKEN_BYTES)
    response = Response(html, mimetype="text/html")
    response.headers["Content-Security-Policy"] = PAGES_POLICY
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cache-Control"] = "no-store"
    response.set_cookie(PAGE_COOKIE, token, samesite="Strict")
    return response


def check_page() -> None:
    """Raise ForeignPage unless a page of ours asks: same origin, and the cookie in a header too."""
    check_host()
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        raise ForeignPage(f"the page of origin {origin!r} may not ask for this, only one of ours")
    cookie, said = request.cookies.get(PAGE_COOKIE, ""), request.headers.get(PAGE_HEADER, "")
    if not cookie or not compare_digest(cookie.encode(), said.encode()):
        raise ForeignPage(
            f"only pages of this server may ask for this: the header {PAGE_HEADER} must say the "
            f"cookie {PAGE_COOKIE}"
        )


def check_host() -> None:
    """Raise ForeignPage for a name that leads to loopback and is not one of its own."""
    host = urlsplit(f"//{request.host}").hostname or ""
    if _is_loopback(services().settings.host) and not _is_loopback(host):
        raise ForeignPage(f"this server is 127.0.0.1 or localhost, and does not answer as {host!r}")


def _is_loopback(host: str) -> bool:
    if host in ("localhost", "") or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
