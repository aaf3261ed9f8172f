"""Training: a config -> a run of Lightning's Trainer, its checkpoints and what it logs."""
