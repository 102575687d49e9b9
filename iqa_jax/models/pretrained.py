"""Published and own checkpoints -> Flax variables, every tensor accounted for.

`config.model.pretrained` takes

  resnet50.tv_in1k, resnet50.tv2_in1k, vgg16.tv_in1k
              ImageNet weights of torchvision, from the Hugging Face hub's timm
              repositories; downloaded once and cached. The only case in which
              the network is used.
  bundled     the model that comes with the package, which knows simulated
              photographs (config.model.name vgg16, width 0.7)
  x.safetensors, x.pth
              a file under torchvision's or timm's names, or the earlier
              PyTorch work's VGG-16 checkpoint
  a folder    the run directory of a model trained here
  ''          random initialisation

Nothing in a checkpoint is ever executed (see torch_file.py).
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import re

from absl import logging
from flax import traverse_util
import jax.numpy as jnp
import numpy as np

from iqa_jax import errors, models, run_directory
from iqa_jax.aliases import Record, Variables
from iqa_jax.models import evidence, heads, torch_file

TAGS = ('resnet50.tv_in1k', 'resnet50.tv2_in1k', 'vgg16.tv_in1k')
BUNDLED = 'bundled'

# Where a file can be put by hand for a tag, on machines without network.
_FOLDER = pathlib.Path('~/.cache/iqa_jax/weights')
_SAFETENSORS_TYPES = {
  'F64': np.dtype('<f8'),
  'F32': np.dtype('<f4'),
  'F16': np.dtype('<f2'),
  'BF16': np.dtype(jnp.bfloat16),
  'I64': np.dtype('<i8'),
}
_LEAVES = {
  'weight': 'kernel',
  'bias': 'bias',
  'running_mean': 'mean',
  'running_var': 'var',
}


class WeightsError(errors.UserError):
  """Weights cannot be found or read, or don't fit the model."""


def load(
  source: str | os.PathLike | None,
  model: models.Classifier,
  variables: Variables,
) -> tuple[Record, Record]:
  """Replaces a model's variables by those of a checkpoint.

  The backbone must match tensor by tensor, up to the model's last point. The
  head is loaded when the checkpoint has one of the same kind after that point;
  its last layer is left as it is when the number of outputs differs, and the
  whole head when the checkpoint has none or another kind. Cells of evidence
  that see other features, or have other units, are left as they are too, with
  their head.

  Args:
    source: a tag, a file or a run directory (see above); '' or None for none.
    model: the model that the variables belong to.
    variables: what `models.init` returned.

  Returns:
    The variables, float32 arrays, and the record of where they came from:
    'source', 'file' (path or None), 'sha256' (hex or None), and the lists
    'loaded' and 'initialised' (our paths) and 'unused' (the checkpoint's
    names).

  Raises:
    WeightsError: the weights are missing, damaged, not finite, or don't fit;
      the message names the tensors and says what to do.
  """
  flat = traverse_util.flatten_dict(dict(variables), sep='/')
  source = os.fspath(source or '')
  record: Record = dict(source=source, file=None, sha256=None)
  if not source:
    record.update(loaded=[], initialised=sorted(flat), unused=[])
    return dict(variables), record

  if source in TAGS:
    path = _download(source)
  elif source == BUNDLED:
    path = pathlib.Path(run_directory.bundled())
  else:
    path = pathlib.Path(source).expanduser()
  record['file'] = str(path.absolute())
  named, unused, record['sha256'] = _named(path, source, model)
  fitting, others = _fit(path, named, flat, model)
  record.update(
    loaded=sorted(fitting),
    initialised=sorted(flat.keys() - fitting.keys()),
    unused=sorted(unused + others),
  )
  logging.info(
    'loaded %d of %d tensors from %s (sha256 %s)%s',
    len(fitting),
    len(flat),
    path,
    record['sha256'][:12],
    ''.join(f'; initialised anew: {p}' for p in record['initialised']),
  )
  flat |= {name: jnp.asarray(value) for name, value in fitting.items()}
  return traverse_util.unflatten_dict(flat, sep='/'), record


def _named(
  path: pathlib.Path, source: str, model: models.Classifier
) -> tuple[Record, list[str], str]:
  """Returns {our path: (name, array)}, names not needed, and the digest."""
  if path.is_dir():
    named, digest = _from_run(path)
    return named, [], digest
  if not path.is_file():
    raise WeightsError(
      f'pretrained={source!r} is no file, no run directory and none of the '
      f'tags {", ".join(TAGS)}'
    )
  tensors, digest = read(path)
  return *_from_torch(path, tensors, model), digest


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], str]:
  """Returns the tensors of a .safetensors or .pth file, and its sha256.

  Raises:
    WeightsError: the file is damaged, malicious or of another kind.
  """
  path = pathlib.Path(path)
  try:
    with open(path, 'rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
    published = re.search(r'-([0-9a-f]{8})\.pth$', path.name)
    if published and not digest.startswith(published[1]):
      raise WeightsError(
        f'{path} is damaged: its sha256 is {digest[:8]}..., its name says '
        f'{published[1]}; download it again'
      )
    if path.suffix == '.safetensors':
      return _read_safetensors(path), digest
    if path.suffix in ('.pth', '.pt', '.tar', '.bin'):
      return torch_file.read(path), digest
  except OSError as error:
    raise WeightsError(f'{path} cannot be read: {error}') from error
  except torch_file.TorchFileError as error:
    raise WeightsError(f'{path}: {error}') from error
  raise WeightsError(
    f'{path}: unknown kind {path.suffix!r}; give a .safetensors or .pth file'
  )


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  import safetensors  # pylint: disable=import-outside-toplevel

  try:
    tensors = safetensors.deserialize(path.read_bytes())
  except safetensors.SafetensorError as error:
    raise WeightsError(
      f'{path} is damaged or not safetensors ({error}); download it again'
    ) from error
  arrays = {}
  for name, tensor in tensors:
    dtype = _SAFETENSORS_TYPES.get(tensor['dtype'])
    if dtype is None:
      raise WeightsError(
        f'{path}: tensor {name} has type {tensor["dtype"]}, expected one of '
        f'{", ".join(_SAFETENSORS_TYPES)}'
      )
    arrays[name] = np.frombuffer(tensor['data'], dtype).reshape(tensor['shape'])
  return arrays


def _download(tag: str) -> pathlib.Path:
  """Returns the cached file of a tag, downloading it when there is none."""
  by_hand = _FOLDER.expanduser() / f'{tag}.safetensors'
  if by_hand.is_file():
    return by_hand
  import huggingface_hub  # pylint: disable=import-outside-toplevel

  fetch = functools.partial(
    huggingface_hub.hf_hub_download, f'timm/{tag}', 'model.safetensors'
  )
  try:
    return pathlib.Path(fetch(local_files_only=True))
  except OSError:
    logging.info('downloading %s from the Hugging Face hub', tag)
  try:
    return pathlib.Path(fetch())
  except OSError as error:
    raise WeightsError(
      f'the weights {tag} cannot be downloaded ({type(error).__name__}). On a '
      'machine with network access, fetch\n'
      f'  https://huggingface.co/timm/{tag}/resolve/main/model.safetensors\n'
      f'and put it here as\n  {by_hand}\n'
      'or anywhere, giving its path as --config.model.pretrained'
    ) from error


def _from_run(path: pathlib.Path) -> tuple[Record, str]:
  """Returns a trained model's tensors by our paths, and its digest."""
  try:
    saved = run_directory.load_model(path)
  except run_directory.RunDirectoryError as error:
    raise WeightsError(str(error)) from error
  config = saved.record['config']['model']
  kind = models.create(config['name'], 1, head=config['head']).head.kind
  named = {}
  flat = traverse_util.flatten_dict(saved.variables, sep='/')
  for name, value in flat.items():
    # The head goes by its kind, as in foreign checkpoints.
    ours = re.sub('^(params|batch_stats)/head/', rf'\1/{kind}/', name)
    named[ours] = (name, value)
  return named, saved.digest


def _from_torch(
  path: pathlib.Path, tensors: dict[str, np.ndarray], model: models.Classifier
) -> tuple[Record, list[str]]:
  """Returns {our path: (name, array in our layout)} and the unneeded names."""
  named: Record = {}
  foreign, unneeded = [], []
  for name, value in tensors.items():
    layer, _, leaf = name.rpartition('.')
    # DataParallel's prefix, and the attribute of the earlier work's network.
    layer = layer.removeprefix('module.').removeprefix('model.')
    place = model.backbone.from_torch(layer)
    if place is None or leaf not in (*_LEAVES, 'num_batches_tracked'):
      foreign.append(name)
    elif leaf == 'num_batches_tracked':  # only used without a momentum
      unneeded.append(name)
    else:
      ours, value = _ours(place, leaf, value)
      if ours in named and not np.array_equal(named[ours][1], value):
        raise WeightsError(
          f'{path}: {named[ours][0]} and {name} are the same layer but differ; '
          'remove one of them'
        )
      named.setdefault(ours, (name, value))
  if foreign:
    raise WeightsError(
      f'{path} does not fit {type(model.backbone).__name__}: '
      f'{_count(foreign, "unexpected tensor")}'
    )
  return named, unneeded


def _ours(place: str, leaf: str, value: np.ndarray) -> tuple[str, np.ndarray]:
  """Returns our path and the array in our layout of a torch tensor."""
  collection = 'batch_stats' if leaf.startswith('running') else 'params'
  leaf = _LEAVES[leaf]
  if leaf == 'kernel' and value.ndim == 1:
    leaf = 'scale'
  elif leaf == 'kernel' and place.startswith('backbone/'):
    value = np.moveaxis(value, (0, 1), (-1, -2))  # OIHW -> HWIO
  elif leaf == 'kernel' and value.ndim >= 2:
    # timm's dense layers are convolutions over channels, rows and columns:
    # the order in which torchvision flattens.
    value = value.reshape(value.shape[0], -1).T
  return f'{collection}/{place}/{leaf}', value


def _fit(
  path: pathlib.Path,
  named: Record,
  flat: Record,
  model: models.Classifier,
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Returns the tensors that replace the model's, and the names of the rest."""
  fitting: dict[str, np.ndarray] = {}
  unused: list[str] = []
  unexpected: list[str] = []
  misshaped: list[str] = []
  last = {f'params/head/logits/{leaf}' for leaf in ('kernel', 'bias')}
  beyond = set(model.backbone.points) - set(model.points)
  cut = any(ours.split('/')[2] in beyond for ours in named)
  # Cells that see other features learn anew, and what judges them.
  cut |= any(
    value.shape != flat[ours].shape
    for ours, (_, value) in named.items()
    if ours in flat and ours.split('/')[1] == 'neck'
  )
  for ours, (name, value) in named.items():
    collection, part, layer = ours.split('/', 2)
    if part in (*heads.KINDS, 'imagenet', evidence.Head.kind):
      if part != model.head.kind or cut:
        unused.append(name)
        continue
      ours = f'{collection}/head/{layer}'
    elif layer.split('/')[0] in beyond or (
      part == 'neck' and (cut or not model.neck)
    ):
      unused.append(name)
      continue
    if ours not in flat:
      unexpected.append(name)
    elif value.shape == flat[ours].shape:
      fitting[ours] = value
    elif ours in last and value.shape[:-1] == flat[ours].shape[:-1]:
      unused.append(name)  # another number of outputs
    else:
      misshaped.append(
        f'{name} (as ours {list(value.shape)}, expected '
        f'{list(flat[ours].shape)})'
      )
  missing = sorted(flat.keys() - fitting.keys())
  if any('/head/' in ours for ours in fitting):
    missing = [ours for ours in missing if ours not in last]
  else:
    # What lies between begins anew with the head.
    missing = [m for m in missing if m.split('/')[1] not in ('head', 'neck')]
  if len(fitting.keys() & last) == 1:
    missing += sorted(last - fitting.keys())
  problems = [
    _count(unexpected, 'unexpected tensor'),
    _count(misshaped, 'mis-shaped tensor'),
    _count(missing, 'missing tensor') if not misshaped else '',
  ]
  if any(problems):
    raise WeightsError(
      f'{path} does not fit the model: {"; ".join(filter(None, problems))}. '
      'Set config.model (name, width, depth, head) to what the weights are '
      'of, or give other weights'
    )
  return {p: _checked(path, p, value) for p, value in fitting.items()}, unused


def _checked(path: pathlib.Path, name: str, value: np.ndarray) -> np.ndarray:
  """Returns the tensor as float32; refuses what is no usable number."""
  if not jnp.issubdtype(value.dtype, jnp.floating):
    raise WeightsError(f'{path}: {name} is {value.dtype}, expected floats')
  value = value.astype(np.float32)
  bad = ~np.isfinite(value)
  if name.endswith('/var'):
    bad |= value < 0
  if bad.any():
    raise WeightsError(
      f'{path}: {name} holds {value[bad][0]} at {bad.sum()} of {bad.size} '
      'places; the file is damaged or its training diverged'
    )
  return value


def _count(names: list[str], what: str) -> str:
  """Returns 'n whats: a, b, c ...', or '' for none."""
  if not names:
    return ''
  shown = ', '.join(names[:8]) + (', ...' if len(names) > 8 else '')
  return f'{len(names)} {what}{"s" if len(names) > 1 else ""}: {shown}'
