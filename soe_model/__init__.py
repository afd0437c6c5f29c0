"""Domain weights → model: bank, router, training, specialists. Training needs only torch, transformers, safetensors."""

import os

# Ask for large pages for large tensors, where the kernel lets a program ask: a bank is read in long streams. PyTorch
# reads this at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
