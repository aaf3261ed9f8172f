"""The small world: a data set, benchmark, CLIP and classifier, small enough to train the method on a laptop.

scene, light, identity, shapes, patterns    scenes of painted shapes, drawn by formula from a seed
individuals  objects with an outline and a texture of their own, in families of look-alikes
worlds       what scenes show: the twelve shapes, or individuals
captions     what the objects are called
write        the data set and the benchmark as files
crops        objects cut out of scenes: training data of CLIP and oracle
clip         trains CLIP
oracle       the classifier of shape, pattern and colours, and its training
gallery      views of a benchmark's individuals, and each case's look-alikes
families     crops of look-alikes: training data of the recogniser
recogniser   the embedding that tells individuals apart, and its training
scores       the metrics of oracle and recogniser, and their scorers
parts        scores of the miniature model's parts by themselves
table        the table of a miniature model
presets      the table of ways to sample
"""
