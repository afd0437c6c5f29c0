"""Methods to get models for domain weights, by name: the soup, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable

from soe_model.methods.arrow import Arrow
from soe_model.methods.crisp import Crisp
from soe_model.methods.domain_experts import BranchedExperts, DomainExperts
from soe_model.methods.generic import Generic
from soe_model.methods.merging import Dare, LinearMerge, TaskArithmetic, Ties
from soe_model.methods.method import Method
from soe_model.methods.pareto import Pareto
from soe_model.methods.phatgoose import Phatgoose
from soe_model.methods.smear import Smear, SmearFrozen
from soe_model.methods.soup import Soup
from soe_model.methods.sparse_moe import SparseMoe
from storage_schema.errors import UserError

METHODS: dict[str, Callable[..., Method]] = {
    "soup": Soup,
    "generic": Generic,
    "crisp": Crisp,
    "domain-experts": DomainExperts,
    "branched-experts": BranchedExperts,
    "merged-linear": LinearMerge,
    "merged-task-arithmetic": TaskArithmetic,
    "merged-ties": Ties,
    "merged-dare": Dare,
    "pareto": Pareto,
    "smear": Smear,
    "smear-frozen": SmearFrozen,
    "phatgoose": Phatgoose,
    "arrow": Arrow,
    "sparse-moe": SparseMoe,
}


def method(name: str) -> Callable[..., Method]:
    """The method of that name. Raises ValueError, listing the names, if there is none."""
    if name not in METHODS:
        raise UserError(f"no method {name!r}; there are {', '.join(METHODS)}.")
    return METHODS[name]
