"""Domain weights → model: bank, router, training step, specialists. Needs torch, transformers, safetensors only."""

import os

# Large pages for large tensors where the kernel leaves the choice to programs: a bank is read in long streams. Read by
# PyTorch at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
