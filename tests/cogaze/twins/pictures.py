"""Small invented pictures, as DICOM, PNG and JPEG files."""

import os
import shutil
import warnings
from pathlib import Path

import cv2
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ComputedRadiographyImageStorage, JPEGBaseline8Bit

SIZE = (32, 24)  # width, height


def pixels(seed, size=SIZE):
    """Gray levels (rows, cols), another picture for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4)).astype(np.uint8)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def copy_of(source, target):
    """Copy a twin to spoil it: tables are copies, pictures the same files, to be replaced but never written into."""
    return Path(shutil.copytree(source, target, copy_function=_copied))


def _copied(source, target):
    if Path(source).suffix in (".dcm", ".png", ".jpg"):
        os.link(source, target)
    else:
        shutil.copyfile(source, target)


def write_picture(path, image, suffix=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(cv2.imencode(suffix or path.suffix, image)[1].tobytes())


def write_dicom(path, image, uid="1.2.3", **tags):
    """8 bits, MONOCHROME2, JPEG baseline, without rescale or window tags."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = UID(uid)
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    meta.ImplementationClassUID = UID("2.25.1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ages without a unit, as these datasets write them
        dicom = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        dicom.SOPClassUID, dicom.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        dicom.Modality, dicom.BodyPartExamined, dicom.ConversionType = "CR", "CHEST", "WSD"
        for name, value in tags.items():
            setattr(dicom, name, value)
        dicom.Rows, dicom.Columns = image.shape
        dicom.SamplesPerPixel, dicom.PixelRepresentation, dicom.PhotometricInterpretation = 1, 0, "MONOCHROME2"
        dicom.BitsAllocated, dicom.BitsStored, dicom.HighBit = 8, 8, 7
        dicom.LossyImageCompression = "01"
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        dicom.PixelData = encapsulate([jpeg])
        path.parent.mkdir(parents=True, exist_ok=True)
        dicom.save_as(path, enforce_file_format=True)
