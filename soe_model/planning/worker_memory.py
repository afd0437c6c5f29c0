"""How much memory a worker needs, by part.

State, instances and communication buffers are exact: they follow from the shapes that the trainer allocates.
Activations are estimated (:func:`activation_bytes`), and the size of the process itself is assumed.

Legend: W mixtures of a step, N experts, P parameters of one model, p of them on a rank, n ranks, L tokens in a
sequence, h the embedding size, f the width of the MLP. All sizes are in bytes.
"""

from __future__ import annotations

from soe_model.optimizers.tile import FUSED_ELEMENTS, GRADIENT_ELEMENTS
from soe_model.planning.setup import Setup
from soe_model.planning.state_size import ADAM_STATE, FLOAT, experts_bytes, router_params

TILE = {"cuda": FUSED_ELEMENTS["cuda"], "cpu": GRADIENT_ELEMENTS}
"""The most elements of the bank that an optimizer works on at a time."""
PROCESS = {"cuda": 1.0e9, "cpu": 0.6e9}
"""Bytes that are held before the first tensor (assumed): on a GPU the CUDA context and its libraries' work space, on a
CPU the interpreter with torch and transformers."""


def worker_memory(setup: Setup) -> dict[str, float]:
    """Bytes of the worker that needs most, by part.

    The need is their sum. Communication and activations are not there at the same time, but an allocator does not
    always reuse the memory of the one for the other.
    """
    width, ranks, mixtures = setup.width, setup.num_workers, setup.instances
    most = max(setup.owned)
    elements = setup.soup.num_experts * width
    tile = min(elements, TILE[setup.device_type])
    work = FLOAT * (
        tile + (mixtures > 1) * width
    )  # one float32 tile of the bank, and the sum of the gradients
    if setup.soup.expert_rank:
        work = FLOAT * setup.soup.num_experts * setup.factor_size  # the gradient of all factors
    return {
        "experts and optimizer": experts_bytes(setup),
        "shared, router and Adam": ADAM_STATE * width + (ADAM_STATE + FLOAT) * router_params(setup.soup),
        "instances and gradients": 2 * FLOAT * most * ranks * width,
        "communication": communication_bytes(setup),
        "update": work,
        "activations": activation_bytes(setup),
        "process": PROCESS[setup.device_type],
    }


def communication_bytes(setup: Setup) -> float:
    """Bytes of this rank's columns of every mixture, and of what it sends and receives; 0 on one rank.

    Low-rank experts instead need the whole gradients on every rank: as they were received and, with several mixtures,
    once more in order.
    """
    ranks, mixtures, owned = setup.num_workers, setup.instances, setup.owned
    if ranks == 1:
        return 0
    columns = sum(owned) + ranks * max(owned)
    if setup.soup.expert_rank:
        columns = max(columns, (1 + (mixtures > 1)) * ranks * mixtures)
    return FLOAT * setup.width * (mixtures + columns)


def activation_bytes(setup: Setup) -> float:
    """Estimate the bytes that one micro-batch keeps for its backward pass.

    A layer keeps, per token, after Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1), without dropout and with
    fused attention, which keeps no scores: 6 h values for queries, keys, values and the inputs of the attention's and
    the MLP's matrices; 2 h for the inputs of two norms; and 2 f for the MLP (4 f if it is gated). Their 34 h bytes in
    16 bits, with f = 4 h, are these and two masks. Autocast keeps the norms' inputs in float32.

    A logit costs 12 bytes at the peak: its log-softmax and two gradients in float32. Autocast also keeps the matrices
    in bfloat16.
    """
    size, cuda = setup.size, setup.device_type == "cuda"
    number = 2 if cuda else FLOAT
    attention = (6 * number + 2 * FLOAT) * size.embedding_size
    mlp = (4 if size.gated else 2) * number * size.hidden_size
    of_token = size.num_layers * (attention + mlp) + 12 * size.vocab_size
    tokens = setup.micro_batch * setup.training.sequence_length
    return tokens * of_token + (number * size.matmul_params if cuda else 0)
