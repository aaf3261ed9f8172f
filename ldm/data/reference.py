"""The reference of a training sample: the box and its surroundings, cut from the picture that it is painted into, and
changed so that the model cannot paste it back (Yang et al. 2022, section 3.3).

The published recipe used albumentations 0.4.3. Later versions compute something else under the same names; the
functions here compute what 0.4.3 did. Its elastic transform moved three anchor points by up to 50 px and bent the
picture by less than OpenCV's interpolation can resolve, so it is a random affine map. `augmentation.py` makes
albumentations transforms of these functions."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from ldm.util import UserError, own_or_shipped

Augmentation = Callable[[np.ndarray, np.random.Generator], np.ndarray]

SIZE = 224
P_FLIP, P_ROTATE, P_BLUR, P_AFFINE = 0.5, 0.5, 0.3, 0.3
ANGLE = 20.0  # maximum, degrees
BLUR_SIZES = (3, 5, 7)  # px
ANCHOR_SHIFT = 50.0  # maximum in x and in y, px


def _warp(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """matrix (2,3): maps points of the picture to points of the result. Beyond its borders the picture is mirrored."""
    return cv2.warpAffine(
        picture, matrix, picture.shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )


def resize_reference(region: np.ndarray) -> np.ndarray:
    """(h,w,3) uint8 -> (224,224,3), squashed."""
    return cv2.resize(region, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)


def rotate(picture: np.ndarray, angle: float) -> np.ndarray:
    """angle: degrees, anticlockwise, around the middle."""
    height, width = picture.shape[:2]
    return _warp(picture, cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0))


def random_affine(picture: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """The affine map that moves three anchors, a third of the picture from its middle, by `shifts` (3,2), in px."""
    height, width = picture.shape[:2]
    x, y, third = width // 2, height // 2, min(height, width) // 3
    anchors = np.float32([(x + third, y + third), (x + third, y - third), (x - third, y - third)])
    return _warp(picture, cv2.getAffineTransform(anchors, anchors + shifts.astype(np.float32)))


def load_augmentation(setting: bool | str) -> Augmentation | None:
    """setting: true for the published recipe, false for no augmentation, or the path of a file with another
    albumentations pipeline. The result takes (picture (224,224,3) uint8, rng) and returns a picture of the same shape.

    Raises UserError: a file that cannot be used, albumentations is not installed."""
    if not isinstance(setting, bool | str):
        raise UserError(
            f"reference_augmentation = {setting} has no meaning: use true, false or the path of a pipeline's file"
        )
    if setting is False:
        return None
    from ldm.data import augmentation  # albumentations takes 0.4 s and 40 MB, and only training needs it

    if setting is True:
        return augmentation.Augmentation(augmentation.published_pipeline())
    return augmentation.Augmentation(augmentation.load_pipeline(own_or_shipped(setting)))
