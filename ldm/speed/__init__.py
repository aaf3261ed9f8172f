"""Benchmarks: how fast edits, training and the preparation of data are, and what they cost.

contestants.py     what is compared: this implementation, with and without the fast networks, and diffusers' pipeline
compare.py         contestants measured in turn: seconds, ratios, differences
allocators.py      a guided step on a CPU, with and without keeping memory between steps
profile.py         one step of the UNet by kinds of layers
training.py        seconds and memory of a training step
data.py            preparing and loading training data, beside the published procedure (published_data.py)"""
