"""The gradient of the bank is never allocated: what training takes at its peak, measured in a process of its own."""

import subprocess
import sys

import pytest

from soe_model.optimizers import OPTIMIZERS

# Compiling a kernel takes memory of its own, which has nothing to do with the bank's size.
PROGRAM = """
import re, sys, torch
from soe_model.model.backbone import gpt2_config
from soe_model.optimizers import compiling
from soe_model.presets import SoupConfig, TrainingConfig
from soe_model.training.trainer import SoupTrainer

def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])

def make(num_experts):
    backbone = gpt2_config(vocab_size=4096, sequence_length=8, embedding_size=128, num_layers=2, num_heads=4)
    soup = SoupConfig(backbone=backbone, num_experts=num_experts, num_domains=5)
    training = TrainingConfig(steps=9, warmup_steps=0, batch_size=2, sequence_length=8, optimizer=sys.argv[1])
    return SoupTrainer(soup, training)

compiling.WORTH_IT = 1 << 60
batch = torch.ones(2, 9, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), torch.full((1, 5), 0.2)
make(2).train_step(*batch)  # whatever is loaded at first use
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
trainer = make(64)
for _ in range(2):
    trainer.train_step(*batch)
state = sum(t.numel() * t.element_size() for t in trainer.tensors().values())
print(status("VmHWM") - before, state, 4 * trainer.backbone.num_params)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
@pytest.mark.long
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_takes_little_more_than_the_bank_and_its_moments(optimizer):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, optimizer], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    peak, state, model = map(int, done.stdout.split())
    assert state > 64 * model  # of which a gradient of the bank would be as much again, or half
    assert peak <= 1.1 * state + model
