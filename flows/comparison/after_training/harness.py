"""One model's answers to multiple-choice tasks by log-likelihood, asked by lm-evaluation-harness (the extra `exports`).

A choice's score is the log-likelihood of its tokens after the question's, as the harness does with ARC and MMLU; the
tokens are those of the store's tokenizer, and begin with end-of-text, as a text's do in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import torch
from datasets import Dataset  # deptry: ignore[DEP004]
from lm_eval import evaluate  # deptry: ignore[DEP004]
from lm_eval.api.model import TemplateLM  # deptry: ignore[DEP004]
from lm_eval.api.task import ConfigurableTask  # deptry: ignore[DEP004]

from flows.comparison.after_training.big_bench import QUESTION, Task
from pipeline.tokenizer import TextTokenizer
from soe_model.model.backbone import token_losses


class Model(TemplateLM):
    """What the harness asks; a question that is too long for the model loses its beginning."""

    def __init__(self, module: torch.nn.Module, tokenizer: TextTokenizer, length: int):
        super().__init__()
        self.module, self.text_tokenizer, self.length = module.eval(), tokenizer, length

    @property
    def eot_token_id(self) -> int:
        return self.text_tokenizer.end_of_text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        [ids] = self.text_tokenizer.encode([string])
        return [int(one) for one in ids[:-1]]

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        found = []
        for _, context, continuation in requests:
            tokens = [self.eot_token_id, *context, *continuation][-self.length - 1 :]
            losses_L = token_losses(self.module, torch.tensor([tokens]))[0]
            found.append((-losses_L[-len(continuation) :].double().sum().item(), False))
        return found

    # The harness wants these two of every model; multiple choice asks neither.
    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError


def answers(
    module: torch.nn.Module, tokenizer: TextTokenizer, length: int, task: Task
) -> dict[str, list[float]]:
    """Of each question ``right``, 1 or 0, and ``margin``: the log-likelihood of the right choice, in nats, above that
    of the best of the others.
    """
    asked = ConfigurableTask(config=_configuration(task))
    model = Model(module, tokenizer, length)
    # Not `simple_evaluate`, which also lists the machine and its packages, for seconds. Its bars and hints would drown
    # the comparison's own progress, and its errors are raised.
    with redirect_stderr(StringIO()):
        found = evaluate(model, {task.name: asked}, bootstrap_iters=0, log_samples=True)
    samples = sorted(found["samples"][task.name], key=lambda sample: sample["doc_id"])
    margins = []
    for right, sample in zip(task.right, samples, strict=True):
        scores = [float(score) for score, _ in sample["filtered_resps"]]
        margins.append(scores.pop(right) - max(scores))
    return {"right": [float(sample["acc"]) for sample in samples], "margin": margins}


def _configuration(task: Task) -> dict[str, Any]:
    rows = Dataset.from_dict(
        {
            "question": [QUESTION.format(question) for question in task.questions],
            "choices": task.choices,
            "right": task.right,
        }
    )
    return {
        "task": task.name,
        "custom_dataset": lambda **_: {"test": rows},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "question",
        "doc_to_choice": "choices",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
