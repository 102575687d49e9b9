"""The configuration of a run: every field, its default and its meaning.

Files in configs/ start from `default()` and override what their experiment
changes; the command line overrides both:

  python -m iqa_jax.main --config=demo --workdir=runs/demo --config.seed=1
"""

from __future__ import annotations

import difflib
import importlib.resources
import json
import os
import pathlib
import runpy
import sys
from typing import Any

import ml_collections

from iqa_jax import errors, labels
from iqa_jax.aliases import Record

CSV_COLUMNS = (
  *('path', 'patient', 'camera', 'site', 'eye', 'split'),
  *('verdict', 'grade', *labels.CRITERIA),
)


def default() -> ml_collections.ConfigDict:
  """Returns the default configuration, which configs/*.py override."""
  c = ml_collections.ConfigDict()
  c.seed = 0
  # Ask XLA for deterministic kernels (GPU); CPU and TPU have no others.
  c.deterministic = False

  c.task = ml_collections.ConfigDict()
  c.task.name = 'quality'  # quality | grade | criteria
  c.task.usable = 'inadequate'  # EyeQ's Usable: inadequate|adequate|exclude
  c.task.loss = 'cross_entropy'  # cross_entropy | focal
  c.task.focal_gamma = 2.0
  c.task.label_smoothing = 0.0
  c.task.class_weights = 'none'  # none | balanced
  c.task.verdict_weight = 1.0  # criteria task: verdict beside the criteria
  c.task.landmark_weight = 1.0  # landmarks head: their error in DD
  c.task.cell_weight = 3.0  # evidence head: cells with and without a fault
  # Evidence head: cells with a fault above all others of their photograph.
  c.task.ranking_weight = 0.0
  c.task.cause_weight = 0.5  # evidence head: which criterion is broken
  # Evidence head: whether verdicts teach the cells too, or faults whose place
  # is known alone; the head above them learns from verdicts either way.
  c.task.verdict_teaches_cells = True

  c.data = ml_collections.ConfigDict()
  # fundus_sim | eyeq | brset | csv (your own labels); '+' mixes training
  c.data.name = 'fundus_sim'
  # '' = the builder's default; of several datasets 512, or one for each as in
  # eyeq=original,fundus_sim=512
  c.data.builder_config = ''
  c.data.data_dir = ''  # prepared records; '' = ~/tensorflow_datasets
  # What you downloaded; of several datasets brset=DIR1,eyeq=DIR2
  c.data.manual_dir = ''
  c.data.allow_missing = False  # build from the photographs that are there
  c.data.image_size = 224
  c.data.folds = 5  # patients are dealt to this many folds
  c.data.fold = 0  # the fold that validates (and, BRSet, the next one tests)
  # Restrict a split to cameras, e.g. train on ('Canon CR',); () = all.
  c.data.train_cameras = ()
  c.data.test_cameras = ()  # tests with all of theirs but patients learnt from
  # Test on another dataset, its test split or all of it; '' = data.name
  c.data.test_name = ''
  c.data.test_manual_dir = ''  # '' = as manual_dir
  c.data.balance = 'none'  # none | sampling | subset (training split only)
  c.data.max_train_examples = 0  # 0 = all

  # Of data.name=csv: the label file in manual_dir, and its columns. Those of
  # these names that it lacks are unknown; path, patient and a label it must
  # have. data/README.md says which values they may have.
  c.data.csv = ml_collections.ConfigDict()
  c.data.csv.file = 'labels.csv'
  for column in CSV_COLUMNS:
    c.data.csv[column] = column

  c.data.augment = ml_collections.ConfigDict()
  c.data.augment.flip = True  # left-right; the eye is swapped with it
  c.data.augment.rotation = 0.0  # up to +- this many degrees
  c.data.augment.scale = 0.0  # whole field smaller by up to this share
  # Share taken again by a simulated other camera (simulation/cameras.py).
  c.data.augment.cameras = 0.0
  # Simulated faults put into real Adequate training photographs: the share of
  # them that gets each (see iqa_jax/simulation).
  c.data.faults = ml_collections.ConfigDict()
  c.data.faults.focus = 0.0
  c.data.faults.illumination = 0.0
  c.data.faults.artifacts = 0.0
  c.data.faults.procedural = 0.0  # of no named kind, see simulation/procedural
  # Kinds (simulation.faults.KINDS) that are never put in: are they found?
  c.data.left_out_faults = ()
  # Each photograph gets one of so many faults of its own: a finite set, which
  # the feature cache can hold. 0: a fresh one every time.
  c.data.fault_variants = 0
  # False: no real Inadequate (nor EyeQ's Usable) photograph is learned from,
  # only the faults put into Adequate ones.
  c.data.learn_inadequate = True

  c.model = ml_collections.ConfigDict()
  c.model.name = 'resnet50'  # resnet50 | vgg16 (iqa_jax.models lists them)
  # linear | standardized | landmarks | mlp | imagenet (models/heads.py), or
  # evidence: local evidence by criterion, inside the field (models/evidence.py)
  c.model.head = 'linear'
  c.model.last = ''  # feature point that the head follows; '' = the last one
  # linear, standardized: average the last map inside the field of view only.
  c.model.field_pooling = False
  c.model.width = 1.0  # multiplies every channel count
  c.model.depth = 1.0  # multiplies the blocks of every stage
  # Of the evidence head: the points looked at, () = the network's own choice;
  # the side of the grid of cells; the hidden units of a cell; the standard
  # deviations, in cells, by which cells share evidence with their neighbours;
  # whether cells also see the first layer of the image at its whole size and
  # the network the image at half of it.
  c.model.taps = ()
  c.model.cells = 28
  c.model.cell_units = 128
  c.model.cell_spread = ()
  c.model.detail = False
  c.model.dropout = 0.5  # of the mlp and imagenet heads
  c.model.dtype = 'float32'  # compute type; bfloat16 on GPU and TPU
  # A tag (resnet50.tv_in1k; bundled, which needs no download), a .safetensors
  # or .pth file, a run directory, or '' for random initialisation.
  c.model.pretrained = ''

  c.train = ml_collections.ConfigDict()
  c.train.batch_size = 64  # over all devices and hosts
  c.train.accumulate = 1  # gradient accumulation steps
  c.train.clip_norm = 0.0  # global gradient norm; 0 = off
  c.train.ema_decay = 0.0  # evaluated weights' moving average; 0 = off
  c.train.checkpoint_every = 200  # steps; also at the end of epochs, but
  c.train.checkpoint_seconds = 20.0  # there no sooner than this after another
  c.train.early_stop = 0  # epochs without improvement; 0 = off
  c.train.cache_gb = 4.0  # feature cache budget of frozen phases; 0 = off
  # Evidence head on cached cells: a step sees every such row and column.
  c.train.cell_stride = 1
  c.train.phases = (phase(epochs=10),)

  c.eval = ml_collections.ConfigDict()
  c.eval.batch_size = 64
  c.eval.select_by = 'auc'  # checkpoint: auc | loss | balanced_accuracy | last
  c.eval.calibration = 'temperature'  # none|temperature|platt|isotonic
  # youden | sensitivity | specificity | cost | percentile | fixed, and its
  # target (0.95, cost ratio, percentage, threshold).
  c.eval.operating_point = 'youden'
  c.eval.operating_target = 0.95
  c.eval.uncertain_share = 0.1  # sent to a person: least certain share
  c.eval.flip_tta = False
  c.eval.bootstrap = 2000

  c.explain = ml_collections.ConfigDict()
  c.explain.method = 'gradcam'
  c.explain.layer = ''  # '' = the last feature map
  # predicted (the margin towards the verdict) | labelled | margin |
  # adequate_margin | a class or criterion
  c.explain.target = 'predicted'
  c.explain.examples = 24  # test photographs shown in the report
  return c


def of_dataset(value: str, name: str) -> str:
  """Returns a dataset's part of a field such as 'brset=DIR1,eyeq=DIR2'.

  Args:
    value: the field; one without '=' is that of every dataset.
    name: of the dataset.

  Returns:
    '' where the field names others alone.
  """
  parts = [part.partition('=') for part in value.split(',')]
  if not all(sign and key.strip().isidentifier() for key, sign, _ in parts):
    return value
  return {key.strip(): part.strip() for key, _, part in parts}.get(name, '')


def phase(**changes: Any) -> ml_collections.ConfigDict:
  """Returns one training phase; `changes` override its defaults.

  Raises:
    ValueError: a change names no field of a phase.
  """
  p = ml_collections.ConfigDict()
  p.name = ''
  p.epochs = 1
  # head | <stage>+head, e.g. stage4+head, block5+head | all | a regular
  # expression over parameter paths such as backbone/stage4/block0/conv1/kernel
  p.learns = 'all'
  p.optimizer = 'adamw'  # adam | adamw | sgd
  p.learning_rate = 1e-3
  p.schedule = 'constant'  # constant | cosine | linear
  p.warmup_epochs = 0.0
  p.weight_decay = 0.0
  p.momentum = 0.9  # sgd
  # Each stage below the head learns this much slower than the one above.
  p.layer_decay = 1.0
  p.backbone_scale = 1.0  # learning rate of the backbone over the head's
  p.reset_optimizer = True  # False keeps the state of what goes on learning
  for key, value in changes.items():
    if key not in p:
      near = difflib.get_close_matches(key, list(p), 1)
      hint = f'; did you mean {near[0]!r}?' if near else ''
      raise errors.InvalidValue(f'a training phase has no field {key!r}{hint}')
    p[key] = _typed(p[key], value, key)
  return p


def variant(name: str) -> ml_collections.ConfigDict:
  """Returns the configuration of another config file, to be overridden.

  Configs are found by name here because they are files, not a package.
  """
  return runpy.run_path(find(name))['get_config']()


def directory() -> pathlib.Path:
  """Returns the folder of the configs that come with iqa_jax.

  A wheel carries configs/ inside the package; a checkout has it beside.
  """
  installed = importlib.resources.files('iqa_jax') / 'configs'
  if installed.is_dir():
    return pathlib.Path(str(installed))
  return pathlib.Path(__file__).resolve().parent.parent / 'configs'


def names() -> list[str]:
  """Returns the names of the configs that come with iqa_jax."""
  return sorted(p.stem for p in directory().glob('*.py'))


def find(name: str) -> str:
  """Returns the path of a config given as a path, `configs/x.py` or `x`.

  Raises:
    UserError: no such config; the message lists those there are.
  """
  if os.path.isfile(name):
    return name
  shipped = directory() / f'{pathlib.Path(name).stem}.py'
  if pathlib.Path(name).parent.name in ('', 'configs') and shipped.is_file():
    return str(shipped)
  raise errors.UserError(
    f'no config {name!r}: give a file, or one of {", ".join(names())} '
    f'(in {directory()})'
  )


def to_json(config: ml_collections.ConfigDict) -> str:
  """Returns the configuration as indented JSON with sorted keys."""
  return json.dumps(_plain(config), indent=2, sort_keys=True) + '\n'


def from_json(text: str) -> ml_collections.ConfigDict:
  """Returns the configuration that `to_json` wrote, defaults filled in.

  Raises:
    ValueError: the text is not JSON, or names fields that do not exist.
  """
  config = default()
  try:
    saved = json.loads(text)
  except json.JSONDecodeError as error:
    raise errors.InvalidValue(f'not a JSON configuration: {error}') from error
  _fill(config, saved, '')
  return config


def diff(
  saved: ml_collections.ConfigDict, new: ml_collections.ConfigDict
) -> list[str]:
  """Returns one line a field in which two configurations differ."""
  a, b = _flat(_plain(saved)), _flat(_plain(new))
  return [
    f'{key}: {a.get(key, "absent")!r} -> {b.get(key, "absent")!r}'
    for key in sorted(a.keys() | b.keys())
    if a.get(key) != b.get(key)
  ]


def resolve_arguments(argv: list[str]) -> list[str]:
  """Returns `argv` with --config=NAME turned into --config=PATH.

  Exits with a message when there is no such config.
  """
  resolved = list(argv)
  for i, argument in enumerate(resolved):
    flag, _, value = argument.partition('=')
    if flag not in ('--config', '-config'):
      continue
    try:
      if value:
        resolved[i] = f'--config={find(value)}'
      elif i + 1 < len(resolved):
        resolved[i + 1] = find(resolved[i + 1])
    except errors.UserError as error:
      sys.exit(str(error))
  return resolved


def parse_flags(argv: list[str]) -> list[str]:
  """Parses a command line that has --config; a flags parser of absl's app.

  Exits with a message that names the nearest field where one is mistyped.
  """
  from absl import app

  try:
    return app.parse_flags_with_usage(resolve_arguments(argv))
  except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
    # ml_collections names the nearest field, in a traceback.
    sys.exit(f'{argv[0]}: a --config argument is wrong: {error}')


def _plain(value: Any) -> Any:
  if isinstance(value, ml_collections.ConfigDict):
    return {key: _plain(value[key]) for key in value}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  return value


def _flat(value: Any, prefix: str = '') -> Record:
  if isinstance(value, dict):
    items = ((f'{prefix}.{k}' if prefix else k, v) for k, v in value.items())
  elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
    items = ((f'{prefix}[{i}]', v) for i, v in enumerate(value))
  else:
    return {prefix: value}
  return {k: v for key, item in items for k, v in _flat(item, key).items()}


def _fill(
  config: ml_collections.ConfigDict, saved: object, prefix: str
) -> None:
  if not isinstance(saved, dict):
    raise errors.InvalidValue(
      f'configuration field {prefix or "/"!r} is not a mapping'
    )
  for key, value in saved.items():
    path = f'{prefix}{key}'
    if key not in config:
      near = difflib.get_close_matches(key, list(config), 1)
      hint = f'; did you mean {near[0]!r}?' if near else ''
      raise errors.InvalidValue(
        f'there is no configuration field {path!r}{hint}'
      )
    if path == 'train.phases':
      if not isinstance(value, list) or not all(
        isinstance(p, dict) for p in value
      ):
        raise errors.InvalidValue(
          f'{path!r} is not a list of mappings: {value!r}'
        )
      config[key] = tuple(phase(**p) for p in value)
    elif isinstance(config[key], ml_collections.ConfigDict):
      _fill(config[key], value, f'{path}.')
    else:
      config[key] = _typed(config[key], value, path)


def _typed(old: object, new: Any, path: str) -> Any:
  """Returns `new` if it has the type of `old`; a list becomes a tuple."""
  if isinstance(new, list):
    new = tuple(new)
  integral = isinstance(new, int) and not isinstance(new, bool)
  if isinstance(old, float) and integral:
    new = float(new)
  if type(new) is not type(old):
    raise errors.InvalidValue(
      f'configuration field {path!r} is a {type(old).__name__}, got {new!r}'
    )
  return new
