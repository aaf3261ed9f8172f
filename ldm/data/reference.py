"""The reference: what is around the box, cut from the very picture it will be painted into, and changed enough that the
model cannot paste it back (Yang et al. 2022, section 3.3).

The published recipe with the parameters that were in effect, as functions of (picture, rng). They are written out here
because the library they came from (albumentations 0.4.3) gave the same names other meanings in later versions: its
elastic transform moved three anchor points by up to 50 px and bent the picture by less than OpenCV's interpolation can
resolve, so it was a random affine map, which is what stands here."""

from __future__ import annotations

import cv2
import numpy as np

SIZE = 224
P_FLIP, P_ROTATE, P_BLUR, P_AFFINE = 0.5, 0.5, 0.3, 0.3
ANGLE = 20.0  # degrees, at most
BLUR_SIZES = (3, 5, 7)  # px
ANCHORS = np.float32([(186, 186), (186, 38), (38, 38)])  # the middle (112, 112) and 224 // 3 around it
ANCHOR_SHIFT = 50.0  # px, at most, in x and in y


def _warp(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """matrix (2,3): where a point goes. Beyond the picture its mirror image shows."""
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
    """The affine map that moves the three anchors by `shifts` (3,2), in px; (224,224,3) in and out."""
    return _warp(picture, cv2.getAffineTransform(ANCHORS, ANCHORS + shifts.astype(np.float32)))


def augment_reference(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(224,224,3) uint8 -> the same size, flipped, rotated, blurred and sheared, each with its own probability."""
    flipped, rotated, blurred, sheared = rng.random(4) < (P_FLIP, P_ROTATE, P_BLUR, P_AFFINE)
    angle, blur, shifts = (
        rng.uniform(-ANGLE, ANGLE),
        rng.choice(BLUR_SIZES),
        rng.uniform(-ANCHOR_SHIFT, ANCHOR_SHIFT, (3, 2)),
    )
    if flipped:
        picture = cv2.flip(picture, 1)
    if rotated:
        picture = rotate(picture, angle)
    if blurred:
        picture = cv2.blur(picture, (int(blur), int(blur)))
    if sheared:
        picture = random_affine(picture, shifts)
    return picture
