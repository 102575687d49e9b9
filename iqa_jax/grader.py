"""Trained models that judge and explain photographs.

  import iqa_jax as iqa
  grader = iqa.load('runs/eyeq')
  verdict = grader.judge('eye.jpg')
  grader.explain('eye.jpg').overlay().save('why.jpg')

What the commands do with thousands of files, a notebook does with these few
objects; the numbers are the same (tests/test_grader.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
import concurrent.futures
import dataclasses
import importlib.resources
import itertools
import os
from typing import Any, TypeAlias, overload

import jax.numpy as jnp
import numpy as np
from PIL import Image

from iqa_jax import errors, labels, machine, trained
from iqa_jax.explain import ruler
from iqa_jax.explain.explainer import Explainer
from iqa_jax.explain.explanation import Explanation
from iqa_jax.judging import operating_points
from iqa_jax.judging.verdict import Verdict
from iqa_jax.photograph import geometry, images, photo
from iqa_jax.trained import Trained

Path: TypeAlias = 'str | os.PathLike[str]'
_ONE = (str, os.PathLike, bytes, np.ndarray, Image.Image, photo.Photo)


@dataclasses.dataclass(frozen=True)
class _Ready:
  """A photograph that was read and prepared, without its full-size pixels."""

  name: str
  width: int
  height: int
  prepared: dict[tuple[int, bool], geometry.Prepared]


class Grader:
  """One trained model, or an ensemble of several.

  An ensemble's probability is the mean of its members' calibrated ones, and
  its operating point the mean of theirs; maps are the first member's.

  Args:
    members: models that judge the same outputs.
    batch_size: photographs at a time, over all devices; 0 for
      devices.batch_size.

  Raises:
    InvalidValue: no member, or members of different tasks.
  """

  def __init__(self, members: Sequence[Trained], *, batch_size: int = 0):
    if not members:
      raise errors.InvalidValue('a grader needs at least one trained model')
    for other in members[1:]:
      if other.task.outputs != members[0].task.outputs:
        raise errors.InvalidValue(
          f'an ensemble needs one task: {members[0].task.outputs} and '
          f'{other.task.outputs} are judged'
        )
    self.members = tuple(members)
    self._explainers: dict[tuple, Explainer] = {}
    self._batch_size = batch_size

  @property
  def threshold(self) -> float:
    """The operating point: inadequate from this probability on."""
    return float(np.mean([m.judges.threshold for m in self.members]))

  @property
  def outputs(self) -> tuple[str, ...]:
    """What the models tell apart."""
    return self.members[0].task.outputs

  @property
  def image_size(self) -> int:
    """Side in pixels of what the (first) network takes in."""
    return self.members[0].image_size

  @property
  def batch_size(self) -> int:
    """Photographs that run together, over all devices."""
    return self._explainer(0).batch_size

  def prepare(self, photograph: photo.Photo) -> None:
    """Prepares a photograph ahead, in whatever thread: it is kept with it."""
    self._ready(photograph)

  @overload
  def judge(  # type: ignore[overload-overlap]
    self, photos: photo.Source
  ) -> Verdict: ...

  @overload
  def judge(self, photos: Iterable[photo.Source]) -> Iterator[Verdict]: ...

  def judge(self, photos):
    """Judges one photograph, or lazily any number of them.

    Args:
      photos: a path, array, Pillow image or Photo (see photo.read), or an
        iterable of those.

    Returns:
      The Verdict; or an iterator of Verdicts in the order of `photos`, read
      ahead by no more than a few batches. A file that can't be used is a
      verdict whose `status` and `reason` say why.
    """
    if isinstance(photos, _ONE):
      return next(self._judge([photos]))
    return self._judge(photos)

  @overload
  def explain(  # type: ignore[overload-overlap]
    self,
    photos: photo.Source,
    *,
    method: str | None = None,
    layer: str | None = None,
    target: str | None = None,
    placement: str = 'network',
  ) -> Explanation: ...

  @overload
  def explain(
    self,
    photos: Sequence[photo.Source],
    *,
    method: str | None = None,
    layer: str | None = None,
    target: str | None = None,
    placement: str = 'network',
  ) -> list[Explanation]: ...

  def explain(
    self, photos, *, method=None, layer=None, target=None, placement='network'
  ):
    """Says where the network found its evidence.

    Args:
      photos: a photograph, see photo.read, or a list of some, which are held
        in memory together.
      method: one of cam.METHODS; None as the run's configuration says.
      layer: a feature point of the network; None likewise.
      target: 'predicted' (evidence for the verdict), 'margin' (for
        inadequate), or another of `Task.targets`; None likewise.
      placement: 'network' lays cells where they look; 'pytorch_grad_cam' as
        that library does.

    Returns:
      The Explanation, or a list of them.

    Raises:
      ImageError: a photograph can't be used.
      InvalidValue: no such method, layer, target or placement.
    """
    if isinstance(photos, _ONE):
      [found] = self.explain(
        [photos], method=method, layer=layer, target=target, placement=placement
      )
      return found
    photographs = [photo.read(source) for source in photos]
    if not photographs:
      return []
    member = self.members[0]
    explainer = self._explainer(0, method, layer, target, placement)
    ready = [self._ready(photograph) for photograph in photographs]
    prepared = [one.prepared[_input(member)] for one in ready]
    seen = explainer.look(np.stack([one.image for one in prepared]))
    logits = [seen.logits, *self._logits(ready, first=1)]
    return [
      Explanation(
        photo=photographs[i],
        verdict=self._verdict(
          one, [member_logits[i] for member_logits in logits]
        ),
        raw=seen.raw[i],
        method=explainer.methods[0],
        layer=explainer.layer,
        target=member.task.targets[int(seen.targets[i])],
        size=member.image_size,
        affine=prepared[i].affine,
        placement=explainer.placement,
        landmarks=ruler.to_original(
          seen.landmarks[i], prepared[i].affine, member.image_size
        ),
      )
      for i, one in enumerate(ready)
    ]

  def _judge(self, photos: Iterable[photo.Source]) -> Iterator[Verdict]:
    """Yields verdicts in order; photographs are prepared ahead by threads."""
    sources = iter(photos)
    waiting: deque[concurrent.futures.Future[_Ready | Verdict]] = deque()
    workers = machine.cpu_count()
    size = self.batch_size
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
      while True:
        ahead = size + workers - len(waiting)
        waiting.extend(
          pool.submit(self._prepare, source)
          for source in itertools.islice(sources, ahead)
        )
        if not waiting:
          return
        count = min(size, len(waiting))
        found = [waiting.popleft().result() for _ in range(count)]
        waiting.extend(
          pool.submit(self._prepare, source)
          for source in itertools.islice(sources, count)
        )
        yield from self._verdicts(found)

  def _prepare(self, source: photo.Source) -> _Ready | Verdict:
    """Returns a photograph prepared for all members, or what is wrong."""
    try:
      return self._ready(photo.read(source))
    except images.ImageError as error:
      return Verdict(_name(source), error.status, error.reason)

  def _ready(self, photograph: photo.Photo) -> _Ready:
    inputs = dict.fromkeys(_input(member) for member in self.members)
    return _Ready(
      photograph.name,
      photograph.width,
      photograph.height,
      {(size, f): photograph.prepared(size, field=f) for size, f in inputs},
    )

  def _verdicts(self, found: Sequence[_Ready | Verdict]) -> Iterator[Verdict]:
    """Yields the verdicts on prepared photographs, those there are as are."""
    ready = [one for one in found if isinstance(one, _Ready)]
    logits = iter(zip(*self._logits(ready), strict=True) if ready else ())
    for one in found:
      if isinstance(one, Verdict):
        yield one
      else:
        yield self._verdict(one, next(logits))

  def _logits(
    self, ready: Sequence[_Ready], first: int = 0
  ) -> list[np.ndarray]:
    """Returns the logits [n, k] of each member from the `first` on."""
    return [
      self._explainer(i).logits(
        np.stack([one.prepared[_input(member)].image for one in ready])
      )
      for i, member in enumerate(self.members)
      if i >= first
    ]

  def _verdict(self, ready: _Ready, logits: Sequence[np.ndarray]) -> Verdict:
    """Returns the verdict that each member's logits [k] amount to."""
    seen: dict[str, Any] = {
      'name': ready.name,
      'width': ready.width,
      'height': ready.height,
      'field': ready.prepared[_input(self.members[0])].field,
    }
    if not np.isfinite(logits).all():
      reason = 'the network ran over: its logits are infinite'
      return Verdict(**seen, status='not_finite', reason=reason)
    each = [
      float(member.p_inadequate(one[None])[0])
      for member, one in zip(self.members, logits, strict=True)
    ]
    task = self.members[0].task
    odds = np.stack([task.log_odds(one[None]) for one in logits])
    outputs = [
      np.asarray(task.probabilities(jnp.asarray(one[None])))[0]
      for one in logits
    ]
    p = float(np.mean(each))
    return Verdict(
      **seen,
      verdict=labels.QUALITY[int(p >= self.threshold)],
      p_inadequate=p,
      log_odds=float(task.mean_log_odds(odds)[0]),
      threshold=self.threshold,
      uncertain=self._uncertain(p),
      probabilities={
        name: float(value)
        for name, value in zip(
          self.outputs, np.mean(outputs, axis=0), strict=True
        )
      },
      spread=float(np.std(each)),
    )

  def _explainer(
    self,
    number: int,
    method: str | None = None,
    layer: str | None = None,
    target: str | None = None,
    placement: str = 'network',
  ) -> Explainer:
    member = self.members[number]
    defaults = member.config.explain
    key = (
      number,
      method or defaults.method,
      layer or defaults.layer or None,
      target or defaults.target,
      placement,
    )
    if key not in self._explainers:
      self._explainers[key] = Explainer(
        member,
        methods=(key[1],),
        layer=key[2],
        target=key[3],
        placement=placement,
        batch_size=self._batch_size,
      )
    return self._explainers[key]

  def _uncertain(self, p: float) -> bool:
    """Whether p lies in the band that a person should look at."""
    bands = [
      m.judges.uncertain_band
      for m in self.members
      if m.judges.uncertain_band is not None
    ]
    if not bands:
      return False
    return bool(
      operating_points.is_uncertain(np.array(p), list(np.mean(bands, axis=0)))
    )


def load(
  workdir: Path | Sequence[Path] | None = None, *, batch_size: int = 0
) -> Grader:
  """Loads a trained model, or an ensemble.

  Args:
    workdir: run directory of iqa_jax.main, or several; None for the model
      that comes with the package, which learned from simulated photographs
      only.
    batch_size: see Grader.

  Raises:
    RunDirectoryError: there is no trained model, or it is damaged.
  """
  if workdir is None:
    workdir = bundled_directory()
  folders: Sequence[Path] = (
    [workdir] if isinstance(workdir, (str, os.PathLike)) else workdir
  )
  return Grader(
    [trained.load(os.path.expanduser(folder)) for folder in folders],
    batch_size=batch_size,
  )


def bundled_directory() -> str:
  """Returns where the model lies that comes with the package.

  Raises:
    UserError: this installation has none.
  """
  folder = importlib.resources.files('iqa_jax') / 'bundled'
  if not (folder / 'model' / 'model.json').is_file():
    raise errors.UserError(
      'this installation of iqa_jax carries no model: give the run directory '
      'of one trained by iqa_jax.main'
    )
  return str(folder)


def _input(member: Trained) -> tuple[int, bool]:
  return member.image_size, member.model.takes_field


def _name(source: photo.Source) -> str:
  if isinstance(source, (str, os.PathLike)):
    return os.fspath(source)
  return getattr(source, 'name', '')
