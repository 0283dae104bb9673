"""Stands in for itk (1.5 GB) where MONAI Label's stock writer uses it, by SimpleITK, the same library.

Only what ``monailabel.transform.writer.write_itk`` calls. For another app that needs more: pip install itk
"""

import numpy as np
import SimpleITK as sitk


class _Image:
    """An image whose geometry is set with arrays, as itk's Python package takes them."""

    def __init__(self, array):
        self.image = sitk.GetImageFromArray(array)

    def SetDirection(self, matrix):
        self.image.SetDirection(np.asarray(matrix, dtype=float).ravel().tolist())

    def SetSpacing(self, spacing):
        self.image.SetSpacing(np.asarray(spacing, dtype=float).tolist())

    def SetOrigin(self, origin):
        self.image.SetOrigin(np.asarray(origin, dtype=float).tolist())


def image_from_array(array):
    return _Image(array)


def matrix_from_array(array):
    return array


def size(image):
    return image.image.GetSize()


def imwrite(image, filename, compression=False):
    sitk.WriteImage(image.image, str(filename), bool(compression))
