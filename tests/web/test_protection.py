"""The layer around every route: who is let in, who owns what, which headers go out."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from qwen3vl_webui.settings import Settings
from qwen3vl_webui.web.protection import FAILED_LOGINS, owner_of, protect
from tests.served import served


def app_with(settings: Settings) -> FastAPI:
    app = FastAPI()

    @app.api_route("/whoami", methods=["GET", "POST"])
    async def whoami(request: Request) -> dict[str, str]:
        return {"owner": owner_of(request)}

    @app.get("/v1/whoami")
    async def api_whoami(request: Request) -> dict[str, str]:
        return {"owner": owner_of(request)}

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {}

    @app.get("/slow")
    async def slow() -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            yield "first\n"
            await asyncio.sleep(5)
            yield "second\n"

        return StreamingResponse(lines())

    @app.websocket("/socket")
    async def socket(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(owner_of(socket))
        await socket.close()

    return protect(app, settings)


def client_of(base_url: str = "http://localhost:7860", **settings: Any) -> TestClient:
    return TestClient(app_with(Settings(**settings)), base_url=base_url)


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_without_settings_everything_belongs_to_local() -> None:
    client = client_of()
    response = client.get("/whoami")
    assert response.json() == {"owner": "local"} and "set-cookie" not in response.headers


def test_every_response_carries_the_headers() -> None:
    client = client_of(auth=("me", "secret"))
    for path in ("/whoami", "/healthz", "/missing", "/v1/whoami"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "object-src 'none'" in headers["content-security-policy"]
        assert headers["content-security-policy"].endswith("frame-ancestors 'self'")


def test_a_space_may_be_framed_by_its_site_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "me/space")
    response = client_of("https://x.hf.space", host="0.0.0.0", open=True).get("/whoami")
    assert response.headers["content-security-policy"].endswith("frame-ancestors 'self' https://huggingface.co")
    assert "SameSite=None; Secure; Partitioned" in response.headers["set-cookie"]


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1:7860", "[::1]:7860", "localhost", "qwen.localhost"])
def test_this_machine_reaches_a_local_server(host: str) -> None:
    assert client_of().get("/whoami", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example:7860", "localhost.evil.example", "", "192.168.1.9:7860"])
def test_a_rebound_name_does_not_reach_a_local_server(host: str) -> None:
    response = client_of().get("/whoami", headers={"Host": host})
    assert response.status_code == 421 and "--auth" in response.json()["error"]["message"]
    assert client_of(open=True).get("/whoami", headers={"Host": host}).status_code == 200
    assert client_of(api_key="k").get("/whoami", headers={"Host": host, **bearer("k")}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://localhost:7860"}, 200),
        ({"Origin": "http://LOCALHOST:7860"}, 200),
        ({"Origin": "http://localhost:3000"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://chat.example", "X-Forwarded-Host": "chat.example"}, 200),
        ({"Origin": "https://evil.example", "X-Forwarded-Host": "chat.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_another_sites_page_cannot_change_anything(headers: dict[str, str], status: int) -> None:
    client = client_of()
    assert client.post("/whoami", headers=headers).status_code == status
    assert client.get("/whoami", headers=headers).status_code == 200


def test_auth_asks_browsers_and_lets_the_right_ones_in() -> None:
    client = client_of(host="0.0.0.0", auth=("m\u00fcller", "se:cret"))
    refused = client.get("/whoami")
    assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic")
    assert client.get("/whoami", headers=basic("m\u00fcller", "se:cret")).json() == {"owner": "local"}
    for wrong in (
        basic("m\u00fcller", "x"),
        basic("x", "se:cret"),
        basic("", ""),
        bearer("se:cret"),
        {"Authorization": "Basic ?"},
    ):
        assert client.get("/whoami", headers=wrong).status_code == 401
    assert client.get("/healthz").status_code == 200


def test_a_key_opens_the_api_and_is_the_pages_password() -> None:
    client = client_of(api_key="sesame")
    refused = client.get("/v1/whoami")
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "invalid_api_key" and refused.headers["www-authenticate"] == "Bearer"
    assert client.get("/whoami").headers["www-authenticate"].startswith("Basic")
    assert client.get("/v1/whoami", headers=bearer("sesame")).json() == {"owner": "local"}
    assert client.get("/whoami", headers=basic("anybody", "sesame")).json() == {"owner": "local"}
    assert client.get("/v1/whoami", headers=bearer("sesam")).status_code == 401


def test_with_both_the_key_is_no_password_and_all_is_one_persons() -> None:
    client = client_of(api_key="sesame", auth=("me", "secret"))
    assert client.get("/v1/whoami", headers=bearer("sesame")).json() == {"owner": "local"}
    assert client.get("/whoami", headers=basic("me", "secret")).json() == {"owner": "local"}
    assert client.get("/whoami", headers=basic("me", "sesame")).status_code == 401


def test_programs_may_send_the_login_as_their_key() -> None:
    client = client_of(auth=("me", "secret"))
    assert client.get("/v1/whoami", headers=bearer("me:secret")).json() == {"owner": "local"}


def test_who_guesses_waits_and_who_is_in_stays_in() -> None:
    client = client_of(auth=("me", "secret"))
    assert client.get("/whoami", headers=basic("me", "secret")).status_code == 200
    for number in range(FAILED_LOGINS):
        assert client.get("/whoami", headers=basic("me", str(number))).status_code == 401
    guessed = client.get("/whoami", headers=bearer("me:secret"))
    assert guessed.status_code == 429 and int(guessed.headers["retry-after"]) > 0
    assert client.get("/whoami", headers=basic("me", "secret")).status_code == 200


def test_after_a_minute_a_login_works_again(monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(auth=("me", "secret"))
    for _ in range(FAILED_LOGINS):
        client.get("/whoami", headers=basic("me", "x"))
    assert client.get("/whoami", headers=basic("me", "secret")).status_code == 429
    later = time.monotonic() + 61
    monkeypatch.setattr("qwen3vl_webui.web.protection.time.monotonic", lambda: later)
    assert client.get("/whoami", headers=basic("me", "secret")).status_code == 200


def test_visitors_of_an_open_server_are_told_apart_by_a_cookie() -> None:
    app = app_with(Settings(host="0.0.0.0", open=True))
    one, two = (TestClient(app, base_url="http://chat.example") for _ in range(2))
    response = one.get("/whoami")
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and "Secure" not in cookie
    owner = response.json()["owner"]
    again = one.get("/whoami")
    assert again.json()["owner"] == owner and "set-cookie" not in again.headers
    assert two.get("/whoami").json()["owner"] != owner
    assert response.cookies["qwen3vl_visitor"] not in owner  # the store never holds what opens the door
    secure = TestClient(app, base_url="https://chat.example").get("/whoami")
    assert "; Secure" in secure.headers["set-cookie"]


def test_a_malformed_cookie_is_replaced() -> None:
    client = client_of("http://chat.example", open=True)
    for cookie in ("qwen3vl_visitor=short", "qwen3vl_visitor=" + "x" * 500, "\x7f=;;==", "qwen3vl_visitor=local"):
        assert "set-cookie" in client.get("/whoami", headers={"Cookie": cookie}).headers


def test_programs_on_an_open_server_are_told_apart_by_their_key() -> None:
    client = client_of("http://chat.example", open=True)
    owners = {client.get("/v1/whoami", headers=bearer(key)).json()["owner"] for key in ("a", "b", "a")}
    assert len(owners) == 2 and all(owner.startswith("key-") for owner in owners)


def test_nobody_names_the_owner_but_this_layer() -> None:
    forged = {"X-Qwen3VL-Owner": "somebody"}
    assert client_of().get("/whoami", headers=forged).json() == {"owner": "local"}
    assert (
        client_of("http://x.example", open=True).get("/whoami", headers=forged).json()["owner"].startswith("visitor-")
    )


def test_web_sockets_pass_and_are_guarded() -> None:
    with client_of().websocket_connect("ws://localhost:7860/socket") as socket:
        assert socket.receive_text() == "local"
    for client, headers in (
        (client_of(), {"Origin": "http://evil.example"}),
        (client_of(auth=("me", "secret")), {}),
    ):
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect("ws://localhost:7860/socket", headers=headers),
        ):
            pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(app_with(Settings())) as address:
        yield address


def test_streams_are_not_held_back(address: str) -> None:
    started = time.monotonic()
    with httpx.stream("GET", f"{address}/slow") as response:
        assert next(response.iter_text()) == "first\n"
        assert time.monotonic() - started < 4


def test_the_page_reads_the_same_owner_through_gradio() -> None:
    gradio = pytest.importorskip("gradio")
    request = gradio.Request(request=Request({"type": "http", "headers": [(b"x-qwen3vl-owner", b"visitor-1")]}))
    assert owner_of(request) == "visitor-1"
    assert owner_of(gradio.Request(headers={"x-qwen3vl-owner": "me"})) == "me"
