"""The pages for people: `/` in a browser, `/docs` and `/redoc`. Static files; nothing here is computed.

They come with the service, so they work without internet, and every address in them is relative, so they work
under a proxy's sub-path. What the page at `/` knows, it asks of the same API as everybody: `static/main.js`.
"""

from __future__ import annotations

from os import PathLike, stat_result
from pathlib import Path

from fastapi import APIRouter, FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

STATIC = Path(__file__).parent / "static"

router = APIRouter(include_in_schema=False)

_HEADERS = {
    "Cache-Control": "no-cache",  # asked for again, by its ETag: after an update nobody has half of each
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_FROM_HERE = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_POLICY = (
    f"{_FROM_HERE}; style-src 'self'; img-src 'self' data:; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
# Swagger UI and ReDoc write styles into the page, and ReDoc searches in a worker that it makes from a blob.
_DOCS_POLICY = f"{_FROM_HERE}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; worker-src blob:"


def is_page(path: str, accept: bytes) -> bool:
    """Whether a request is for a page or its files, which hold no secret and are read without a key.

    Args:
        path: of the request.
        accept: its Accept header; browsers name HTML, programs do not.
    """
    return path.startswith("/page/") or (path == "/" and b"text/html" in accept)


def page(name: str = "index.html", policy: str = _PAGE_POLICY) -> Response:
    """One of the pages, with what it may load and run."""
    headers = {**_HEADERS, "Content-Security-Policy": policy, "Vary": "Accept"}
    return FileResponse(STATIC / name, headers=headers)


@router.get("/docs")
async def docs() -> Response:
    """The API's description by Swagger UI, where requests can be tried."""
    return page("docs.html", _DOCS_POLICY)


@router.get("/redoc")
async def redoc() -> Response:
    """The API's description by ReDoc."""
    return page("redoc.html", _DOCS_POLICY)


class _Files(StaticFiles):
    """Static files with our headers."""

    def file_response(
        self, full_path: str | PathLike[str], stat_result: stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """As the library's, and the headers."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(_HEADERS)
        return response


def mount(app: FastAPI) -> None:
    """Serve the pages and their files."""
    app.include_router(router)
    app.mount("/page/vendor", _Files(packages=[("fastapi_offline", "static")]))  # Swagger UI and ReDoc
    app.mount("/page", _Files(directory=STATIC))
