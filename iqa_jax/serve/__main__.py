"""A local page that judges fundus photographs, and REST beside it.

  python -m iqa_jax.serve
  python -m iqa_jax.serve --workdir=runs/eyeq --port=8080

Drop photographs onto the page: verdict, cause, advice and the map of evidence;
the list of the day can be saved as CSV. POST /v1/judge answers programs:

  curl --data-binary @eye.jpg http://127.0.0.1:8000/v1/judge?name=eye.jpg

Nothing is written to disk. Only this machine reaches the page; with another
--host everyone who can reach it needs the token that is printed. Needs
pip install 'iqa_jax[serve]'.
"""

import os
import secrets

from absl import app, flags, logging

from iqa_jax import command, errors, runtimes

_WORKDIR = flags.DEFINE_list(
  'workdir',
  [],
  'run directory, or several: an ensemble (default: the model that comes with '
  'iqa_jax, trained on simulated photographs)',
)
_HOST = flags.DEFINE_string('host', '127.0.0.1', 'address to listen on')
_PORT = flags.DEFINE_integer('port', 8000, 'port to listen on', 0, 65535)
_TOKEN = flags.DEFINE_string(
  'token',
  None,
  'what clients must show (default: none on this machine alone, otherwise a '
  'random one, which is printed)',
)
_UPLOAD = flags.DEFINE_integer('max_upload_mb', 32, 'of a file', 1, 1024)
_WAITING = flags.DEFINE_integer(
  'max_waiting', 64, 'requests under way; more are told to come back', 1, 10_000
)
_BATCH = flags.DEFINE_integer('batch_size', 0, 'photographs at a time; 0: auto')
_RUNTIME = flags.DEFINE_enum(
  'runtime',
  'jax',
  runtimes.NAMES,
  'what computes, see export_heatmaps',
)
_LOCAL = ('127.0.0.1', 'localhost', '::1')


def main() -> None:
  """Serves until Ctrl-C."""
  try:
    import uvicorn

    from iqa_jax.serve import app as web
  except ImportError as error:
    raise errors.UserError(
      f"the page needs pip install 'iqa_jax[serve]' ({error})"
    ) from error
  from iqa_jax import grader as grader_lib

  alone = _HOST.value in _LOCAL
  token = _TOKEN.value
  if token is None:
    token = '' if alone else secrets.token_urlsafe(16)
  if not alone and not token:
    raise app.UsageError('--token= is for this machine alone; see --host')
  grader = grader_lib.load(
    _WORKDIR.value or None, batch_size=_BATCH.value, runtime=_RUNTIME.value
  )
  name = ', '.join(os.path.basename(os.path.abspath(w)) for w in _WORKDIR.value)
  application = web.create(
    grader,
    name=name or 'bundled (learned from simulated photographs)',
    token=token,
    hosts=_LOCAL if alone else (),
    limits=web.Limits(upload=_UPLOAD.value << 20, waiting=_WAITING.value),
  )
  shown = f'http://{_HOST.value}:{_PORT.value}/'
  logging.info('open %s%s', shown, f'#token={token}' if token else '')
  uvicorn.run(
    application,
    host=_HOST.value,
    port=_PORT.value,
    log_level='warning',
    server_header=False,
  )


if __name__ == '__main__':
  command.run(main)
