"""Domain weights → model: bank, router, training step, specialists. Needs torch, transformers, safetensors only."""
