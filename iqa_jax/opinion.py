"""From what trained networks said of a photograph to its verdict."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import jax.numpy as jnp
import numpy as np

from iqa_jax import labels
from iqa_jax.aliases import Record
from iqa_jax.explain.explainer import Explainer, Seen
from iqa_jax.judging import advice, fundus, operating_points
from iqa_jax.judging.verdict import Verdict
from iqa_jax.photograph import geometry
from iqa_jax.photograph.photo import Photo
from iqa_jax.trained import Trained


@dataclasses.dataclass(frozen=True)
class Ready:
  """A photograph as networks take it, without its full-size pixels.

  Attributes:
    name: what results call it.
    width: of the photograph in pixels.
    height: likewise.
    prepared: by (input size, whether the network takes the field of view).
    looks: whether it is a fundus photograph at all; None where nobody looked.
  """

  name: str
  width: int
  height: int
  prepared: dict[tuple[int, bool], geometry.Prepared]
  looks: fundus.Looks | None = None

  def input(self, member: Trained) -> geometry.Prepared:
    """Returns what a model's network takes."""
    return self.prepared[member.image_size, member.model.takes_field]


def ready(
  photograph: Photo, members: Sequence[Trained], *, check_fundus: bool = True
) -> Ready:
  """Returns a photograph prepared for all the models.

  Args:
    photograph: to be prepared.
    members: the models; the first knows what is familiar.
    check_fundus: whether to look if it is a fundus photograph.
  """
  sizes = dict.fromkeys((m.image_size, m.model.takes_field) for m in members)
  found = Ready(
    photograph.name,
    photograph.width,
    photograph.height,
    {(size, f): photograph.prepared(size, field=f) for size, f in sizes},
  )
  if not check_fundus:
    return found
  first = found.input(members[0])
  looks = fundus.look(
    first.image[..., :3], first.inside, members[0].record.get('familiar')
  )
  return dataclasses.replace(found, looks=looks)


@dataclasses.dataclass(frozen=True)
class Bench:
  """The models that judge together, and how their opinions become one.

  Attributes:
    members: models that judge the same outputs.
    language: of the advice.
  """

  members: tuple[Trained, ...]
  language: str = 'en'

  @property
  def threshold(self) -> float:
    """The mean of the members' operating points."""
    return float(np.mean([m.judges.threshold for m in self.members]))

  def verdict(
    self,
    photograph: Ready,
    logits: Sequence[np.ndarray],
    seen: Seen | None,
    explainer: Explainer,
  ) -> Verdict:
    """Returns the verdict on one photograph.

    Args:
      photograph: that was judged.
      logits: float32 [k] of each member.
      seen: what the first member's pass told of this photograph beside its
        logits; None where it knows no criteria.
      explainer: of the first member.
    """
    known: Record = {
      'name': photograph.name,
      'width': photograph.width,
      'height': photograph.height,
      'field': photograph.input(self.members[0]).field,
    }
    looks = photograph.looks
    if looks is not None:
      known['not_fundus'] = looks.not_fundus
      known['unlike_training'] = looks.unlike_training
      if looks.flagged:
        return Verdict(**known, status='not_fundus', reason=looks.reason)
    if not np.isfinite(logits).all():
      reason = 'the network ran over: its logits are infinite'
      return Verdict(**known, status='not_finite', reason=reason)
    each = [
      float(member.p_inadequate(one[None])[0])
      for member, one in zip(self.members, logits, strict=True)
    ]
    p = float(np.mean(each))
    verdict = labels.QUALITY[int(p >= self.threshold)]
    told = ('', {}) if seen is None else explainer.cause(seen, verdict)
    cause, criteria = told
    task = self.members[0].task
    odds = np.stack([task.log_odds(one[None]) for one in logits])
    return Verdict(
      **known,
      verdict=verdict,
      p_inadequate=p,
      log_odds=float(task.mean_log_odds(odds)[0]),
      threshold=self.threshold,
      uncertain=self._uncertain(p),
      probabilities=self._probabilities(logits),
      spread=float(np.std(each)),
      cause=cause,
      criteria=criteria,
      advice=advice.sentence(cause, self.language),
    )

  def _probabilities(self, logits: Sequence[np.ndarray]) -> dict[str, float]:
    task = self.members[0].task
    found = task.probabilities(jnp.asarray(np.stack(logits)))
    means = np.asarray(found).mean(0).tolist()
    return dict(zip(task.outputs, means, strict=True))

  def _uncertain(self, p: float) -> bool:
    """Whether p lies in the band that a person should look at."""
    records = [member.judges.uncertain_band for member in self.members]
    bands = [band for band in records if band is not None]
    if not bands:
      return False
    band = np.mean(bands, axis=0).tolist()
    return bool(operating_points.is_uncertain(np.array(p), band))
