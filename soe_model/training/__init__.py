"""One pretraining step, its state and its time."""
