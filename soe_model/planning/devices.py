"""The GPUs whose cost can be predicted: what their makers say of them, and what copies reach.

Peaks are the makers' for dense bfloat16 on the SXM boards: NVIDIA A100 data sheet (312 TFLOP/s; 1555 and
2039 GB/s), H100 data sheet (989 TFLOP/s, 3.35 TB/s), H200 data sheet (989 TFLOP/s, 4.8 TB/s). Memory is what
PyTorch reports of such a board, rounded down to a GiB: the driver keeps the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from storage_schema.errors import UserError

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a worker has to itself."""

    name: str
    memory: float
    """Bytes a process can have."""
    peak_flops: float | None
    """A second, dense bfloat16; None: unknown, and no time is predicted."""
    bandwidth: float | None
    """Bytes a second that a large copy reaches, reads and writes together; None: unknown."""
    mfu: float | None
    """Share of the peak that training a small GPT-2 reaches: (6 x parameters + attention) FLOPs a token, as PaLM
    counts them (Chowdhery et al. 2022, appendix B)."""


DEVICES = {
    device.name: device
    for device in (
        # Copies: 4.3 TB/s on an H200 and 0.86 of the peak on an A100; the H100 is taken to be as the H200, 0.9.
        # MFU of GPT-2 124M in PyTorch: 37% on an A100 (nanoGPT's transformer_sizing.ipynb, 755 ms for 100 x 1024
        # tokens); 40% on H100s (modded-nanogpt's record 7, 141.8 ms for 524,288 tokens on 8). An H200 computes alike.
        Device(name="A100-40", memory=39 * GIB, peak_flops=312e12, bandwidth=1.34e12, mfu=0.37),
        Device(name="A100-80", memory=79 * GIB, peak_flops=312e12, bandwidth=1.75e12, mfu=0.37),
        Device(name="H100", memory=79 * GIB, peak_flops=989e12, bandwidth=3.0e12, mfu=0.40),
        Device(name="H200", memory=139 * GIB, peak_flops=989e12, bandwidth=4.3e12, mfu=0.40),
    )
}


def device(name: str) -> Device:
    """The device of that name. Raises ValueError listing the names."""
    if name not in DEVICES:
        raise UserError(f"no device {name!r}; there are {', '.join(DEVICES)}, and cpu for this machine.")
    return DEVICES[name]
