"""A pretraining run around its arithmetic: settings, checks, workers, checkpoints, logs."""
