"""Data: pictures with boxes -> training samples and benchmarks.

prepare/        annotations -> index.py: which pictures a split has, and the boxes on each
views.py        pairs: other pictures of an object, for its reference
masks.py        the geometry of a sample: region, window, reference
reference.py    the reference's augmentation
sample.py       a picture and a box -> a batch entry
open_images.py, shards.py, datamodule.py      datasets and loaders
bench/          benchmarks laid out like COCOEE
"""
