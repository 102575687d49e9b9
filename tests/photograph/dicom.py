"""Uncompressed DICOM files, as a fundus camera writes them."""

import os

import numpy as np


def save(
  path: str | os.PathLike,
  pixels: np.ndarray,
  *,
  bits: int = 8,
  kind: str | None = None,
) -> None:
  """Writes uint8 RGB [h, w, 3] or grey [h, w] of `bits` stored bits."""
  import pydicom

  dataset = pydicom.Dataset()
  dataset.file_meta = pydicom.dataset.FileMetaDataset()
  dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  dataset.file_meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.77.1.5.1'
  dataset.file_meta.MediaStorageSOPInstanceUID = '1.2.3'
  dataset.Rows, dataset.Columns = pixels.shape[:2]
  dataset.SamplesPerPixel = 1
  if pixels.ndim == 3:
    dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
  dataset.PhotometricInterpretation = kind or (
    'RGB' if pixels.ndim == 3 else 'MONOCHROME2'
  )
  dataset.BitsAllocated, dataset.BitsStored = 8 * pixels.itemsize, bits
  dataset.HighBit, dataset.PixelRepresentation = bits - 1, 0
  dataset.PixelData = pixels.tobytes()
  dataset.save_as(path, enforce_file_format=True)
