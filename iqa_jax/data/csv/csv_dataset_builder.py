"""Photographs that you labelled yourself, listed in a CSV file."""

from __future__ import annotations

from collections.abc import Mapping
import os
from typing import Any

import tensorflow_datasets as tfds

from iqa_jax.data import building
from iqa_jax.data.csv import labels
from iqa_jax.data.records import Entry


class Builder(building.PhotographBuilder):
  """Any labelled photographs; a column `split` may say what they are for."""

  VERSION = tfds.core.Version('1.1.0')
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Put a CSV file with a header (labels.csv, or --config.data.csv.file) and the
  photographs into one folder (--config.data.manual_dir). Columns: path,
  relative to the folder; patient; at least one of verdict (adequate,
  inadequate), grade (good, usable, reject) and BRSet's criteria (adequate,
  inadequate); and, if you have them, camera, site, eye, split. Columns of other
  names are mapped: --config.data.csv.patient=subject_id
  """

  def __init__(
    self, *, columns: Mapping[str, str] | None = None, **kwargs: Any
  ):
    self.columns = columns
    super().__init__(**kwargs)

  def entries(  # type: ignore[override]
    self, manual_dir: str | os.PathLike
  ) -> dict[str, list[Entry]]:
    return labels.entries(manual_dir, columns=self.columns)
