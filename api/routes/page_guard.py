"""Keeps pages to themselves: what they may load, and a token for what changes something.

Foreign hosts and origins are refused before any route, by `api.access.browsers`. What is here
holds beside it: a page from elsewhere cannot read our cookie, so it cannot repeat it in a header.
"""

from __future__ import annotations

from hmac import compare_digest
from secrets import token_urlsafe

from flask import Response, request

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
    token = request.cookies.get(PAGE_COOKIE) or token_urlsafe(PAGE_TOKEN_BYTES)
    response = Response(html, mimetype="text/html")
    response.headers["Content-Security-Policy"] = PAGES_POLICY
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers["Cache-Control"] = "no-store"
    response.set_cookie(PAGE_COOKIE, token, samesite="Strict")
    return response


def check_page() -> None:
    """Raise ForeignPage unless a page of ours asks: it says the cookie in a header too."""
    cookie, said = request.cookies.get(PAGE_COOKIE, ""), request.headers.get(PAGE_HEADER, "")
    if not cookie or not compare_digest(cookie.encode(), said.encode()):
        raise ForeignPage(
            f"only pages of this server may ask for this: the header {PAGE_HEADER} must say the "
            f"cookie {PAGE_COOKIE}"
        )
