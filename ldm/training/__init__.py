"""Training: a config -> a run of Lightning's Trainer, its checkpoints and logs.

run            train: a config -> data, model, callbacks and Trainer, and the run's folder
start          the weights that training starts from
devices        the config's lightning.trainer -> keyword arguments of the Trainer
callbacks      throughput, grids of samples, a loss that is not finite
checkpoints    writing and loading a run's checkpoints
adapters       training an adapter: LoRA, v, biases and scales, singular values
"""
