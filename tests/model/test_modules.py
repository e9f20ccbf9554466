import pytest
import torch
from torch import nn

from safety_modules.config import ConfigError, SafetyConfig
from safety_modules.decision.calibration import Calibration
from safety_modules.model.head import SafetyHead
from safety_modules.model.losses import lm_loss, next_tokens, safety_losses
from safety_modules.model.projector import build_projector
from safety_modules.model.tokens import SafetyTokens, TokenEmbedding
from safety_modules.taxonomy import Taxonomy


@pytest.mark.parametrize("side", [2, 5, 24])
def test_the_projector_takes_any_square_grid(side):
    projector = build_projector(SafetyConfig(projector_width=8, projector_depth=1), 6, 10)
    assert projector(torch.randn(2, side * side, 6)).shape == (2, side * side, 10)


def test_the_projector_pools_to_its_grid_and_mixes_places():
    projector = build_projector(SafetyConfig(projector_width=8, projector_depth=2, projector_grid=2), 6, 10)
    features = torch.randn(1, 16, 6, requires_grad=True)
    output = projector(features)
    assert output.shape == (1, 4, 10)
    output[0, 0].sum().backward()
    assert (features.grad.abs().sum(-1) > 0).all()


def test_a_grid_that_is_not_square_is_an_error_for_the_c_abstractor_only():
    with pytest.raises(ConfigError, match="17 patches"):
        build_projector(SafetyConfig(projector_width=8, projector_depth=1), 6, 10)(torch.randn(1, 17, 6))
    mlp = build_projector(SafetyConfig(projector="mlp", projector_width=8), 6, 10)
    assert mlp(torch.randn(1, 17, 6)).shape == (1, 17, 10)


@pytest.mark.parametrize(
    "values,message",
    [
        ({"projector": "c_abstracter"}, "did you mean 'c_abstractor'"),
        ({"query": "text"}, "unknown value 'text'"),
        ({"head_tokens": -1}, "head_tokens: -1"),
        ({"projector_depth": 0}, "projector_depth: 0"),
        ({"projector_grid": 0}, "projector_grid: 0"),
        ({"query": "paper", "head_tokens": 0, "llm_tokens": 0}, "paper"),
    ],
)
def test_a_wrong_shape_is_named(values, message):
    with pytest.raises(ConfigError, match=message):
        SafetyConfig(**values)


def test_the_token_embedding_gives_its_ids_their_vectors_and_gradients():
    embedding, tokens = nn.Embedding(10, 4), SafetyTokens(3, 4)
    plain = embedding(torch.arange(8)).detach()
    TokenEmbedding(tokens, 8).attach(embedding)
    output = embedding(torch.tensor([[0, 8, 10, 7]]))
    assert torch.equal(output[0, [0, 3]], plain[[0, 7]])
    assert torch.equal(output[0, [1, 2]], tokens.weight[[0, 2]])
    output.sum().backward()
    assert tokens.weight.grad.sum(1).tolist() == [4, 0, 4]
    assert embedding.weight.grad[0].sum() == 4 and embedding.weight.grad[1].sum() == 0


def test_the_head_ignores_what_the_masks_hide_and_survives_an_empty_row():
    torch.manual_seed(0)
    head = SafetyHead(SafetyConfig(), 16, 3, 2).eval()
    features, text = torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    mask, text_mask = torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)
    mask[0, 3:], text_mask[0, 2:] = False, False
    a = head(features, mask, text, text_mask)
    features[0, 3:], text[0, 2:] = 100.0, -100.0
    b = head(features, mask, text, text_mask)
    assert torch.allclose(a.type_logits, b.type_logits) and torch.allclose(a.level_logits, b.level_logits)
    mask[1], text_mask[1] = False, False
    assert torch.isfinite(torch.cat(head(features, mask, text, text_mask), dim=1)).all()


def test_lm_loss_by_hand():
    logits = torch.zeros(1, 3, 4)
    logits[0, 0, 2] = 1.0
    labels = torch.tensor([[-100, 2, -100]])
    expected = -torch.log_softmax(logits[0, 0], -1)[2]
    keep, targets = next_tokens(labels)
    assert keep.tolist() == [0] and targets.tolist() == [[2]]
    assert torch.allclose(lm_loss(logits[:, keep], targets), expected)
    assert torch.allclose(lm_loss(logits[:, keep], targets, tokens=4), expected / 4)
    assert lm_loss(logits, torch.full((1, 3), -100)) == 0


def test_the_loss_weighs_both_head_terms():
    torch.manual_seed(0)
    losses = safety_losses(
        torch.randn(2, 4, 5),
        torch.tensor([[-100, 1, 2, 3]] * 2),
        torch.randn(2, 7),
        torch.randn(2, 4),
        torch.tensor([0, 6]),
        torch.tensor([3, 0]),
        head_weight=10.0,
    )
    assert torch.allclose(losses.loss, losses.lm + 10 * (losses.type + losses.level))


def test_calibration_scales_logits_and_refuses_nonsense():
    logits = torch.tensor([[2.0, 0, 0, 0, 0, 0, 0]]), torch.zeros(1, 4)
    sharp = Calibration().assessments(*logits, Taxonomy.default())[0]
    flat = Calibration(type_temperature=4.0).assessments(*logits, Taxonomy.default())[0]
    assert sharp.types["politics"] > flat.types["politics"] > 1 / 7 and abs(sum(flat.types.values()) - 1) < 1e-6
    with pytest.raises(ValueError, match="level_temperature: 0"):
        Calibration(level_temperature=0)


@pytest.mark.parametrize("mode", ["joint", "image", "paper"])
def test_the_head_is_multi_head_attention_with_projected_keys_also_in_half_precision(mode):
    torch.manual_seed(0)
    head = SafetyHead(SafetyConfig(query=mode), 64, 5, 3)
    attention = nn.MultiheadAttention(64, head.heads, batch_first=True)
    with torch.no_grad():
        for part in (head.key, head.value, head.ask, head.merge):
            part.bias.normal_()
        attention.in_proj_weight.copy_(torch.cat([head.ask.weight, head.key.weight, head.value.weight]))
        attention.in_proj_bias.copy_(torch.cat([head.ask.bias, head.key.bias, head.value.bias]))
        attention.out_proj.weight.copy_(head.merge.weight)
        attention.out_proj.bias.copy_(head.merge.bias)
    query, keys, mask = torch.randn(4, 2, 64), torch.randn(4, 30, 64) * 4, torch.rand(4, 30) > 0.3
    expected = attention(query, keys, keys, key_padding_mask=~mask)[0]
    assert torch.allclose(head.attend(query, keys, mask), expected, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(head.attend(query, keys, mask), expected, atol=1e-5), "scores are not rounded"
    head.attend(query, keys, mask).sum().backward()
    assert all(part.bias.grad is not None for part in (head.key, head.value, head.ask, head.merge))
