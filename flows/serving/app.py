"""The application: the page, its API, the OpenAI-style API, and the form of errors."""

from __future__ import annotations

import mimetypes
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from flows import atlas
from flows.serving.access import Access
from flows.serving.completions import completions_api
from flows.serving.compute_queue import ComputeQueue
from flows.serving.guard import Guard
from flows.serving.limits import Refused, error_body
from flows.serving.page_routes import page_api
from flows.serving.specialist_cache import Specialists

PAGE = Path(__file__).parent / "page"
STATIC = PAGE / "static"
# Python before 3.12 calls scripts application/javascript, and a machine's own list may say anything.
mimetypes.add_type("text/javascript", ".js")


def create_app(specialists: Specialists, access: Access, *, max_queue: int = 64) -> FastAPI:
    """The service of one soup.

    Args:
        max_queue: so many requests may wait while another one is computed.
    """
    queue = ComputeQueue(max_waiting=max_queue, seconds=specialists.limits.seconds)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        queue.close()

    # FastAPI's descriptions of the API would be open to everybody, and their pages load scripts from elsewhere.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.queue = queue
    app.add_middleware(Guard, access=access, limits=specialists.limits)
    app.include_router(page_api(specialists, queue))
    app.include_router(completions_api(specialists, queue))
    _add_page(app, access)
    _add_errors(app)
    return app


def _add_page(app: FastAPI, access: Access) -> None:
    @app.get("/")
    async def page(request: Request, token: str | None = None) -> Response:
        right = token is not None and access.is_token(token)
        if not right and not access.is_cookie(request.cookies.get(access.cookie_name, "")):
            return Response((PAGE / "locked.html").read_text("utf-8"), 401, media_type="text/html")
        response = Response((PAGE / "page.html").read_text("utf-8"), media_type="text/html")
        if right:  # the script takes the token out of the address
            response.set_cookie(access.cookie_name, access.cookie_value, httponly=True, samesite="strict")
        return response

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    # These files need no token: nothing in them comes from the soup.
    app.mount("/static", StaticFiles(directory=STATIC, packages=[(atlas.__name__, "shared")]))


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return JSONResponse(error.body(), error.status, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def not_understood(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        if first["type"] in ("json_invalid", "model_attributes_type"):
            message, where = (
                "The body is not a JSON object. Send one, with Content-Type: application/json.",
                "",
            )
        elif first["type"] == "extra_forbidden":
            message = f"{where} is not a parameter of this request; leave it out."
        else:
            message = f"{where or 'The body'}: {first['msg'].removeprefix('Value error, ')}."
        return JSONResponse(error_body(400, message, param=where if where.isascii() and where else None), 400)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        if error.status_code == 404:
            message = (
                f"There is nothing at {request.url.path[:80]}. There are /, /v1/models and /v1/completions."
            )
        return JSONResponse(error_body(error.status_code, message), error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        message = "The service failed at this request; the terminal of `soe serve` says how."
        return JSONResponse(error_body(500, message), 500)
