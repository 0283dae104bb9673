"""The mask decoder against the published formulas, spelled out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


def written_out(net: MaskDecoder, embedding: Tensor, positions: Tensor, given: EncodedPrompts) -> Tensor:
    """The published decoder for one image, step by step (SAM, appendix A)."""
    p = dict(net.named_parameters())

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ p[name + ".weight"].T + p[name + ".bias"]

    def attention(name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = linear(name + ".q_proj", q), linear(name + ".k_proj", k), linear(name + ".v_proj", v)
        c = q.shape[1] // HEADS
        parts = []
        for head in range(HEADS):
            s = slice(head * c, (head + 1) * c)
            parts.append(((q[:, s] @ k[:, s].T) / c**0.5).softmax(-1) @ v[:, s])
        return linear(name + ".out_proj", torch.cat(parts, dim=1))

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (DIM,), p[name + ".weight"], p[name + ".bias"])

    image = (embedding[0] + given.dense[0]).flatten(1).T
    pe = positions[0].flatten(1).T
    tokens = torch.cat([p["iou_token.weight"], p["mask_tokens.weight"], given.tokens[0]])
    queries = tokens
    for i in range(2):
        at = f"transformer.layers.{i}"
        if i == 0:
            queries = attention(at + ".self_attn", queries, queries, queries)
        else:
            q = queries + tokens
            queries = queries + attention(at + ".self_attn", q, q, queries)
        queries = norm(at + ".norm1", queries)
        q, k = queries + tokens, image + pe
        queries = norm(at + ".norm2", queries + attention(at + ".cross_attn_token_to_image", q, k, image))
        hidden = linear(at + ".mlp.lin1", queries).clamp(min=0)
        queries = norm(at + ".norm3", queries + linear(at + ".mlp.lin2", hidden))
        q, k = queries + tokens, image + pe
        image = norm(at + ".norm4", image + attention(at + ".cross_attn_image_to_token", k, q, queries))
    final = attention("transformer.final_attn_token_to_image", queries + tokens, image + pe, image)
    queries = norm("transformer.norm_final_attn", queries + final)

    x = image.T.reshape(embedding.shape)
    up = "output_upscaling"
    x = F.conv_transpose3d(x, p[up + ".0.weight"], p[up + ".0.bias"], stride=2)
    mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    x = (x - mean) / (var + 1e-6).sqrt()
    x = F.gelu(x * p[up + ".1.weight"].view(-1, 1, 1, 1) + p[up + ".1.bias"].view(-1, 1, 1, 1))
    x = F.gelu(F.conv_transpose3d(x, p[up + ".3.weight"], p[up + ".3.bias"], stride=2))
    vector = queries[1]
    for layer in range(3):
        vector = linear(f"output_hypernetworks_mlps.0.layers.{layer}", vector)
        vector = vector.clamp(min=0) if layer < 2 else vector
    return torch.einsum("c,bcdhw->bdhw", vector, x)[:, None]


def test_decoder_is_the_published_one() -> None:
    for mask_tokens in (1, 4):
        net = decoder(mask_tokens)
        embedding, positions = torch.randn(1, DIM, 2, 2, 2), torch.randn(1, DIM, 2, 2, 2)
        given = prompts(1, 3)
        with torch.no_grad():
            got = net(embedding, positions, given, ())
            expected = written_out(net, embedding, positions, given)
        assert got.shape == (1, 1, 8, 8, 8)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


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
