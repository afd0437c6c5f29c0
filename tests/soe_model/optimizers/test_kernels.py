"""The Triton kernel against the tensor expressions it stands for, in Triton's interpreter: bit for bit, or nearly."""

import os
from importlib.util import find_spec

import pytest
import torch

from soe_model.optimizers import MOMENTS, AdamConfig
from soe_model.optimizers.adam import AdamExperts
from tests.soe_model.optimizers.test_optimizers import N, P, gradients, make, rows

if torch.cuda.is_available():
    DEVICE = "cuda"
else:
    DEVICE = "cpu"
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernel is defined
if find_spec("triton"):
    from soe_model.optimizers import kernels

pytestmark = pytest.mark.needs("triton", extra="kernels")


@pytest.mark.parametrize("name", MOMENTS)
def test_a_kernel_updates_as_the_expressions_do(name):
    expected, found = (make(name, device=DEVICE) for _ in range(2))
    found._update = kernels.update_tile
    for step in range(4):
        coefficients_WN, grads_Wp = gradients(step, device=DEVICE)
        expected.update(coefficients_WN, grads_Wp.clone(), step=step, learning_rate=1e-3)
        found.update(coefficients_WN, grads_Wp.clone(), step=step, learning_rate=1e-3)
    torch.testing.assert_close(rows(found), rows(expected), rtol=1e-5, atol=1e-7)
    for key, tensor in expected.tensors().items():
        other = found.tensors()[key]
        if key == "low":
            continue  # a weight of which the last bit differs: compared above
        if tensor.dtype == torch.float32:
            torch.testing.assert_close(other, tensor, rtol=1e-5, atol=1e-12)
        else:  # the last bit may round the other way where a sum was added up in another order
            assert (other != tensor).double().mean() < 0.01, key


def test_the_kernel_of_adam_is_adam():
    expected, found = (make("adam", device=DEVICE) for _ in range(2))
    for step in range(4):
        coefficients_WN, grads_Wp = gradients(step, device=DEVICE)
        expected.update(coefficients_WN, grads_Wp, step=step, learning_rate=1e-3)
        found.update_by(kernels.update_tile, coefficients_WN, grads_Wp, step=step, learning_rate=1e-3)
    torch.testing.assert_close(rows(found), rows(expected), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.second_moment, expected.second_moment, rtol=1e-5, atol=1e-14)


def test_a_tile_in_the_middle_touches_nothing_else():
    experts = AdamExperts((N, P), config=AdamConfig(), seed=0, device=DEVICE)
    before = experts.weights_Np.clone()
    part = [t[:, 1024:] for t in (experts.weights_Np, experts.first_moment, experts.second_moment)]
    numbers = torch.tensor([0.1, 0.001, 1e-3, 1.0, 1e-8], device=DEVICE)
    coefficients_WN, grads_Wt = gradients(0, columns=1024, device=DEVICE)
    kernels.update_tile(
        part[0], None, part[1], None, part[2], None, None, coefficients_WN, grads_Wt, numbers, None, None,
    )  # fmt: skip
    assert torch.equal(experts.weights_Np[:, :1024], before[:, :1024])
    assert (experts.weights_Np[:, 1024:] != before[:, 1024:]).all()


def test_gradients_of_more_elements_than_32_bits_count(tmp_path):
    """Such as those of 8 mixtures and 350 million parameters. The file between the rows takes no room on the disk."""
    if DEVICE == "cuda":
        pytest.skip("there they would take 8 GB")
    apart = 1 << 30
    storage = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2 * apart + 1024)
    grads_Wt = storage.as_strided((3, 1024), (apart, 1))
    grads_Wt[0], grads_Wt[1], grads_Wt[2] = 1.0, 3.0, 5.0
    states = [torch.zeros(1, 1024) for _ in range(3)]
    numbers = torch.tensor([0.1, 0.001, 1e-3, 1.0, 1e-8])
    kernels.update_tile(
        states[0], None, states[1], None, states[2], None, None, torch.ones(3, 1), grads_Wt, numbers, None,
        None,
    )  # fmt: skip
    torch.testing.assert_close(states[1], torch.full((1, 1024), 0.1 * (1.0 + 3.0 + 5.0)))
