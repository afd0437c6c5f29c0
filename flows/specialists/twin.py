"""The generic twin that specialists are measured beside: a soup without experts, trained on the same store."""

from __future__ import annotations

import torch

from flows.settings import Specialize
from flows.specialists.soups import soup_to_read
from soe_model.files.soup import SoupOfExperts
from storage_schema.errors import UserError


def check_twin(settings: Specialize, soup: SoupOfExperts) -> None:
    """Raise ValueError if there is a twin that cannot be measured beside specialists of the soup."""
    if settings.compare_with is None:
        return
    twin = SoupOfExperts.open(soup_to_read(settings.compare_with), verify=False)
    if twin.config.num_experts:
        raise UserError(
            f"compare_with is {settings.compare_with!r}, a soup of {twin.config.num_experts} experts; name a generic "
            "twin, which pretrain-soe makes with method=generic."
        )
    if twin.tokenizer_digest != soup.tokenizer_digest:
        raise UserError(
            f"compare_with is {settings.compare_with!r}, which has another tokenizer than {settings.soup!r}: their "
            "losses cannot be compared. Name a twin that was trained on the same store."
        )


def open_twin(settings: Specialize) -> torch.nn.Module | None:
    """The model of the generic twin: a soup without experts, which every domain weight gives."""
    if settings.compare_with is None:
        return None
    twin = SoupOfExperts.open(soup_to_read(settings.compare_with))
    return twin.specialist(torch.from_numpy(twin.tree.generic_weights))
