"""The application: routes of OpenAI's API, and what stands around them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

import isthmus
from isthmus.errors import IsthmusError
from isthmus.generation.server import ServingEngine
from isthmus.media.fetch import Fetcher
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.vlm import VisionLanguageModel
from isthmus.reasoning.live import AnswerStream
from isthmus.serving.admission import Admission, ClientGone
from isthmus.serving.bodies import M, parsed
from isthmus.serving.completions import Service, make_service
from isthmus.serving.dual import DualService
from isthmus.serving.refusals import Refusal, refusal_of
from isthmus.serving.replies import streamed, whole
from isthmus.serving.schemas import ChatRequest, ClassifyRequest, EmbeddingRequest, ErrorBody
from isthmus.serving.settings import ServerSettings

log = logging.getLogger("isthmus.serving")

_BODIES = (ChatRequest, EmbeddingRequest, ClassifyRequest)
_T = TypeVar("_T")


def create_app(
    model: VisionLanguageModel,
    *,
    dual_encoder: DualEncoder | None = None,
    settings: ServerSettings | None = None,
    engine: ServingEngine | None = None,
    fetcher: Fetcher | None = None,
) -> FastAPI:
    """An OpenAI-compatible server of a model.

    Args:
        model: Answers `/v1/chat/completions`.
        dual_encoder: Answers `/v1/embeddings` and `/v1/classify`; None leaves them unanswered.
        settings: Limits, key and names.
        engine: Of the model, where another part of the program uses it too; it is left open at
            the end. None makes one.
        fetcher: Fetches images by address, in place of what the settings say.

    Returns:
        The application, to be run by any ASGI server; setting `state.closing`, an event, makes it
        refuse what is new, and its end closes the engine.

    Raises:
        ConfigError: If the settings' template is unknown, or needs what the tokenizer lacks.

    Example:
        >>> import isthmus as im
        >>> model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
        >>> create_app(model).title
        'Isthmus'
    """
    settings = settings or ServerSettings()
    own = engine is None
    service = make_service(model, settings, engine=engine, fetcher=fetcher)
    engine, metrics, reader = service.engine, service.metrics, service.images
    dual = None if dual_encoder is None else DualService(dual_encoder, reader, settings)
    metrics.watch(engine)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        _tell_how_rows_run(engine)
        yield
        app.state.closing.set()
        if own:
            await asyncio.to_thread(engine.close, drain=True, timeout=settings.grace)
        reader.close()
        if dual is not None:
            dual.close()

    app = FastAPI(
        title="Isthmus",
        version=isthmus.__version__,
        lifespan=lifespan,
        docs_url=None,  # both pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.engine = engine
    app.state.metrics = metrics
    _add_routes(app, service, dual)
    _describe(app)
    app.add_exception_handler(HTTPException, _unrouted)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(IsthmusError, _refused)

    app.state.closing = asyncio.Event()
    app.add_middleware(Admission, settings=settings, metrics=metrics, closing=app.state.closing)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    return app


def _add_routes(app: FastAPI, service: Service, dual: DualService | None) -> None:
    settings = service.settings
    started = int(time.time())
    most = settings.timeout + settings.grace
    names = [settings.model_name] + ([settings.dual_encoder_name] if dual else [])

    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": "isthmus"}

    @app.post("/v1/chat/completions", **_documented(ChatRequest, stream=True))
    async def chat_completions(request: Request) -> Response:
        """The next message of a conversation."""
        asked = await _parsed(request, ChatRequest)
        if not asked.stream:
            return JSONResponse(await _unless_gone(request, _answer(service, asked), most))
        choices, events = await _unless_gone(request, _begin(service, asked), most)
        return _Events(events, choices)

    @app.get("/v1/models", **_documented())
    async def models() -> Any:
        """The models that are served."""
        return {"object": "list", "data": [described(name) for name in names]}

    @app.get("/v1/models/{name:path}", **_documented())
    async def model(name: str) -> Any:
        """One of them."""
        if name not in names:
            raise Refusal(
                404,
                f"there is no such model here: expected one of {', '.join(names)}",
                "model_not_found",
                "model",
            )
        return described(name)

    @app.post("/v1/embeddings", **_documented(EmbeddingRequest))
    async def embeddings(request: Request) -> Any:
        """The vectors of texts, and of images as data URIs."""
        asked = await _parsed(request, EmbeddingRequest)
        return JSONResponse(await _unless_gone(request, _dual(dual).embed(asked), most))

    @app.post("/v1/classify", **_documented(ClassifyRequest))
    async def classify(request: Request) -> Any:
        """The labels of images, whatever labels are asked for."""
        asked = await _parsed(request, ClassifyRequest)
        return JSONResponse(await _unless_gone(request, _dual(dual).classify(asked), most))

    @app.get("/health", **_documented())
    async def health() -> Any:
        """Whether the server takes requests, and how it decodes them; needs no key."""
        if not service.engine.is_alive:
            raise Refusal(503, "the engine has stopped: start the server anew", "engine_stopped")
        together = service.engine.statistics().rows_together
        return {"status": "ok", "rows_together": together}

    @app.get("/metrics", **_documented(media="text/plain"))
    async def prometheus() -> Response:
        """What Prometheus reads."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _tell_how_rows_run(engine: ServingEngine) -> None:
    """Logs whether rows of different requests are decoded together; a warning if they are not."""
    together = engine.statistics().rows_together
    language = engine.model.language
    log.log(
        logging.INFO if together else logging.WARNING,
        "%s in %s on %s: rows are decoded %s",
        type(language.model).__name__,
        language.computes_in,
        engine.model.device,
        "together, in one pass"
        if together
        else "one by one, since the structure of this language model allows no other way",
    )


def _dual(found: DualService | None) -> DualService:
    if found is None:
        raise Refusal(
            404,
            "this server has no dual encoder: start it with --dual-encoder tiny-clip (or another)",
            "model_not_found",
            "model",
        )
    return found


# --- A request's body ------------------------------------------------------------------------


async def _parsed(request: Request, schema: type[M]) -> M:
    """The body as its schema has it, parsed in a thread: it may be large.

    Raises:
        Refusal: 415 if it is no JSON by its own account, 400 if it does not fit.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A page of the web can send other kinds without asking first
        raise Refusal(
            415, "expected the header Content-Type: application/json", "unsupported_media_type"
        )
    body = await request.body()
    return await asyncio.to_thread(parsed, schema, body)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, _T], most: float) -> _T:
    """What the work gives within so many seconds; it ends when the client leaves.

    Raises:
        ClientGone: If that happens first.
        Refusal: 503 if time runs out.
    """
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_gone(request))
    try:
        first = asyncio.FIRST_COMPLETED
        done, _ = await asyncio.wait({task, watch}, timeout=most, return_when=first)
        if (
            not done
        ):  # requests have deadlines of their own; this is for what has failed to keep one
            raise Refusal(503, f"no answer within {most:.0f} s: come back later", "timeout")
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(BaseException):
                await task


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _answer(service: Service, asked: ChatRequest) -> dict[str, Any]:
    choices = await service.choices(asked)
    try:
        return await whole(asked, choices, service.settings.model_name)
    finally:
        for choice in choices:
            choice.cancel()


async def _begin(
    service: Service, asked: ChatRequest
) -> tuple[list[AnswerStream], AsyncIterator[bytes]]:
    """A stream whose first event is there."""
    choices = await service.choices(asked)
    try:
        events = streamed(asked, choices, service.settings.model_name)
        first = await anext(events)
    except BaseException:
        for choice in choices:
            choice.cancel()
        raise

    async def all_of_it() -> AsyncIterator[bytes]:
        yield first
        async for event in events:
            yield event

    return choices, all_of_it()


class _Events(StreamingResponse):
    """Server-sent events; whichever way they end, nothing goes on being generated."""

    def __init__(self, events: AsyncIterator[bytes], choices: Sequence[AnswerStream]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.choices = choices

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            for choice in self.choices:
                choice.cancel()


# --- Errors and their description ------------------------------------------------------------


async def _refused(request: Request, error: Exception) -> Response:
    refusal = refusal_of(error)
    return JSONResponse(refusal.body, refusal.status, headers=refusal.headers)


async def _unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = {404: "there is no such route", 405: "the route takes another method"}
    codes = {404: "not_found", 405: "method_not_allowed"}
    status = error.status_code
    refusal = Refusal(status, told.get(status, "the request cannot be read"), codes.get(status))
    return JSONResponse(refusal.body, status, headers=error.headers)


def _documented(
    body: type[BaseModel] | None = None,
    *,
    stream: bool = False,
    media: str = "application/json",
) -> dict[str, Any]:
    """What OpenAPI says of a route: its body, and that every error has one form."""
    failed = {"model": ErrorBody, "description": "An error in OpenAI's form."}
    ok: dict[str, Any] = {"description": "The answer.", "content": {media: {}}}
    if stream:
        ok["content"]["text/event-stream"] = {}
    codes = (400, 401, 404, 405, 408, 413, 415, 422, 429, 500, 503)
    told: dict[str, Any] = {
        "responses": {200: ok, **dict.fromkeys(codes, failed)},
        "response_model": None,
    }
    if body is not None:
        schema = {"$ref": f"#/components/schemas/{body.__name__}"}
        told["openapi_extra"] = {
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}
        }
    return told


def _describe(app: FastAPI) -> None:
    """Puts the bodies' schemas, which are parsed outside FastAPI, into its OpenAPI."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = made()
            _, found = models_json_schema(
                [(body, "validation") for body in _BODIES],
                ref_template="#/components/schemas/{model}",
            )
            components = schema.setdefault("components", {})
            components.setdefault("schemas", {}).update(found["$defs"])
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"key": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
