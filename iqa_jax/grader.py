"""Trained models that judge and explain photographs.

  import iqa_jax as iqa
  grader = iqa.load('runs/eyeq')
  verdict = grader.judge('eye.jpg')
  grader.explain('eye.jpg').overlay().save('why.jpg')

What the commands do with thousands of files, a notebook does with these few
objects; the numbers are the same (tests/test_grader.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
import itertools
import os
from typing import TypeAlias, overload
import weakref

import numpy as np
from PIL import Image

from iqa_jax import errors, machine, opinion, run_directory, trained
from iqa_jax.explain import ruler
from iqa_jax.explain.explainer import Explainer, Seen
from iqa_jax.explain.explanation import Explanation
from iqa_jax.judging.verdict import Verdict
from iqa_jax.opinion import Ready
from iqa_jax.photograph import images, photo
from iqa_jax.trained import Trained

Path: TypeAlias = 'str | os.PathLike[str]'
_ONE = (str, os.PathLike, bytes, np.ndarray, Image.Image, photo.Photo)


class Grader:
  """One trained model, or an ensemble of several.

  An ensemble's probability is the mean of its members' calibrated ones, and
  its operating point the mean of theirs; maps are the first member's.

  Args:
    members: models that judge the same outputs.
    batch_size: photographs at a time, over all devices; 0 for
      devices.batch_size.
    language: of advice, one of advice.LANGUAGES.
    check_fundus: whether pictures of something else than a fundus get the
      status 'not_fundus' and no verdict.
    runtime: of runtimes.NAMES, what computes.

  Raises:
    InvalidValue: no member, members of different tasks, or no such runtime.
    UserError: the runtime is not installed, or can't compute the maps that the
      run's configuration asks for.
  """

  def __init__(
    self,
    members: Sequence[Trained],
    *,
    batch_size: int = 0,
    language: str = 'en',
    check_fundus: bool = True,
    runtime: str = 'jax',
  ):
    if not members:
      raise errors.InvalidValue('a grader needs at least one trained model')
    for other in members[1:]:
      if other.task.outputs != members[0].task.outputs:
        raise errors.InvalidValue(
          f'an ensemble needs one task: {members[0].task.outputs} and '
          f'{other.task.outputs} are judged'
        )
    self.members = tuple(members)
    self._bench = opinion.Bench(self.members, language)
    self._check_fundus = check_fundus
    self._explainers: dict[tuple, Explainer] = {}
    self._ahead: weakref.WeakKeyDictionary[photo.Photo, Ready] = (
      weakref.WeakKeyDictionary()
    )
    self._batch_size = batch_size
    self.runtime = runtime
    if runtime != 'jax':
      self._explainer(0).prepare()

  @property
  def threshold(self) -> float:
    """The operating point: inadequate from this probability on."""
    return self._bench.threshold

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
    self._ahead[photograph] = self._ready(photograph)

  @overload
  def judge(  # type: ignore[overload-overlap]
    self, photos: photo.Source
  ) -> Verdict: ...

  @overload
  def judge(self, photos: Iterable[photo.Source]) -> Iterator[Verdict]: ...

  def judge(
    self, photos: photo.Source | Iterable[photo.Source]
  ) -> Verdict | Iterator[Verdict]:
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
    self,
    photos: photo.Source | Sequence[photo.Source],
    *,
    method: str | None = None,
    layer: str | None = None,
    target: str | None = None,
    placement: str = 'network',
  ) -> Explanation | list[Explanation]:
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
      UserError: the runtime can't compute this map.
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
    ready = [self._ready(one) for one in photographs]
    seen = explainer.look(np.stack([one.input(member).image for one in ready]))
    others = self._logits(ready, first=1)
    constants = explainer.comparable()
    return [
      self._explanation(
        photographs[i],
        one,
        [seen.logits[i], *(rows[i] for rows in others)],
        seen[i],
        explainer,
        constants,
      )
      for i, one in enumerate(ready)
    ]

  def _explanation(
    self,
    photograph: photo.Photo,
    ready: Ready,
    logits: Sequence[np.ndarray],
    seen: Seen,
    explainer: Explainer,
    constants: Mapping[int, float],
  ) -> Explanation:
    """Returns what all members and the first one's pass say of a photograph."""
    member, target = self.members[0], int(seen.targets)
    shown, size = ready.input(member), member.image_size
    return Explanation(
      photo=photograph,
      verdict=self._bench.verdict(ready, logits, seen, explainer),
      raw=seen.raw,
      method=explainer.methods[0],
      layer=explainer.layer,
      target=member.task.targets[target],
      size=size,
      affine=shown.affine,
      placement=explainer.placement,
      landmarks=ruler.to_original(seen.landmarks, shown.affine, size),
      cells=seen.cells(),
      inside=shown.inside if member.model.takes_field else None,
      constant=constants.get(target),
    )

  def _judge(self, photos: Iterable[photo.Source]) -> Iterator[Verdict]:
    """Yields verdicts in order; photographs are prepared ahead by threads."""
    size = self.batch_size
    ready = machine.in_threads(
      self._prepare, photos, size + machine.cpu_count()
    )
    while found := list(itertools.islice(ready, size)):
      yield from self._verdicts(found)

  def _prepare(self, source: photo.Source) -> Ready | Verdict:
    """Returns a photograph prepared for all members, or what is wrong."""
    try:
      return self._ready(photo.read(source))
    except images.ImageError as error:
      return Verdict(_name(source), error.status, error.reason)

  def _ready(self, photograph: photo.Photo) -> Ready:
    ahead = self._ahead.get(photograph)
    if ahead is not None:
      return ahead
    return opinion.ready(
      photograph, self.members, check_fundus=self._check_fundus
    )

  def _verdicts(self, found: Sequence[Ready | Verdict]) -> Iterator[Verdict]:
    """Yields the verdicts on prepared photographs, those there are as are."""
    ready = [one for one in found if isinstance(one, Ready)]
    logits: list[np.ndarray] = []
    seen = None
    explainer = self._explainer(0)
    if ready and explainer.criteria:
      pixels = [one.input(self.members[0]).image for one in ready]
      seen = explainer.look(np.stack(pixels))
      logits = [seen.logits, *self._logits(ready, first=1)]
    elif ready:
      logits = self._logits(ready)
    number = itertools.count()
    for one in found:
      if isinstance(one, Verdict):
        yield one
        continue
      i = next(number)
      yield self._bench.verdict(
        one, [each[i] for each in logits], seen and seen[i], explainer
      )

  def _logits(self, ready: Sequence[Ready], first: int = 0) -> list[np.ndarray]:
    """Returns the logits [n, k] of each member from the `first` on."""
    return [
      self._explainer(i).logits(
        np.stack([one.input(member).image for one in ready])
      )
      for i, member in enumerate(self.members)
      if i >= first
    ]

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
        runtime=self.runtime,
      )
    return self._explainers[key]


def load(
  workdir: Path | Sequence[Path] | None = None,
  *,
  batch_size: int = 0,
  language: str = 'en',
  check_fundus: bool = True,
  runtime: str = 'jax',
) -> Grader:
  """Loads a trained model, or an ensemble.

  Args:
    workdir: run directory of iqa_jax.main, or several; None for the model
      that comes with the package, which learned from simulated photographs
      only.
    batch_size: see Grader.
    language: see Grader.
    check_fundus: see Grader.
    runtime: see Grader.

  Raises:
    RunDirectoryError: there is no trained model, or it is damaged.
    UserError: see Grader.
  """
  if workdir is None:
    workdir = run_directory.bundled()
  folders: Sequence[Path] = (
    [workdir] if isinstance(workdir, (str, os.PathLike)) else workdir
  )
  return Grader(
    [trained.load(os.path.expanduser(folder)) for folder in folders],
    batch_size=batch_size,
    language=language,
    check_fundus=check_fundus,
    runtime=runtime,
  )


def _name(source: photo.Source) -> str:
  if isinstance(source, (str, os.PathLike)):
    return os.fspath(source)
  return getattr(source, 'name', '')
