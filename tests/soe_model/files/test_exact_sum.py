"""Sums of experts: the worked rule, and the same bits from C and NumPy, for any number of instances and threads."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from soe_model.files import exact_sum as module
from soe_model.files.bank_files import BankFiles, LowRankBankFiles, expert_file
from soe_model.files.exact_sum import combine
from soe_model.model.flat_module import unflatten
from storage_schema.manifest import StoreError
from tests.extras import needs_compiled

P, N = 100_003, 11


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(0)
    return random.normal(size=(N + 1, P)).astype(np.float32)


def made(rows, coefficients, threads=1):
    out = np.empty((len(coefficients), P), np.float32)
    combine(rows[0], rows[1:], coefficients, out, threads=threads)
    return out


def by_the_rule(rows, coefficients):
    """One product and one sum at a time, each rounded to float32."""
    out = np.empty((len(coefficients), P), np.float32)
    for w, coefficients_N in enumerate(coefficients.astype(np.float32)):
        out[w] = rows[0]
        for j, coefficient in enumerate(coefficients_N):
            if coefficient:
                out[w] = out[w] + coefficient * rows[1 + j]
    return out


def some_coefficients(instances, zeros=True):
    coefficients = np.random.default_rng(instances).normal(size=(instances, N)).astype(np.float32)
    if zeros:
        coefficients[0, 3] = coefficients[-1, 8] = 0
    return coefficients


def same_bits(one, other):
    return np.array_equal(one.view(np.int32), other.view(np.int32))


@pytest.fixture(params=["C", "NumPy"])
def either(request, monkeypatch):
    if request.param == "NumPy":
        monkeypatch.setattr(module, "compiled", lambda: None)
    else:
        needs_compiled("soe_model.files._exact_sum")


@pytest.mark.parametrize("instances", [1, 2, 3, 4, 5, 16, 17, 35])
def test_the_bits_are_those_of_the_rule(either, rows, instances, monkeypatch):
    monkeypatch.setattr(module, "COLUMNS", 30_000)
    coefficients = some_coefficients(instances)
    expected = by_the_rule(rows, coefficients)
    assert same_bits(made(rows, coefficients), expected)
    assert same_bits(made(rows, coefficients, threads=3), expected)


def test_an_instance_does_not_depend_on_those_made_with_it(either, rows):
    coefficients = some_coefficients(16)
    together = made(rows, coefficients)
    for w in (0, 7, 15):
        assert same_bits(made(rows, coefficients[w : w + 1])[0], together[w])


def test_a_zero_coefficient_leaves_the_instance_as_it_is(either, rows):
    """Adding 0 * row would turn -0.0 into 0.0, and infinity into NaN."""
    rows = rows.copy()
    rows[0, :5] = -0.0
    rows[4] = np.inf
    coefficients = np.zeros((5, N), np.float32)
    out = made(rows, coefficients)
    assert all(same_bits(instance, rows[0]) for instance in out)


def write_bank(folder, tensors):
    for number, of_file in enumerate(tensors):
        save_file(of_file, folder / (expert_file(number - 1) if number else "shared.safetensors"))


def some_tensors(generator):
    return {
        "b.weight": torch.randn(7, 3, generator=generator),
        "a": torch.randn(5, generator=generator),
        "c.weight": torch.randn(6, 4, generator=generator),
    }


def test_mapped_files_give_the_sum_of_their_tensors(tmp_path):
    generator = torch.Generator().manual_seed(0)
    files = [some_tensors(generator) for _ in range(4)]
    write_bank(tmp_path, files)
    bank = BankFiles(tmp_path, 3)
    coefficients = torch.tensor([[0.5, 0.0, -2.0], [1.0, 1.0, 1.0]])
    out = torch.empty(2, bank.num_params)
    bank.combine(coefficients, out)
    gradient = torch.randn(bank.num_params, generator=generator)
    for w in range(2):
        for name, tensor in unflatten(out[w], bank.slots).items():
            expected = files[0][name] + sum(coefficients[w, j] * files[1 + j][name] for j in range(3))
            torch.testing.assert_close(tensor, expected)
    parts = unflatten(gradient, bank.slots)
    expected = [sum((parts[name] * one[name]).sum() for name in parts) for one in files[1:]]
    torch.testing.assert_close(bank.products(gradient), torch.stack(expected))


def test_low_rank_files_stand_for_their_products(tmp_path):
    generator = torch.Generator().manual_seed(1)
    files = [some_tensors(generator)]
    for _ in range(3):
        shapes = {"b.weight.A": (7, 2), "b.weight.B": (3, 2), "c.weight.A": (6, 2), "c.weight.B": (4, 2)}
        files.append({name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()})
    write_bank(tmp_path, files)
    bank = LowRankBankFiles(tmp_path, 3)
    coefficients = torch.tensor([[0.5, 0.0, -2.0]], requires_grad=True)
    gradient = torch.randn(bank.num_params, generator=generator)
    out = torch.empty(1, bank.num_params)
    bank.combine(coefficients.detach(), out)
    expected = dict(files[0])
    for name in ("b.weight", "c.weight"):
        for j, one in enumerate(files[1:]):
            expected[name] = expected[name] + coefficients[0, j] * one[f"{name}.A"] @ one[f"{name}.B"].T
    flat = torch.cat([expected[slot.name].reshape(-1) for slot in bank.slots])
    torch.testing.assert_close(out[0], flat.detach(), rtol=1e-6, atol=1e-6)
    (flat @ gradient).backward()
    torch.testing.assert_close(bank.products(gradient), coefficients.grad[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"b.weight.B": None}, "expert-001.safetensors: b.weight.A has no other factor of its rank"),
        ({"b.weight.A": None}, "expert-001.safetensors: b.weight.B has no other factor of its rank"),
        ({"b.weight.A": (7, 1)}, "expert-001.safetensors: b.weight.. has no other factor of its rank"),
        ({"b.weight.A": (7, 1), "b.weight.B": (3, 1)}, "expert-001.safetensors does not have the factors of"),
        ({"c.weight.A": (6, 2), "c.weight.B": (4, 2)}, "expert-001.safetensors does not have the factors of"),
    ],
)
def test_low_rank_experts_have_the_same_factors(tmp_path, changed, message):
    shapes = {"b.weight.A": (7, 2), "b.weight.B": (3, 2)}
    experts = [shapes, {name: shape for name, shape in (shapes | changed).items() if shape}]
    factors = [{name: torch.ones(shape) for name, shape in expert.items()} for expert in experts]
    write_bank(tmp_path, [some_tensors(torch.Generator().manual_seed(1)), *factors])
    with pytest.raises(StoreError, match=message):
        LowRankBankFiles(tmp_path, 2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "expert-001.safetensors cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "expert-001.safetensors cannot be read"),
        (lambda path: path.write_bytes(b""), "expert-001.safetensors cannot be read"),
        (lambda path: save_file({"a": torch.zeros(5)}, path), "does not have the parameters of"),
        (lambda path: save_file({"a": torch.zeros(5).half()}, path), "the tensor a is F16; a bank holds F32"),
    ],
)
def test_a_damaged_expert_is_named(tmp_path, damage, message):
    write_bank(tmp_path, [some_tensors(torch.Generator().manual_seed(j)) for j in range(4)])
    damage(tmp_path / expert_file(1))
    with pytest.raises(StoreError, match=message):
        BankFiles(tmp_path, 3)
