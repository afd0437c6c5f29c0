"""The setup of a run: the settings that decide its cost, and the sizes that follow from them.

Legend: W mixtures of a step, P parameters of one model, p of them on a rank, Q numbers of a low-rank expert's factors,
n ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from soe_model.model.flat_module import ParameterSlot
from soe_model.model.low_rank import factor_slots
from soe_model.model.sharding import Sharding
from soe_model.planning.model_size import ModelSize
from soe_model.presets import SoupConfig, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The settings of a run that matter for its cost, on `num_workers` equal workers."""

    size: ModelSize
    soup: SoupConfig
    training: TrainingConfig
    num_workers: int = 1
    device_type: str = "cuda"
    """``cuda`` (bfloat16 compute) or ``cpu`` (float32)."""

    @property
    def width(self) -> int:
        """p, padding included."""
        return self._sharding.width

    @property
    def _sharding(self) -> Sharding:
        common = int(self.training.train_generic)
        return Sharding(num_params=self.size.num_params, world_size=self.num_workers, common=common)

    @property
    def instances(self) -> int:
        """W, and the generic instance if it is trained too."""
        return self.training.mixtures_per_step + self.training.train_generic

    @property
    def owned(self) -> list[int]:
        """Number of instances of each rank: rank r has ceil((r + 1) W / n) - floor(r W / n), and the generic one."""
        sharding = self._sharding
        return [len(sharding.owned(self.instances, rank)) for rank in range(self.num_workers)]

    @property
    def factors(self) -> list[ParameterSlot]:
        """A and B of each matrix, one after the other; none for full experts.

        Raises ValueError if no matrix is larger than the rank.
        """
        rank = self.soup.expert_rank
        if rank is None:
            return []
        layout = [ParameterSlot(name="", shape=shape, offset=0) for shape in self.size.matrices]
        return factor_slots(layout, rank)

    @property
    def factor_size(self) -> int:
        """Q; 0 for full experts. Raises ValueError as :attr:`factors`."""
        return sum(slot.size for slot in self.factors)

    @property
    def micro_batch(self) -> int:
        """Sequences in one pass: the setting, or all that a rank has of one instance."""
        training = self.training
        most = -(-training.batch_size // self.num_workers)
        if not training.train_generic:
            most = min(training.batch_size // training.mixtures_per_step, most)
        return min(training.micro_batch_size or most, most)
