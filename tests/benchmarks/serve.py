"""The local page's server: latency alone and under load, with faulty files.

python -m tests.benchmarks.serve --requests=1000
"""

from __future__ import annotations

import concurrent.futures
import io
import sys
import threading
import time
from typing import Any

import numpy as np
from PIL import Image

from tests.benchmarks import common


def run(
  *, smoke: bool = False, workdir: str = '', requests: int = 1000
) -> list[common.Row]:
  """Sends photographs to a server of its own.

  Args:
    smoke: few and small ones.
    workdir: run directory; '' for the bundled model.
    requests: of the load, every tenth a faulty file.
  """
  import httpx
  import uvicorn

  import iqa_jax as iqa
  from iqa_jax.serve import app as web
  from iqa_jax.simulation import photograph

  drawn = Image.fromarray(photograph.draw(3, 512, broken=()).image)
  files = {}
  for side in (256,) if smoke else (1024, 3000):
    data = io.BytesIO()
    drawn.resize((side, side)).save(data, 'JPEG', quality=92)
    files[side] = data.getvalue()
  grader = iqa.load(workdir or None, check_fundus=True)
  server = uvicorn.Server(
    uvicorn.Config(
      web.create(grader, name='benchmark'), port=0, log_level='error', ws='none'
    )
  )
  thread = threading.Thread(target=server.run)
  thread.start()
  while not server.started:
    time.sleep(0.05)
  port = server.servers[0].sockets[0].getsockname()[1]
  url = f'http://127.0.0.1:{port}/v1/judge'
  rows: list[common.Row] = []
  try:
    with httpx.Client(timeout=60) as client:
      for side, data in files.items():
        taken = []
        for _ in range(3 if smoke else 30):
          begun = time.perf_counter()
          client.post(url, content=data).raise_for_status()
          taken.append(time.perf_counter() - begun)
        rows.append(_row(f'one client, {side} px', taken))
      data = next(iter(files.values()))
      for clients in (1, 8, 32):
        count = 20 if smoke else requests // 3
        taken = _load(client, url, data, clients, count)
        rows.append(_row(f'{clients} clients, a tenth faulty', taken))
  finally:
    server.should_exit = True
    thread.join()
  return rows


def _load(
  client: Any, url: str, data: bytes, clients: int, count: int
) -> list[float]:
  """Returns the seconds that each of `count` requests took."""

  def ask(i: int) -> float:
    begun = time.perf_counter()
    content = data[:500] if i % 10 == 9 else data
    answer = client.post(url, content=content)
    while answer.status_code == 503:
      time.sleep(0.1)
      answer = client.post(url, content=content)
    status = answer.json()['verdict']['status']
    # What is drawn may be taken for no fundus; a faulty file never is read.
    if (status in ('ok', 'not_fundus')) != (i % 10 != 9):
      raise SystemExit(f'request {i}: {status}')
    return time.perf_counter() - begun

  begun = time.perf_counter()
  with concurrent.futures.ThreadPoolExecutor(clients) as pool:
    taken = list(pool.map(ask, range(count)))
  print(f'{clients} clients: {count / (time.perf_counter() - begun):.1f}/s')
  return taken


def _row(what: str, seconds: list[float]) -> common.Row:
  ms = [1000 * s for s in seconds]
  note = f'p95 {np.percentile(ms, 95):.0f} ms, n {len(ms)}'
  return common.Row(what, ms, 'ms', note=note)


if __name__ == '__main__':
  sys.exit(common.main(run))
