"""Errors on the wire: one shape for the page's routes and the API, that of the OpenAI API."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from qwen3vl_webui.errors import UserError


def error_object(status: int, sentence: str, code: str, param: str | None = None) -> dict[str, Any]:
    match status:
        case 401:
            kind = "authentication_error"
        case 429:
            kind = "rate_limit_error"
        case _:
            kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": sentence, "type": kind, "param": param, "code": code}}


def refuse(
    status: int, sentence: str, code: str, *, param: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    return JSONResponse(error_object(status, sentence, code, param), status, headers)


def answer_to(error: UserError) -> JSONResponse:
    headers = {"Retry-After": "5"} if error.status in {429, 503} else None
    return refuse(error.status, error.sentence, error.code, param=error.param, headers=headers)


class RefusingRoute(APIRoute):
    """A route whose errors are sentences; give it to a router as `route_class`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def refusing(request: Request) -> Response:
            try:
                return await handler(request)
            except UserError as error:
                return answer_to(error)
            except RequestValidationError as error:
                first = error.errors()[0]
                param = ".".join(str(step) for step in first["loc"][1:])
                return refuse(400, f"{param}: {first['msg']}.", "invalid_request", param=param)
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it

        return refusing
