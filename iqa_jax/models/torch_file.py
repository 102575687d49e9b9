"""Reads the tensors of a torch.save file without torch and without pickle.

A .pth file holds a pickle, and unpickling runs whatever calls the file asks
for. This module never unpickles: it interprets the few opcodes with which
torch writes a dictionary of tensors, and knows four names - the ordered
dictionary, the two functions that rebuild tensors and the storage types - as
mere tags. A file that names anything else is refused; nothing is imported or
called on its behalf.

Both layouts are read: the zip archive (torch 1.6 and later) and the stream of
pickles before it, in which torchvision's older files are published.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math
import os
import pickletools
import struct
from typing import IO, Any, BinaryIO
import zipfile

import ml_dtypes
import numpy as np

from iqa_jax import errors

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
# More than any network has; a larger value is damage, or an attack on memory.
_MAX_OPCODES = 10_000_000

_DTYPES = {
  'DoubleStorage': np.dtype('<f8'),
  'FloatStorage': np.dtype('<f4'),
  'HalfStorage': np.dtype('<f2'),
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'LongStorage': np.dtype('<i8'),
  'IntStorage': np.dtype('<i4'),
  'ShortStorage': np.dtype('<i2'),
  'CharStorage': np.dtype('i1'),
  'ByteStorage': np.dtype('u1'),
  'BoolStorage': np.dtype('?'),
}


class TorchFileError(errors.UserError):
  """The file is not a readable, harmless dictionary of tensors."""


@dataclasses.dataclass(frozen=True)
class _Tag:
  """A name the pickle may mention, such as torch.FloatStorage."""

  name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
  dtype: np.dtype
  key: str
  count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  stride: tuple[int, ...]


_DICT = _Tag('collections.OrderedDict')
_TENSOR = _Tag('torch._utils._rebuild_tensor_v2')
_PARAMETER = _Tag('torch._utils._rebuild_parameter')
_KNOWN = {tag.name: tag for tag in (_DICT, _TENSOR, _PARAMETER)} | {
  f'torch.{name}': _Tag(f'torch.{name}') for name in _DTYPES
}


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Returns the tensors of a state dict saved by torch.save.

  Args:
    path: a file holding a flat dictionary of tensors, alone or as the entry
      'state_dict' or 'model_state_dict' of a training checkpoint.

  Returns:
    Arrays of the file's shapes and types (bfloat16 as ml_dtypes').

  Raises:
    TorchFileError: the file is damaged, of another kind, or asks for code.
    OSError: the file cannot be opened.
  """
  with open(path, 'rb') as file:
    try:
      content, load = (_zip if zipfile.is_zipfile(file) else _legacy)(file)
      tensors = _state_dict(content)
      storages = {t.storage.key: t.storage for t in tensors.values()}
      arrays = {key: load(storage) for key, storage in storages.items()}
      return {
        name: _view(tensor, arrays[tensor.storage.key])
        for name, tensor in tensors.items()
      }
    except TorchFileError:
      raise
    # A damaged file fails in as many ways as there are bytes in it.
    except Exception as error:
      raise TorchFileError(
        f'damaged or not saved by torch.save ({type(error).__name__}: {error})'
      ) from error


def _zip(file: BinaryIO) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
  archive = zipfile.ZipFile(file)
  names = archive.namelist()
  pickles = [name for name in names if name.split('/')[1:] == ['data.pkl']]
  if len(pickles) != 1:
    raise TorchFileError(
      'a zip archive without a data.pkl: not a torch.save file (TorchScript '
      'archives are not read; save the state_dict() instead)'
    )
  root = pickles[0].split('/')[0]
  if (
    f'{root}/byteorder' in names
    and _member(archive, f'{root}/byteorder') != b'little'
  ):
    raise TorchFileError('saved on a big-endian machine; save it again')

  def load(storage: _Storage) -> np.ndarray:
    return _numbers(_member(archive, f'{root}/data/{storage.key}'), storage)

  with archive.open(_info(archive, pickles[0])) as member:
    return _interpret(member), load


def _info(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
  info = archive.getinfo(name)
  # torch never compresses, so that a small file can't unfold into a huge one.
  if info.compress_type != zipfile.ZIP_STORED:
    raise TorchFileError(f'{name} is compressed, which torch never does')
  return info


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
  return archive.read(_info(archive, name))


def _legacy(file: BinaryIO) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
  file.seek(0)
  if _interpret(file) != _MAGIC or _interpret(file) != _PROTOCOL:
    raise TorchFileError('not saved by torch.save')
  if not _interpret(file).get('little_endian'):
    raise TorchFileError('saved on a big-endian machine; save it again')
  storages: dict[str, _Storage] = {}
  content = _interpret(file, storages)
  keys = _interpret(file)
  end = os.fstat(file.fileno()).st_size
  places = {}
  for key in keys:
    (count,) = struct.unpack('<q', file.read(8))
    storage = storages[key]
    if count != storage.count:
      raise TorchFileError(
        f'storage {key} holds {count} numbers, its tensor says {storage.count}'
      )
    places[key] = file.tell()
    if file.seek(count * storage.dtype.itemsize, os.SEEK_CUR) > end:
      raise TorchFileError(f'storage {key} is cut off: the file is truncated')

  def load(storage: _Storage) -> np.ndarray:
    file.seek(places[storage.key])
    return _numbers(file.read(storage.count * storage.dtype.itemsize), storage)

  return content, load


def _numbers(data: bytes, storage: _Storage) -> np.ndarray:
  if len(data) != storage.count * storage.dtype.itemsize:
    raise TorchFileError(
      f'storage {storage.key} is {len(data)} bytes, expected {storage.count} '
      f'numbers of type {storage.dtype}'
    )
  return np.frombuffer(data, storage.dtype)


def _state_dict(content: object) -> dict[str, _Tensor]:
  for key in ('state_dict', 'model_state_dict'):
    if isinstance(content, dict) and isinstance(content.get(key), dict):
      content = content[key]
  if not isinstance(content, dict) or not content:
    raise TorchFileError(
      f'holds a {type(content).__name__}, expected a dictionary of tensors; '
      'save the state_dict() of the model'
    )
  for name, value in content.items():
    if not isinstance(name, str) or not isinstance(value, _Tensor):
      raise TorchFileError(
        f'entry {name!r} is no tensor; save the state_dict() of the model, '
        "alone or as the entry 'state_dict'"
      )
  return content


def _view(tensor: _Tensor, data: np.ndarray) -> np.ndarray:
  """Returns the tensor's part of its storage, within bounds."""
  numbers = (tensor.offset, *tensor.shape, *tensor.stride)
  if any(type(n) is not int or n < 0 for n in numbers):
    raise TorchFileError('a tensor has an impossible layout')
  size = math.prod(tensor.shape)
  last = tensor.offset + sum(
    (n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True)
  )
  # More elements than numbers would be a small file's way to fill the memory.
  if size > data.size or (size and last >= data.size):
    raise TorchFileError(
      f'tensor of shape {list(tensor.shape)} lies outside its storage of '
      f'{data.size} numbers'
    )
  return np.lib.stride_tricks.as_strided(
    data[tensor.offset :],
    tensor.shape,
    [step * data.itemsize for step in tensor.stride],
    writeable=False,
  )


def _interpret(
  file: IO[bytes], storages: dict[str, _Storage] | None = None
) -> Any:
  """Returns the value of the pickle at the file's position.

  Only opcodes that build plain values are known; the rest is refused. Values
  may share parts and contain themselves, so nobody may walk, print or hash
  them whole.

  Args:
    file: read up to the end of the pickle.
    storages: gets every storage the pickle mentions, by key.
  """
  machine = _Machine({} if storages is None else storages)
  for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
    if number > _MAX_OPCODES:
      raise TorchFileError(f'more than {_MAX_OPCODES} pickle opcodes')
    if opcode.name == 'STOP':
      return machine.stack.pop()
    machine.do(opcode.name, argument)
  raise TorchFileError('the pickle has no end')


_CONSTANTS: dict[str, Callable[[], Any]] = {
  'NONE': lambda: None,
  'NEWTRUE': lambda: True,
  'NEWFALSE': lambda: False,
  'EMPTY_DICT': dict,
  'EMPTY_LIST': list,
  'EMPTY_TUPLE': tuple,
}


class _Machine:
  """The stack on which a pickle's opcodes build its value."""

  def __init__(self, storages: dict[str, _Storage]):
    self.stack: list[Any] = []
    self._marks: list[int] = []
    self._memo: dict[Any, Any] = {}
    self._storages = storages

  def do(self, name: str, argument: Any) -> None:
    """Carries out an opcode; raises TorchFileError for one not known."""
    stack = self.stack
    match name:
      case 'PROTO':
        pass
      case 'MARK':
        self._marks.append(len(stack))
      case 'BINPUT' | 'LONG_BINPUT':
        self._memo[argument] = stack[-1]
      case 'BINGET' | 'LONG_BINGET':
        stack.append(self._memo[argument])
      case 'BININT' | 'BININT1' | 'BININT2' | 'LONG1' | 'BINFLOAT':
        stack.append(argument)
      case 'BINUNICODE':
        stack.append(argument)
      case _ if name in _CONSTANTS:
        stack.append(_CONSTANTS[name]())
      case 'TUPLE':
        stack.append(tuple(self._since_mark()))
      case 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
        count = int(name[-1])
        stack[-count:] = [tuple(stack[-count:])]
      case 'APPEND':
        item = stack.pop()
        _extend(stack[-1], [item])
      case 'APPENDS':
        items = self._since_mark()
        _extend(stack[-1], items)
      case 'SETITEM':
        items = [stack.pop(), stack.pop()]
        _update(stack[-1], items[::-1])
      case 'SETITEMS':
        items = self._since_mark()
        _update(stack[-1], items)
      case 'GLOBAL':
        stack.append(_known(str(argument).replace(' ', '.')))
      case 'BINPERSID':
        storage = _storage(stack.pop())
        self._storages[storage.key] = storage
        stack.append(storage)
      case 'REDUCE':
        arguments = stack.pop()
        stack.append(_reduce(stack.pop(), arguments))
      case 'BUILD':
        # The state dict's version numbers, an attribute nobody here reads.
        stack.pop()
      case _:
        raise TorchFileError(
          f'pickle opcode {name} is not one that a dictionary of tensors needs'
        )

  def _since_mark(self) -> list[Any]:
    start = self._marks.pop()
    items = self.stack[start:]
    del self.stack[start:]
    return items


def _extend(target: object, items: list[object]) -> None:
  if type(target) is not list:
    raise TorchFileError('the pickle appends to something that is no list')
  target.extend(items)


def _update(target: object, items: list[object]) -> None:
  keys = items[::2]
  if type(target) is not dict or any(type(k) not in (str, int) for k in keys):
    raise TorchFileError('the pickle holds an impossible dictionary')
  target.update(zip(keys, items[1::2], strict=True))


def _known(name: str) -> _Tag:
  if name not in _KNOWN:
    raise TorchFileError(
      f'refused: the file asks for {name}, which is no part of a dictionary of '
      'tensors. Either it was saved as a whole model (save its state_dict() '
      'instead), or it is malicious'
    )
  return _KNOWN[name]


def _storage(identity: Any) -> _Storage:
  kind, tag, key, _, count = identity[:5]
  dtype = _DTYPES.get(tag.name.removeprefix('torch.'))
  types = (type(key), type(count))
  if kind != 'storage' or dtype is None or types != (str, int) or count < 0:
    raise TorchFileError('the pickle refers to something that is no storage')
  return _Storage(dtype, key, count)


def _reduce(function: object, arguments: Any) -> object:
  if function is _DICT and arguments == ():
    return {}
  if function is _TENSOR:
    storage, offset, shape, stride = arguments[:4]
    if isinstance(storage, _Storage):
      return _Tensor(storage, offset, shape, stride)
  if function is _PARAMETER and isinstance(arguments[0], _Tensor):
    return arguments[0]
  raise TorchFileError('refused: the pickle makes a call that torch never does')
