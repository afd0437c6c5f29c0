"""The GPUs for which a run's time can be predicted: memory, peak and bandwidth.

Peaks are the maker's for dense bfloat16 on the SXM boards: NVIDIA A100 data sheet (312 TFLOP/s; 1555 and 2039 GB/s),
H100 data sheet (989 TFLOP/s, 3.35 TB/s), H200 data sheet (989 TFLOP/s, 4.8 TB/s). Memory is what PyTorch reports for
such a board, rounded down to a GiB; the driver keeps the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from storage_schema.errors import UserError

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU that a worker has to itself."""

    name: str
    memory: float
    """Bytes that a process can use."""
    peak_flops: float | None
    """FLOPs per second in dense bfloat16; None: unknown, and no time is predicted."""
    bandwidth: float | None
    """Bytes per second of a large copy, reads and writes together; None: unknown."""
    mfu: float | None
    """Share of the peak that training a small GPT-2 reaches. FLOPs per token are counted as PaLM does, 6 x parameters +
    attention (Chowdhery et al. 2022, appendix B)."""


DEVICES = {
    device.name: device
    for device in (
        # Copies: 4.3 TB/s on an H200 and 0.86 of the peak on an A100; for the H100 we assume 0.9, as on the H200.
        # MFU of GPT-2 124M in PyTorch: 37% on an A100 (nanoGPT's transformer_sizing.ipynb, 755 ms for 100 x 1024
        # tokens); 40% on H100s (modded-nanogpt's record 7, 141.8 ms for 524,288 tokens on 8). An H200 computes alike.
        Device(name="A100-40", memory=39 * GIB, peak_flops=312e12, bandwidth=1.34e12, mfu=0.37),
        Device(name="A100-80", memory=79 * GIB, peak_flops=312e12, bandwidth=1.75e12, mfu=0.37),
        Device(name="H100", memory=79 * GIB, peak_flops=989e12, bandwidth=3.0e12, mfu=0.40),
        Device(name="H200", memory=139 * GIB, peak_flops=989e12, bandwidth=4.3e12, mfu=0.40),
    )
}


def device(name: str) -> Device:
    """The device of that name. Raises ValueError, listing the names, if there is none."""
    if name not in DEVICES:
        raise UserError(f"no device {name!r}; there are {', '.join(DEVICES)}, and cpu for this machine.")
    return DEVICES[name]
