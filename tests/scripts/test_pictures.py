"""The picture of what each field of the augmentation does."""

import numpy as np

from scripts import pictures


def test_rows_show_what_their_field_does():
    images = np.stack([pictures.scene(32 * i) for i in range(2)])
    assert len(np.unique(images.reshape(2, -1), axis=0)) == 2
    np.testing.assert_array_equal(pictures.row({}, images), images)
    hidden = (pictures.row({"cutout": 32}, images) == 128).all(-1)
    assert hidden.any((1, 2)).all() and hidden.sum((1, 2)).max() <= 32 * 32
    mixed = pictures.row({"cutmix": 1.0}, images)
    assert ((mixed == images) | (mixed == images[::-1])).all() and not np.array_equal(mixed, images)
