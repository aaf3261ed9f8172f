"""How fast this implementation is, and what it costs.

contestants.py     what is compared: this implementation, with and without the fast networks, and diffusers' pipeline
compare.py         contestants measured in turn: seconds, ratios, differences
allocators.py      what keeping memory between steps is worth on a CPU
profile.py         one step of the UNet by kinds of layers
training.py        seconds and memory of a training step
data.py            preparing and loading training data, beside the published procedure (published_data.py)"""
