"""The model that an export explains: its record at once, its network later.

All that an export knows of the network goes through this class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from iqa_jax import errors, run_directory
from iqa_jax.export.options import ExportError, Options
from iqa_jax.judging import calibration, operating_points
from iqa_jax.photograph.placement import Placement


class Explained(NamedTuple):
  """What the network says of n photographs, or, without the axis n, of one.

  Attributes:
    logits: float32 [n, k], those that the operating point is one of.
    probabilities: float32 [n, k], of the outputs.
    p_inadequate: float32 [n], not calibrated.
    target: int32 [n], index into Model.targets of what is explained.
    raw: float32 [n, h, w], the signed map.
    landmarks: float32 [n, 5], see cam.Explanation.
  """

  logits: np.ndarray
  probabilities: np.ndarray
  p_inadequate: np.ndarray
  target: np.ndarray
  raw: np.ndarray
  landmarks: np.ndarray


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
    calibrated: whether its probabilities are.
    threshold: the operating point, of the calibrated probability.
    band: the probabilities at which a person should look; None for none.
    judged: the records that a verdict depends on.
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
      self.digest = str(record['sha256'])
      self.method = options.method or str(explain['method'])
      self.layer = options.layer or str(explain['layer']) or None
      self.target = options.target or str(explain['target'])
      self._calibration = record.get('calibration')
      self.calibrated = self._calibration is not None
      point = record.get('operating_point')
      self.threshold = 0.5 if point is None else float(point['threshold'])
      self.band = record.get('uncertain_band')
      # Refuses a damaged record now, not in the middle.
      calibration.apply(self._calibration, np.array([0.5]))
    except (KeyError, TypeError, ValueError) as error:
      raise run_directory.RunDirectoryError(
        f'{path} does not describe a model: {type(error).__name__}: {error}'
      ) from error
    self.judged: dict[str, Any] = {
      key: record.get(key)
      for key in ('calibration', 'operating_point', 'uncertain_band')
    }
    self._options = options

  def judge(self, p_inadequate: float) -> tuple[float, str, bool]:
    """Returns calibrated probability, verdict, and whether it is uncertain."""
    p = float(calibration.apply(self._calibration, np.array([p_inadequate]))[0])
    verdict = 'inadequate' if p >= self.threshold else 'adequate'
    uncertain = self.band is not None and bool(
      operating_points.is_uncertain(np.array(p), self.band)
    )
    return p, verdict, uncertain

  def load(self) -> None:
    """Loads the network and everything of JAX, unless it is there.

    Raises:
      InvalidValue: it does not have the target or layer, or maps that add up.
      ExportError: the model was replaced since its record was read.
    """
    _ = self._network, self.batch_size

  @functools.cached_property
  def _network(self) -> Any:
    from iqa_jax import inference, job
    from iqa_jax.explain import additive

    job.use_compilation_cache(self._options.compilation_cache)
    loaded = inference.load(self._options.workdir)
    if loaded.digest != self.digest:
      raise ExportError('the model was replaced just now; start again')
    if self.target not in ('predicted', *loaded.task.targets):
      raise errors.InvalidValue(
        f'--target={self.target} is none of predicted, '
        f'{", ".join(loaded.task.targets)}'
      )
    if self._options.scaling == 'logit':
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
    return loaded

  @property
  def targets(self) -> tuple[str, ...]:
    """What can be explained, see tasks.Task.targets."""
    return self._network.task.targets

  @property
  def layer_name(self) -> str:
    """The feature point that is explained."""
    return self.layer or self._network.model.default_layer

  @functools.cached_property
  def placement(self) -> Placement | None:
    """Where the cells of the explained layer look, see cam.placed."""
    from iqa_jax.explain import cam

    return cam.placed(self._network.model, self.layer, self._options.placement)

  @functools.cached_property
  def constants(self) -> np.ndarray:
    """What the targets' scores hold beside their maps, for scaling 'logit'."""
    from iqa_jax.explain import additive

    network = self._network
    return additive.constants(network.model, network.variables, network.task)

  @functools.cached_property
  def batch_size(self) -> int:
    """Photographs a batch, over all devices."""
    import jax

    devices = jax.local_devices()
    each = 8 if devices[0].platform == 'cpu' else 32
    size = self._options.batch_size or each * len(devices)
    return -(-size // len(devices)) * len(devices)

  @property
  def devices(self) -> int:
    """How many share a batch."""
    import jax

    return jax.local_device_count()

  def explain(self, pixels: Sequence[np.ndarray], size: int) -> Explained:
    """Returns what the network says of up to `size` images.

    Args:
      pixels: uint8 [s, s, 3 or 4], as prepare.photograph returns them.
      size: of the batch that is computed; each new one is compiled.
    """
    import jax

    step, count = self._step, len(pixels)
    devices = self.devices
    batch = np.zeros((size, *pixels[0].shape), np.uint8)
    batch[:count] = pixels
    batch = batch.reshape(devices, size // devices, *batch.shape[1:])
    found = jax.device_get(step(self._network.variables, batch))
    return Explained(
      **{
        name: np.asarray(a).reshape(size, *a.shape[2:])[:count]
        for name, a in found.items()
      }
    )

  @functools.cached_property
  def _step(self) -> Callable:
    import jax

    from iqa_jax import models
    from iqa_jax.explain import cam

    loaded = self._network
    choose = functools.partial(
      cam.choose_targets,
      loaded.task,
      self.target,
      threshold=self._raw_threshold(),
    )

    def step(variables, pixels):
      x = models.normalize(pixels)

      # The map stays that of the photograph as it is.
      judged = functools.partial(loaded.judged, variables, x)
      found = cam.explain(
        loaded.model,
        variables,
        x,
        lambda logits: choose(judged(logits)),
        task=loaded.task,
        layer=self.layer,
        methods=(self.method,),
      )
      logits = judged(found.logits)
      return {
        'logits': logits,
        'probabilities': loaded.task.probabilities(logits),
        'p_inadequate': loaded.task.p_inadequate(logits),
        'target': found.targets,
        'raw': found.maps[self.method],
        'landmarks': found.landmarks,
      }

    return jax.pmap(step, in_axes=(None, 0), devices=jax.local_devices())

  def _raw_threshold(self) -> float:
    """Returns the operating point on the uncalibrated probability."""
    odds = np.linspace(-40, 40, 400_001)
    p = 1 / (1 + np.exp(-odds))
    reached = calibration.apply(self._calibration, p) >= self.threshold
    return float(p[reached.argmax()]) if reached.any() else np.inf
