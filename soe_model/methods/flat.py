"""The base of methods whose models are ordinary ones, with one vector of parameters each.

Legend: W mixtures, K domains, D embedding size, P parameters of one model, L tokens in a sequence, n windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import nn

from soe_model.methods.method import Cost, Instance, Learner, Method, Run, Trained
from soe_model.model.backbone import build_backbone
from soe_model.model.flat_module import FlatModule
from soe_model.model.router import check_domain_weights
from soe_model.planning.model_size import ModelSize, model_size
from soe_model.planning.setup import Setup
from soe_model.planning.step_time import token_flops, whole_step_flops
from soe_model.presets import SoupConfig, TrainingConfig
from soe_model.specialists.coefficient_learning import Learned, Learning
from soe_model.specialists.evaluation import window_losses
from soe_model.specialists.fine_tuning import fine_tune
from soe_model.training.trainer import SoupTrainer


@dataclass(frozen=True, kw_only=True, eq=False)
class FlatMethod(Method):
    """A method of one run. Each method adds `runs` and `cost`; one with several runs has its own `instantiate`."""

    soup: SoupConfig
    training: TrainingConfig
    generic_K: torch.Tensor
    """The generic mixture, float32 [K]: the share of each domain in the whole corpus."""
    centroids_KD: torch.Tensor | None = None
    """The domains' centroids; a router starts from them."""
    device: str | torch.device = "cpu"
    routed: ClassVar[bool] = False
    """Whether routers choose inside its model for each text, which so is not one dense model."""

    def begin(self, run: Run, begun: Trained | None = None) -> Learner:
        if (begun is None) != (run.begins_from is None):
            raise ValueError(f"run {run.name} begins from {run.begins_from}; give that run, and no other.")
        return SoupTrainer(
            run.soup,
            run.training,
            centroids_KD=self.centroids_KD,
            initial_P=None if begun is None else self.plain_model(begun),
            generic_K=self.generic_K,
            device=self.device,
        )

    def instantiate(
        self,
        trained: Sequence[Trained],
        domain_weights_WK: torch.Tensor,
        windows: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        check_domain_weights(domain_weights_WK, self.soup.num_domains)
        [only] = trained
        models_WP = only.instantiate(domain_weights_WK)
        assert isinstance(models_WP, torch.Tensor)
        return models_WP

    def plain_run(
        self,
        name: str,
        domain_weights_K: torch.Tensor,
        *,
        steps: int | None = None,
        rate: float = 1.0,
        begins_from: str | None = None,
    ) -> Run:
        """A run of one ordinary model on one mixture.

        Args:
            steps: another number of steps than the training's.
            rate: its learning rate over the training's.
        """
        learning_rate = rate * self.training.learning_rate
        training = replace(
            self.training, mixtures_per_step=1, learning_rate=learning_rate, train_generic=False
        )
        if steps is not None:
            training = training.over(steps)
        return Run(
            name=name,
            soup=replace(self.soup, num_experts=0, expert_rank=None),
            training=training,
            domain_weights_K=domain_weights_K,
            begins_from=begins_from,
        )

    def plain_model(self, trained: Trained) -> torch.Tensor:
        """The model [P] of a trained :meth:`plain_run`, which is the same for all domain weights."""
        [model_P] = trained.instantiate(self.generic_K[None])
        assert isinstance(model_P, torch.Tensor)
        return model_P

    def loss(self, instance: Instance, windows_nL1: torch.Tensor) -> torch.Tensor:
        return window_losses(self.module_with(instance), windows_nL1)

    def module_with(self, instance: Instance) -> nn.Module:
        """The instance, ready to read tokens; an ordinary one lies in the same module as the one before it."""
        if isinstance(instance, nn.Module):
            return instance
        self._backbone.params_P.copy_(instance)
        return self._backbone.module

    def fine_tune(
        self,
        instance: Instance,
        windows_nL1: torch.Tensor,
        stopping_mL1: torch.Tensor,
        learning: Learning,
    ) -> tuple[Instance, Learned]:
        """The instance after training on the windows (section 3.2), for methods that are not `routed`."""
        assert isinstance(instance, torch.Tensor)
        flat = self._backbone
        flat.params_P.copy_(instance)
        return fine_tune(flat.module.eval(), flat.params_P, windows_nL1, stopping_mL1, learning)

    def cost_of(
        self,
        runs: Sequence[Run] | None = None,
        *,
        pretrained_size: int,
        specialist_flops: float,
        specialist_tokens: int = 0,
    ) -> Cost:
        """The cost of a method from the runs of its pretraining, by default all; the other numbers are its own."""
        runs = self.runs() if runs is None else runs
        flops = [run.training.steps * whole_step_flops(self.setup(run)) for run in runs]
        return Cost(
            specialist_size=self.size.num_params,
            pretrained_size=pretrained_size,
            pretraining_tokens=sum(run.tokens for run in runs),
            pretraining_flops=sum(flops),
            specialist_flops=specialist_flops,
            specialist_tokens=specialist_tokens,
            token_flops=token_flops(self.size, self.training.sequence_length),
        )

    def setup(self, run: Run) -> Setup:
        """What soe_model/planning needs of a run, on one worker."""
        device_type = torch.device(self.device).type
        return Setup(size=self.size, soup=run.soup, training=run.training, device_type=device_type)

    @cached_property
    def size(self) -> ModelSize:
        """The size of the backbone, which is the same in all runs."""
        return model_size(self.soup.backbone)

    @cached_property
    def _backbone(self) -> FlatModule:
        return build_backbone(self.soup.backbone, seed=0, device=self.device)
