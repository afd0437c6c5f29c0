"""The bank on disk: shared parameters and experts as safetensors files, mapped into memory.

All files have one layout, which is also the order of an instance's parameters. A file is read only where it is used,
and its pages lie in the page cache, not in this process's own memory.

Legend: W instances, N experts, P parameters of one model, a x b a matrix, r its rank.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from soe_model.files.exact_sum import combine
from soe_model.model.flat_module import ParameterSlot
from storage_schema.manifest import NOT_THERE, StoreError, UnavailableError, unreadable

SHARED = "shared.safetensors"
TILE_ROWS = 128
"""Rows of a matrix to which low-rank experts are added at once."""


def expert_file(number: int) -> str:
    """The name of an expert's file: ``expert-007.safetensors``."""
    return f"expert-{number:03d}.safetensors"


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """One of a soup's safetensors files, for reading.

    It is opened here before safetensors opens it, because that library calls every file missing that it cannot open.

    Raises:
        UnavailableError: the disk does not answer now.
        StoreError: the file is missing or damaged, or this user may not read it.
    """
    there = False
    try:
        with open(path, "rb") as file:
            there = True
            yield file
    except FileNotFoundError as error:
        if there:
            said = f"cannot read {path}: {error}. It was there just before: try again."
            raise UnavailableError(said) from error
        raise _copy_again(path, error) from error
    except (*NOT_THERE, ValueError, SafetensorError) as error:
        raise _copy_again(path, error) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _copy_again(path: Path, error: Exception) -> StoreError:
    return StoreError(f"{path} cannot be read: {error}. Copy the soup again, or rebuild it.")


class MappedTensors:
    """One file of float32 tensors: where each of them lies, and all of them as one flat array.

    Raises StoreError if the file is missing, damaged, or holds anything but float32; see also :func:`opened`.
    """

    def __init__(self, path: Path):
        self.path = path
        with opened(path) as raw:
            # The library checks that the tensors lie one after the other, without gaps, to the end of the file.
            with safe_open(path, "np") as file:
                slices = [(name, file.get_slice(name)) for name in file.offset_keys()]
            described = [(name, tuple(some.get_shape()), some.get_dtype()) for name, some in slices]
            self._map = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
        self.slots: list[ParameterSlot] = []
        offset = 0
        for name, shape, dtype in described:
            if dtype != "F32":
                raise StoreError(f"{path}: the tensor {name} is {dtype}; a bank holds F32 only.")
            self.slots.append(ParameterSlot(name=name, shape=shape, offset=offset))
            offset += self.slots[-1].size
        self._data_start = len(self._map) - 4 * offset
        if self._data_start % 4:
            raise StoreError(
                f"{path}: the tensors begin at byte {self._data_start}, which is no multiple of 4."
            )
        self.flat_P = np.frombuffer(self._map, np.float32, count=offset, offset=self._data_start)

    def will_need(self, start: int, stop: int) -> None:
        """Ask the kernel to fetch elements [start, stop) of the flat array."""
        first = (self._data_start + 4 * start) // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, first, self._data_start + 4 * stop - first)

    @cached_property
    def by_name(self) -> dict[str, ParameterSlot]:
        return {slot.name: slot for slot in self.slots}

    def view(self, name: str) -> np.ndarray:
        """One tensor as a view of the file, float32."""
        slot = self.by_name[name]
        return self.flat_P[slot.offset : slot.offset + slot.size].reshape(slot.shape)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Copies of all tensors by name, float32."""
        return {
            slot.name: torch.tensor(self.flat_P[slot.offset : slot.offset + slot.size]).view(slot.shape)
            for slot in self.slots
        }


class BankFiles:
    """The files of a bank whose experts are as large as the backbone."""

    def __init__(self, folder: Path, num_experts: int):
        self.folder = folder
        self.shared = MappedTensors(folder / SHARED)
        self.slots = self.shared.slots
        self.experts: list[MappedTensors] = []
        for number in range(num_experts):
            self.experts.append(self._expert(number))

    @property
    def num_params(self) -> int:
        """P."""
        return len(self.shared.flat_P)

    def combine(self, coefficients_WN: torch.Tensor, out_WP: torch.Tensor) -> None:
        """Write the W instances (eq. 2) to `out_WP`, in one pass over the experts that any of them uses."""
        coefficients_WN = coefficients_WN.numpy()
        used = np.flatnonzero(coefficients_WN.any(0))
        files = [self.shared, *(self.experts[j] for j in used)]
        last = self.num_params

        def ahead(start: int, stop: int) -> None:
            for file in files:
                file.will_need(start, min(stop + (stop - start), last))

        combine(
            self.shared.flat_P,
            [file.flat_P for file in files[1:]],
            coefficients_WN[:, used],
            out_WP.numpy(),
            threads=torch.get_num_threads(),
            ahead=ahead,
        )

    def products(self, gradient_P: torch.Tensor) -> torch.Tensor:
        """Gradient of the coefficients, float32 [N]: ``<gradient, expert_j>`` for every expert."""
        gradient_P = gradient_P.numpy()
        return torch.tensor([float(np.dot(expert.flat_P, gradient_P)) for expert in self.experts])

    def _expert(self, number: int) -> MappedTensors:
        expert = MappedTensors(self.folder / expert_file(number))
        if expert.slots != self.slots:
            raise StoreError(f"{expert.path} does not have the parameters of {self.shared.path}.")
        return expert


class LowRankBankFiles(BankFiles):
    """Low-rank experts (section 2.6): factors ``name.A`` [a, r] and ``name.B`` [b, r] of some of the matrices.

    Sums are float64 and rounded once. They have the same bits on machines with the same BLAS, and nearly always on
    others.
    """

    def combine(self, coefficients_WN: torch.Tensor, out_WP: torch.Tensor) -> None:
        out_WP.numpy()[:] = self.shared.flat_P
        used = coefficients_WN.any(0).nonzero().flatten().tolist()
        experts = [self.experts[j] for j in used]
        for slot in self.slots if used else []:
            if f"{slot.name}.A" not in experts[0].by_name:
                continue
            # One matrix at a time: the factors of all experts together are as large as several models.
            left = _doubles([one.view(f"{slot.name}.A") for one in experts], 1)
            right = _doubles([one.view(f"{slot.name}.B").T for one in experts], 0).flatten(0, 1)
            for w, coefficients_N in enumerate(coefficients_WN[:, used].double()):
                part = out_WP[w, slot.offset : slot.offset + slot.size].view(slot.shape)
                for rows, left_rows in zip(part.split(TILE_ROWS), left.split(TILE_ROWS), strict=True):
                    product = (left_rows * coefficients_N[:, None]).flatten(1) @ right
                    rows.copy_(rows.double() + product)

    def products(self, gradient_P: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(len(self.experts))
        for j, expert in enumerate(self.experts):
            factors = expert.tensors()
            for slot in self.slots:
                if f"{slot.name}.A" in factors:
                    gradient = gradient_P[slot.offset : slot.offset + slot.size].view(slot.shape)
                    found[j] += ((gradient @ factors[f"{slot.name}.B"]) * factors[f"{slot.name}.A"]).sum()
        return found

    def _expert(self, number: int) -> MappedTensors:
        expert = MappedTensors(self.folder / expert_file(number))
        shapes = {slot.name: slot.shape for slot in self.slots}
        for slot in expert.slots:
            name, _, side = slot.name.rpartition(".")
            matrix = shapes.get(name, ())
            fits = side in ("A", "B") and len(slot.shape) == len(matrix) == 2
            if not fits or slot.shape[0] != matrix[side == "B"]:
                raise StoreError(f"{expert.path}: {slot.name} fits no matrix of {self.shared.path}.")
            other = expert.by_name.get(f"{name}.{'B' if side == 'A' else 'A'}")
            if other is None or other.shape[1:] != slot.shape[1:]:
                raise StoreError(f"{expert.path}: {slot.name} has no other factor of its rank.")
        if number and expert.slots != self.experts[0].slots:
            raise StoreError(f"{expert.path} does not have the factors of {self.experts[0].path}.")
        return expert


def _doubles(arrays: list[np.ndarray], axis: int) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays, axis, dtype=np.float64))
