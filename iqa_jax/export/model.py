"""The model that an export explains: its record at once, its network later.

All that an export knows of the network goes through this class.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from iqa_jax import errors, labels, run_directory
from iqa_jax.aliases import Record
from iqa_jax.export.options import ExportError, Options
from iqa_jax.judging.operating_record import FIELDS, OperatingRecord

if TYPE_CHECKING:  # they hold JAX, which is loaded while photographs are read
  from iqa_jax.explain.explainer import Explainer, Seen


class Model:
  """A trained model, and what is to be explained of it.

  Attributes:
    outputs: names of the logits.
    size: side of the network's input in pixels.
    takes_field: whether its input has the field of view as a fourth channel.
    digest: sha256 of the weights, hex.
    method: of cam.METHODS.
    layer: feature point; None for the network's default.
    target: what is explained.
    judges: how probabilities become verdicts.
    judged: the records that a verdict depends on.
    criteria: those whose probability of a fault the network tells.
    familiar: what it learned from, see fundus.look; None where unknown.
    scaling: one of options.SCALINGS.
    runtime: of runtimes.NAMES, what computes.
  """

  def __init__(self, options: Options):
    path = pathlib.Path(options.workdir) / 'model' / 'model.json'
    if not path.is_file():
      raise run_directory.RunDirectoryError(
        f'{options.workdir} holds no trained model ({path} is missing); give '
        'the --workdir of a run of iqa_jax.main that has finished an epoch'
      )
    record = run_directory.read_json(path)
    try:
      explain = record['config']['explain']
      self.outputs = tuple(map(str, record['outputs']))
      self.size = int(record['image_size'])
      self.takes_field = record['config']['model']['head'] == 'evidence'
      self.criteria: tuple[str, ...] = ()
      if record['config']['task']['name'] == 'criteria':
        self.criteria = self.outputs
      elif self.takes_field:
        self.criteria = labels.LOCAL_CRITERIA
      self.digest = str(record['sha256'])
      self.method = options.method or str(explain['method'])
      self.layer = options.layer or str(explain['layer']) or None
      self.target = options.target or str(explain['target'])
      # Refuses a damaged record now, not in the middle.
      self.judges = OperatingRecord.from_model(record)
    except (KeyError, TypeError, ValueError) as error:
      raise run_directory.RunDirectoryError(
        f'{path} does not describe a model: {type(error).__name__}: {error}'
      ) from error
    self.familiar: Record | None = record.get('familiar')
    self.scaling = options.scaling or self._usual_scaling(record)
    self.judged: Record = {key: record.get(key) for key in FIELDS}
    self.runtime = options.runtime
    self._options = options

  def _usual_scaling(self, record: Record) -> str:
    """Returns 'logit' of heads of evidence, where their maps are logits."""
    additive = (
      self.takes_field
      and self.method in ('gradcam', 'hirescam', 'xgradcam')
      and self.layer in (None, 'evidence')
      and (
        record['config']['task']['name'] == 'quality'
        or self.target in self.outputs
      )
    )
    return 'logit' if additive else 'image'

  def judge(self, p_inadequate: float) -> tuple[float, str, bool]:
    """Returns calibrated probability, verdict, and whether it is uncertain."""
    found = self.judges.judge(np.array(p_inadequate))
    verdict = labels.QUALITY[int(found.verdict)]
    return float(found.p_calibrated), verdict, bool(found.uncertain)

  def load(self) -> None:
    """Loads the network and everything of JAX, unless it is there.

    Raises:
      InvalidValue: it does not have the target or layer, or maps that add up.
      UserError: the runtime can't compute the maps.
      ExportError: the model was replaced since its record was read.
    """
    _ = self.explainer

  @functools.cached_property
  def explainer(self) -> Explainer:
    """What asks the network, see `load`."""
    from iqa_jax import devices, trained
    from iqa_jax.explain import additive, explainer

    options = self._options
    devices.use_compilation_cache(options.compilation_cache)
    loaded = trained.load(options.workdir)
    if loaded.digest != self.digest:
      raise ExportError('the model was replaced just now; start again')
    if self.target == 'labelled':
      raise errors.InvalidValue('--target=labelled: an export has no labels')
    if self.scaling == 'logit':
      why = additive.obstacle(
        loaded.model,
        loaded.task,
        method=self.method,
        layer=self.layer,
        target=self.target,
      )
      if why:
        raise errors.InvalidValue(
          f'--scaling=logit needs maps that add up to the logit: {why}; or '
          'another --scaling'
        )
    made = explainer.Explainer(
      loaded,
      methods=(self.method,),
      layer=self.layer,
      target=self.target,
      placement=options.placement,
      batch_size=options.batch_size,
      runtime=options.runtime,
    )
    made.prepare()
    return made

  @functools.cached_property
  def constants(self) -> dict[str, float]:
    """What targets' scores hold beside their maps, for scaling 'logit'."""
    return self.explainer.constants()

  @property
  def batch_size(self) -> int:
    """Photographs a batch, over all devices."""
    return self.explainer.batch_size

  @property
  def devices(self) -> int:
    """How many share a batch."""
    from iqa_jax import devices

    return devices.local_count()

  def explain(self, pixels: Sequence[np.ndarray], size: int) -> Seen:
    """Returns what the network says of up to `size` images.

    Args:
      pixels: uint8 [s, s, 3 or 4], as prepare.photograph returns them.
      size: of the batch that is computed; each new one is compiled.
    """
    fill = [pixels[0]] * (size - len(pixels))
    return self.explainer.look(np.stack([*pixels, *fill]))[: len(pixels)]
