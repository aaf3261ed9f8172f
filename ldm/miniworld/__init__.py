"""The small world: a data set, benchmark, CLIP and classifier, small enough to train the method on a laptop.

scene, light, identity, shapes, patterns    scenes of painted shapes, drawn by formula from a seed
captions     what the objects are called
write        the data set and the benchmark as files
crops        objects cut out of scenes: training data of CLIP and oracle
clip         trains CLIP
oracle       the classifier of shape, pattern and colours, and its training
scores       the oracle's metrics and their scorer
parts        scores of the miniature model's parts by themselves
table        the table of a miniature model
presets      the table of ways to sample
"""
