"""Who may speak to the server and how every response is hardened: one ASGI layer around page, media routes and API.

Who is let in
- `--auth user:password`: the browser asks for it (HTTP Basic); programs send the same, or `user:password` as a bearer.
- `--api-key`: programs send it as a bearer. Without `--auth` the browser asks too, and takes the key as the password of
  any user name. With both, either opens everything.
- neither: only this machine (`local`), or with `--open` everybody, told apart by a cookie.
`/healthz` needs no login.

Who owns what: `owner_of(request)`. Decided here, never by a client: the layer overwrites the header it travels in.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import time
from collections import deque
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen3vl_webui.settings import Settings
from qwen3vl_webui.store.store import LOCAL
from qwen3vl_webui.web.refusals import refuse

OWNER_HEADER = "x-qwen3vl-owner"
COOKIE = "qwen3vl_visitor"
COOKIE_SECONDS = 365 * 24 * 3600
SPACES = "https://huggingface.co"

# Gradio 6.31 and seeking work with this; `unsafe-eval` is what gr.HTML's templates need.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; connect-src 'self' data: blob:; "
    "font-src 'self' data:; frame-src 'self' blob: data:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)

FAILED_LOGINS = 10  # per address and
FAILED_SECONDS = 60.0  # in this time; then every new login from there waits
KNOWN_ADDRESSES = 10_000


def protect(app: FastAPI, settings: Settings) -> FastAPI:
    """Puts the layer around an app, as the last step: what is outside of it is not protected."""
    app.add_middleware(Protection, settings=settings, space=bool(os.environ.get("SPACE_ID")))
    return app


def owner_of(request: Any) -> str:
    """Whose conversations and files a request may see, of a Starlette or Gradio request.

    `local` (this machine, or whoever has the password), or the bearer of an anonymous cookie where the server is open
    to everybody.
    """
    return str(request.headers.get(OWNER_HEADER) or LOCAL)


def is_anonymous(owner: str) -> bool:
    """Whether nobody vouches for this owner: a visitor of a server that is open to everybody."""
    return owner.startswith(("visitor-", "key-"))


class Protection:
    """Pure ASGI, so that streams pass unbuffered."""

    def __init__(self, app: ASGIApp, settings: Settings, space: bool = False) -> None:
        self.app = app
        self.settings = settings
        self.space = space
        self.logins = Logins(settings)
        self.policy = f"{POLICY} {SPACES}" if space else POLICY

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        owner, cookie = self._owner(scope, headers)

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._harden(MutableHeaders(scope=message))
                if cookie:
                    MutableHeaders(scope=message).append("set-cookie", cookie)
            await send(message)

        if refusal is not None:
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008, "reason": "not allowed"})
            return await refusal(scope, receive, hardened)
        kept = [(name, value) for name, value in scope["headers"] if name.lower() != OWNER_HEADER.encode()]
        scope = {**scope, "headers": [*kept, (OWNER_HEADER.encode(), owner.encode())]}
        await self.app(scope, receive, hardened)

    def _harden(self, headers: MutableHeaders) -> None:
        headers["content-security-policy"] = self.policy
        headers["x-content-type-options"] = "nosniff"
        headers["referrer-policy"] = "no-referrer"

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """Why this request goes no further, None when it may."""
        settings = self.settings
        if not (settings.is_protected or settings.open) and not is_this_machine(headers.get("host", ""), settings.host):
            # A foreign name that resolves to this machine: a page elsewhere rebinding its own DNS name.
            sentence = "This server answers to localhost only. Start it with --auth or --open to use another name."
            return refuse(421, sentence, "wrong_host")
        if scope["path"] == "/healthz":
            return None
        if (scope["type"] == "websocket" or scope["method"] not in {"GET", "HEAD", "OPTIONS"}) and is_foreign(headers):
            return refuse(403, "This request came from another site's page.", "foreign_origin")
        if not settings.is_protected:
            return None
        client = scope.get("client")
        return self.logins.refusal(headers.get("authorization", ""), client[0] if client else "", scope["path"])

    def _owner(self, scope: Scope, headers: Headers) -> tuple[str, str]:
        """The owner, and the Set-Cookie value that a new visitor needs (else empty)."""
        if self.settings.is_protected or not self.settings.open:
            return LOCAL, ""  # one person: adding a password later must not hide what they said before
        if scope["path"].startswith("/v1/"):  # programs keep no cookies; each that sends a key of its own stands alone
            return f"key-{digest(headers.get('authorization', ''))}", ""
        token = visitor(headers.get("cookie", ""))
        if token:
            return f"visitor-{digest(token)}", ""
        token = secrets.token_urlsafe(24)
        secure = scope.get("scheme") in {"https", "wss"} or headers.get("x-forwarded-proto", "").startswith("https")
        cookie = f"{COOKIE}={token}; Path=/; Max-Age={COOKIE_SECONDS}; HttpOnly"
        if self.space:  # a Space stands in a frame of another site, where a Lax cookie is not kept
            cookie += "; SameSite=None; Secure; Partitioned"
        else:
            cookie += "; SameSite=Lax" + ("; Secure" if secure else "")
        return f"visitor-{digest(token)}", cookie if scope["path"] != "/healthz" else ""


class Logins:
    """Compares what a client sends with `--auth` and `--api-key`, and slows down who guesses."""

    def __init__(self, settings: Settings) -> None:
        self._auth = settings.auth
        self._key = settings.api_key
        self._failed: dict[str, deque[float]] = {}
        self._accepted: set[str] = set()  # digests: who is in stays in while somebody guesses at the same address

    def refusal(self, authorization: str, address: str, path: str) -> Response | None:
        api = path.startswith("/v1/")
        if authorization:
            if digest(authorization) in self._accepted:
                return None
            if self._waits(address):
                sentence = "Too many wrong logins from your address. Wait a minute, then try again."
                return refuse(429, sentence, "too_many_logins", headers={"Retry-After": str(int(FAILED_SECONDS))})
            if self._is_right(authorization):
                if len(self._accepted) < KNOWN_ADDRESSES:
                    self._accepted.add(digest(authorization))
                self._failed.pop(address, None)
                return None
            self._remember(address)
        if api:
            sentence = "The API key is wrong." if authorization else "Send your API key as `Authorization: Bearer KEY`."
            return refuse(401, sentence, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        challenge = {"WWW-Authenticate": 'Basic realm="Qwen3-VL-WebUI", charset="UTF-8"'}
        return refuse(401, "Log in to open this page.", "unauthorized", headers=challenge)

    def _is_right(self, authorization: str) -> bool:
        scheme, _, value = authorization.partition(" ")
        value = value.strip()
        match scheme.lower():
            case "bearer":
                pair = ":".join(self._auth) if self._auth else None
                return equal(value, self._key) | equal(value, pair)
            case "basic":
                try:
                    user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
                except (binascii.Error, UnicodeDecodeError):
                    return False
                if self._auth:
                    return equal(user, self._auth[0]) & equal(password, self._auth[1])
                return equal(password, self._key)
        return False

    def _waits(self, address: str) -> bool:
        times = self._failed.get(address)
        while times and time.monotonic() - times[0] > FAILED_SECONDS:
            times.popleft()
        return times is not None and len(times) >= FAILED_LOGINS

    def _remember(self, address: str) -> None:
        if len(self._failed) >= KNOWN_ADDRESSES:
            self._failed.pop(next(iter(self._failed)))
        self._failed.setdefault(address, deque(maxlen=FAILED_LOGINS)).append(time.monotonic())


def equal(given: str, right: str | None) -> bool:
    """In constant time."""
    return right is not None and hmac.compare_digest(given.encode("utf-8", "replace"), right.encode("utf-8", "replace"))


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()[:32]


def visitor(cookie_header: str) -> str:
    try:
        morsel = SimpleCookie(cookie_header).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel is not None and re.fullmatch(r"[\w-]{32}", morsel.value) else ""


def is_this_machine(host_header: str, bound: str) -> bool:
    """Whether a Host header names this machine itself, or the address the server is bound to."""
    name = urlsplit(f"//{host_header}").hostname or ""
    return name in {"localhost", "127.0.0.1", "::1", bound} or name.endswith(".localhost")


def is_foreign(headers: Headers) -> bool:
    """Whether a page of another origin made the request. A page cannot forge these headers; programs send none.

    Behind a proxy the public name may come as `X-Forwarded-Host` only; another site's page cannot send that one.
    """
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}
    forwarded = headers.get("x-forwarded-host", "").split(",")[0].strip()
    return urlsplit(origin).netloc.lower() not in {headers.get("host", "").lower(), forwarded.lower()} - {""}
