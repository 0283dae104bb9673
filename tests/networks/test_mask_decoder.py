"""The mask decoder on its own; test_reference.py holds it to the published formulas."""

from __future__ import annotations

import pytest
import torch
from dualclickmed.networks.mask_decoder import MaskDecoder, PlainUpscaling, SkipUpscaling, TwoWayTransformer
from dualclickmed.networks.prompt_encoder import EncodedPrompts
from torch import Tensor, nn

DIM, HEADS = 32, 4


def decoder(mask_tokens: int = 1) -> MaskDecoder:
    torch.manual_seed(0)
    net = MaskDecoder(TwoWayTransformer(2, DIM, HEADS, 48), DIM, mask_tokens, 0, PlainUpscaling(DIM))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


def prompts(batch: int, tokens: int, padding: Tensor | None = None) -> EncodedPrompts:
    generator = torch.Generator().manual_seed(1)
    return EncodedPrompts(
        torch.randn(batch, tokens, DIM, generator=generator),
        padding,
        torch.randn(batch, DIM, 2, 2, 2, generator=generator),
        None,
    )


def test_batch_is_one_at_a_time() -> None:
    net = decoder()
    embedding, positions = torch.randn(3, DIM, 2, 2, 2), torch.randn(1, DIM, 2, 2, 2)
    given = prompts(3, 4)
    with torch.no_grad():
        together = net(embedding, positions, given, ())
        for i in range(3):
            one = EncodedPrompts(given.tokens[i : i + 1], None, given.dense[i : i + 1], None)
            alone = net(embedding[i : i + 1], positions, one, ())
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)


def test_padded_tokens_have_no_effect() -> None:
    net = decoder()
    embedding, positions = torch.randn(2, DIM, 2, 2, 2), torch.randn(1, DIM, 2, 2, 2)
    full = prompts(2, 5, torch.tensor([[False, True, False, True, False]] * 2))
    short = EncodedPrompts(full.tokens[:, [0, 2, 4]], None, full.dense, None)
    with torch.no_grad():
        padded, plain = net(embedding, positions, full, ()), net(embedding, positions, short, ())
    torch.testing.assert_close(padded, plain, rtol=1e-4, atol=1e-4)


def test_skip_upscaling_uses_every_input() -> None:
    torch.manual_seed(3)
    up = SkipUpscaling(8, (2, 4, 6), (6, 4), maps=3)
    x = torch.randn(1, 8, 2, 2, 2, requires_grad=True)
    skips = (
        torch.randn(1, 16, 8, 8, 8, requires_grad=True),
        torch.randn(1, 4, 8, 8, 8, requires_grad=True),
        torch.randn(1, 6, 4, 4, 4, requires_grad=True),
    )
    maps = torch.randn(1, 3, 8, 8, 8, requires_grad=True)
    coarse, fine = up(x, skips, maps)
    assert coarse.shape == (1, 4, 8, 8, 8)
    assert fine is not None
    assert fine.shape == (1, 16, 8, 8, 8)
    inputs = [x, *skips, maps]
    for grad in torch.autograd.grad(coarse.sum() + fine.sum(), inputs):
        assert grad.abs().sum() > 0


def test_every_mask_begins_with_the_first_and_has_its_quality() -> None:
    torch.manual_seed(4)
    net = MaskDecoder(TwoWayTransformer(2, DIM, HEADS, 48), DIM, 3, 16, PlainUpscaling(DIM))
    embedding, positions, given = torch.randn(1, DIM, 2, 2, 2), torch.randn(1, DIM, 2, 2, 2), prompts(1, 3)
    with torch.no_grad():
        masks, quality = net.every_mask(embedding, positions, given)
        torch.testing.assert_close(masks[:, :1], net(embedding, positions, given, ()))
    assert masks.shape == (1, 3, 8, 8, 8)
    assert quality is not None and quality.shape == (1, 3)
    assert (masks[:, 0] - masks[:, 1]).abs().max() > 1e-3


def test_a_decoder_with_a_fine_level_has_one_mask() -> None:
    up = SkipUpscaling(DIM, (2, 4, 6), (6, 4), maps=3)
    net = MaskDecoder(TwoWayTransformer(1, DIM, HEADS, 8), DIM, 1, 0, up)
    with pytest.raises(ValueError, match="predicts one mask"):
        net.every_mask(torch.zeros(1, DIM, 2, 2, 2), torch.zeros(1, DIM, 2, 2, 2), prompts(1, 1))
