"""The backbone computes what transformers' model of the same configuration does."""

import pytest
import torch

from soe_model.model.backbone import (
    build_backbone,
    check_causal,
    gpt2_config,
    hugging_face_config,
    token_losses,
)
from soe_model.model.flat_module import unflatten

BERT = {
    "model_type": "bert", "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32,
}  # fmt: skip


def test_an_encoder_is_no_backbone_unless_it_is_a_decoder():
    with pytest.raises(ValueError, match="'bert' reads later tokens too.*is_decoder=true"):
        check_causal(build_backbone(BERT, seed=0).module)
    decoder = build_backbone(BERT | {"is_decoder": True}, seed=0).module
    check_causal(decoder)
    assert decoder.training
    with pytest.raises(ValueError, match="transformers cannot run the backbone .*'roberta': TypeError"):
        check_causal(build_backbone(BERT | {"model_type": "roberta", "pad_token_id": None}, seed=0).module)


def test_gpt2s_activation_is_one_kernel_and_the_same_function():
    # At the top they would import Triton before test_kernels.py asks for its interpreter.
    from transformers import AutoModelForCausalLM
    from transformers.activations import NewGELUActivation

    config = gpt2_config(vocab_size=50, sequence_length=16, embedding_size=8, num_layers=2, num_heads=2)
    backbone = build_backbone(config, seed=3)
    assert not any(isinstance(module, NewGELUActivation) for module in backbone.module.modules())
    assert backbone.module.config.activation_function == "gelu_new"  # what a specialist's config.json says
    plain = AutoModelForCausalLM.from_config(hugging_face_config(config)).train()
    values = unflatten(3 * backbone.params_P, backbone.layout)
    backbone.params_P.mul_(3)
    for name, parameter in plain.named_parameters():
        parameter.data.copy_(values[name])
    tokens = torch.randint(0, 50, (4, 17), generator=torch.Generator().manual_seed(0))
    for model in (backbone.module, plain):
        token_losses(model, tokens).mean().backward()
    torch.testing.assert_close(token_losses(backbone.module, tokens), token_losses(plain, tokens))
    gradients = unflatten(backbone.grads_P, backbone.layout)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)
