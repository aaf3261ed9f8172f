"""The detail path: more of the reference than its one token, read by attention in every transformer block.

path.py       what all kinds share: weights of each block, keys and values once an edit, hidden keys
places.py     where a query is in its region, and a key in its reference
reference.py  kind `reference`: the reference through the same UNet
patches.py    kind `patches`: the patch tokens of an image encoder
kinds.py      settings -> a path
training.py   a LatentDiffusion of which the path alone is trained

The frozen model stays as it is, and so do predictions for the learned vector: the path adds only to those for the
reference's token, so that guidance amplifies it, and starts at zero."""
