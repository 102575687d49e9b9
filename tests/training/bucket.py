"""gs:// in a local folder, as a bucket that several processes see."""

from __future__ import annotations

import os

import fsspec
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem


def install(folder: str) -> None:
  """Makes gs://NAME/... lie in `folder`/NAME/..., for this process."""

  class Bucket(DirFileSystem):
    protocol = 'gs'
    cachable = False

    def __init__(self, **_):
      super().__init__(folder, LocalFileSystem(auto_mkdir=True))

    @classmethod
    def _strip_protocol(cls, path):
      return os.fspath(path).removeprefix('gs://').strip('/')

    def find(self, path, **options):
      return super().find(path, **options) if self.exists(path) else []

  fsspec.register_implementation('gs', Bucket, clobber=True)
