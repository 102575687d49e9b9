"""The web application: a page, and REST under /v1.

  GET  /             the page
  GET  /v1/model     which model judges
  POST /v1/judge     a photograph in, its verdict out
  POST /v1/explain   the same, with pictures of where the evidence is

A photograph is the body of the request, or the part `file` of a form. It stays
in memory and is gone when the answer is sent; nothing is written to disk.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
import contextlib
import dataclasses
import importlib.resources
import io
import json
import math
import secrets
from typing import TypeAlias

import anyio.to_thread
import fastapi
from fastapi import responses
import numpy as np
from PIL import Image
from starlette import formparsers
from starlette.middleware.trustedhost import TrustedHostMiddleware

from iqa_jax import machine
from iqa_jax.aliases import Record
from iqa_jax.explain import overlay
from iqa_jax.explain.explanation import Explanation
from iqa_jax.grader import Grader
from iqa_jax.judging import advice
from iqa_jax.judging.verdict import Verdict
from iqa_jax.photograph import images, photo
from iqa_jax.photograph.photo import Photo
from iqa_jax.photograph.placement import Placement
from iqa_jax.serve.batching import Batcher, Full

_SHOWN = 1024  # px, the longer side of the pictures that are sent back
_BODY = {
  'requestBody': {
    'required': True,
    'content': {
      'image/*': {'schema': {'type': 'string', 'format': 'binary'}},
      'application/dicom': {'schema': {'type': 'string', 'format': 'binary'}},
      'multipart/form-data': {
        'schema': {
          'type': 'object',
          'properties': {'file': {'type': 'string', 'format': 'binary'}},
          'required': ['file'],
        }
      },
    },
  }
}


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a server takes on.

  Attributes:
    upload: bytes of a photograph's file.
    waiting: requests under way; more are told to come back (503).
    decoded: photographs that are held decoded at the same time.
  """

  upload: int = 32 << 20
  waiting: int = 64
  decoded: int = 16


def create(
  grader: Grader,
  *,
  name: str,
  token: str = '',
  hosts: Sequence[str] = (),
  limits: Limits = Limits(),
) -> fastapi.FastAPI:
  """Returns the application.

  Args:
    grader: who judges.
    name: how the page calls the model.
    token: what requests must carry ('Authorization: Bearer TOKEN'); '' for
      none, which is for a server that only this machine reaches.
    hosts: names that the server may be called by; () for any. A page of
      another site can't reach a server that refuses its name.
    limits: what it takes on.
  """
  server = _Server(grader, name, limits)
  app = fastapi.FastAPI(
    title='iqa_jax',
    description='Quality of retinal fundus photographs. Research software, '
    'not a medical device.',
    lifespan=server.running,
    # Their pages would load scripts from elsewhere.
    docs_url=None,
    redoc_url=None,
  )
  if hosts:
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))

  def allowed(request: fastapi.Request) -> None:
    given = request.headers.get('authorization', '')
    wanted = f'Bearer {token}'
    if token and not secrets.compare_digest(given.encode(), wanted.encode()):
      raise fastapi.HTTPException(401, 'this server wants its token')

  checked = [fastapi.Depends(allowed)]

  app.get('/', include_in_schema=False)(_page)

  @app.get('/v1/model', dependencies=checked)
  def model() -> Record:
    return server.facts()

  @app.post('/v1/judge', dependencies=checked, openapi_extra=_BODY)
  async def judge(
    request: fastapi.Request, name: str = ''
  ) -> responses.JSONResponse:
    return await server.answer(request, name, server.judge)

  @app.post('/v1/explain', dependencies=checked, openapi_extra=_BODY)
  async def explain(
    request: fastapi.Request, name: str = ''
  ) -> responses.JSONResponse:
    return await server.answer(request, name, server.explain)

  return app


_Queue: TypeAlias = Batcher[Photo, Record] | Batcher[Photo, Explanation]


class _Server:
  """The grader behind queues, and the limits in front of it."""

  def __init__(self, grader: Grader, name: str, limits: Limits):
    self._grader = grader
    self._name = name
    self._limits = limits
    self._under_way = 0
    self._decoded = asyncio.Semaphore(limits.decoded)
    self._threads = anyio.CapacityLimiter(machine.cpu_count())
    size = grader.batch_size
    self.judge: Batcher[Photo, Record] = Batcher(
      lambda photos: list(map(_judged, grader.judge(photos))),
      batch_size=size,
      limit=limits.waiting,
    )
    self.explain: Batcher[Photo, Explanation] = Batcher(
      grader.explain, batch_size=size, limit=limits.waiting
    )

  @contextlib.asynccontextmanager
  async def running(self, app: fastapi.FastAPI) -> AsyncIterator[None]:
    """Keeps the queues going while the application runs."""
    del app
    async with self.judge, self.explain:
      yield

  def facts(self) -> Record:
    """Returns what a client must know of the model."""
    return {
      'name': self._name,
      'members': [member.digest for member in self._grader.members],
      'outputs': list(self._grader.outputs),
      'threshold': self._grader.threshold,
      'image_size': self._grader.image_size,
      'runtime': self._grader.runtime,
      'upload_limit': self._limits.upload,
    }

  async def answer(
    self, request: fastapi.Request, name: str, queue: _Queue
  ) -> responses.JSONResponse:
    """Reads the photograph of a request, and says what the grader says."""
    if self._under_way >= self._limits.waiting:
      return _busy()
    self._under_way += 1
    try:
      data, called = await _upload(request, self._limits.upload)
      name = name or called or 'photograph'
      async with self._decoded:
        return await self._graded(data, name, queue)
    except Full:
      return _busy()
    finally:
      self._under_way -= 1

  async def _graded(
    self, data: bytes, name: str, queue: _Queue
  ) -> responses.JSONResponse:
    try:
      photograph = await anyio.to_thread.run_sync(
        self._read, data, name, limiter=self._threads
      )
    except images.ImageError as error:
      verdict = Verdict(name, error.status, error.reason)
      return responses.JSONResponse({'verdict': _plain(verdict.to_dict())})
    found = await queue.submit(photograph)
    if isinstance(found, Explanation):
      found = await anyio.to_thread.run_sync(
        _explained, found, limiter=self._threads
      )
    return responses.JSONResponse(found)

  def _read(self, data: bytes, name: str) -> Photo:
    photograph = photo.read(data, name)
    self._grader.prepare(photograph)  # here, not in the queue's one thread
    return photograph


def _judged(verdict: Verdict) -> Record:
  return {'verdict': _plain(verdict.to_dict())}


def _explained(found: Explanation) -> Record:
  """Returns the verdict with pictures, each a data URL.

  `photograph` is the picture, downsized; `ruler` the same with landmarks and
  distances, where they are known; `maps` are transparent pictures to be laid
  over it.
  """
  scale = min(1.0, _SHOWN / max(found.photo.image.size))
  size = (
    max(1, round(scale * found.photo.width)),
    max(1, round(scale * found.photo.height)),
  )
  picture = found.photo.image.resize(
    size, Image.Resampling.BILINEAR, reducing_gap=2.0
  )
  cause = found.verdict.cause
  answer = {
    'verdict': _plain(found.to_dict()),
    'advice': {
      language: advice.sentence(cause, language)
      for language in advice.LANGUAGES
    },
    'photograph': _url(picture, 'JPEG'),
    'maps': [
      {
        'target': found.target,
        'empty': found.empty,
        'picture': _url(
          _transparent(found, size, found.shown(), found.placement), 'PNG'
        ),
      },
      *(
        {
          'target': name,
          'empty': not cells.max() > 0,
          'picture': _url(_transparent(found, size, cells), 'PNG'),
        }
        for name, cells in found.cells.items()
      ),
    ],
  }
  if np.isfinite(found.landmarks).all():
    found.draw_ruler(picture)
    answer['ruler'] = _url(picture, 'JPEG')
  return answer


def _transparent(
  found: Explanation,
  size: tuple[int, int],
  shown: np.ndarray,
  placement: Placement | None = None,
) -> Image.Image:
  """Returns a map [h, w] of 0 to 1 alone, RGBA of `size`."""
  stretch = np.array(
    [[size[0] / found.photo.width], [size[1] / found.photo.height]]
  )
  look = overlay.Look(placement, opacity=1.0, within=found.inside)
  return overlay.layer(size, shown, found.affine * stretch, found.size, look)


def _url(picture: Image.Image, kind: str) -> str:
  data = io.BytesIO()
  picture.save(data, kind, quality=88)
  text = base64.b64encode(data.getbuffer()).decode()
  return f'data:image/{kind.lower()};base64,{text}'


def _plain(row: Record) -> Record:
  """Returns a row as JSON has it: None for what is not finite."""
  return {
    key: None
    if isinstance(value, float) and not math.isfinite(value)
    else value
    for key, value in row.items()
  }


def _busy() -> responses.JSONResponse:
  return responses.JSONResponse(
    {'detail': 'too many photographs are waiting; try again'},
    503,
    headers={'Retry-After': '1'},
  )


async def _upload(request: fastapi.Request, limit: int) -> tuple[bytes, str]:
  """Returns the photograph's bytes and its name, '' where none is given."""
  too_large = fastapi.HTTPException(
    413, f'a photograph has at most {limit >> 20} MB here'
  )
  # A form has borders and headers of its own.
  allowed = limit + 8192
  if int(request.headers.get('content-length') or 0) > allowed:
    raise too_large

  async def bounded() -> AsyncGenerator[bytes, None]:
    seen = 0
    async for chunk in request.stream():
      seen += len(chunk)
      if seen > allowed:
        raise too_large
      yield chunk

  if not request.headers.get('content-type', '').startswith('multipart/'):
    return b''.join([chunk async for chunk in bounded()]), ''
  parser = formparsers.MultiPartParser(
    request.headers, bounded(), max_files=1, max_fields=4
  )
  parser.spool_max_size = allowed  # nothing goes to the disk
  try:
    form = await parser.parse()
  except formparsers.MultiPartException as error:
    raise fastapi.HTTPException(400, error.message) from error
  file = form.get('file')
  if not isinstance(file, formparsers.UploadFile):
    raise fastapi.HTTPException(400, 'the form has no part `file`')
  return await file.read(), file.filename or ''


_POLICY = (
  "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
  "img-src data: blob:; connect-src 'self'; base-uri 'none'; "
  "form-action 'none'; frame-ancestors 'none'"
)


def _page() -> responses.HTMLResponse:
  folder = importlib.resources.files('iqa_jax') / 'serve'
  texts = json.loads((folder / 'texts.json').read_text(encoding='utf-8'))
  page = (folder / 'page.html').read_text(encoding='utf-8')
  page = page.replace('/*TEXTS*/', json.dumps(texts, ensure_ascii=False))
  return responses.HTMLResponse(
    page, headers={'Content-Security-Policy': _POLICY}
  )
