"""The global network as a whole: the published sizes, and what the small transformer does with prompts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from dualclickmed.networks.build import build_global
from dualclickmed.networks.configs import PRESETS, GlobalConfig
from dualclickmed.networks.global_network import GlobalNetwork, to_mask_prompt
from torch import Tensor, nn

TRANSFORMER = PRESETS["transformer"][0]
SMALL_PAPER = GlobalConfig(
    image_size=32, patch=8, embed_dim=24, depth=3, heads=2, window=6, global_blocks=(2,), prompt_dim=24,
    decoder_heads=2, decoder_mlp=32, mask_size=16,
)  # fmt: skip
SMALL_TRANSFORMER = dataclasses.replace(TRANSFORMER, image_size=32, embed_dim=40, depth=1, mask_size=32)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def small(config: GlobalConfig, seed: int = 0) -> GlobalNetwork:
    """A network whose every weight matters: parts that start at zero are drawn, too."""
    torch.manual_seed(seed)
    network = build_global(config)
    for parameter in network.parameters():
        if parameter.abs().sum() == 0:
            nn.init.normal_(parameter, std=0.05)
    return network.eval()


def request(batch: int, side: int, labels: list[int], seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, 1, side, side, side, generator=generator)
    points = torch.rand(batch, len(labels), 3, generator=generator) * (side - 1)
    return image, points, torch.tensor([labels] * batch)


def test_paper_preset_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert parameters(build_global("paper")) == 96_648_476


def test_sam_med3d_layout() -> None:
    with torch.device("meta"):
        network = build_global(
            GlobalConfig(image_size=128, patch=16, mask_tokens=4, iou_head=256, point_kinds=2)
        )
    assert parameters(network) == 100_509_232
    assert parameters(network.image_encoder) == 92_924_928
    assert parameters(network.prompt_encoder) == 8_668
    assert parameters(network.mask_decoder) == 7_575_636
    state = network.state_dict()
    assert len(state) == 324
    published = {
        "image_encoder.pos_embed": (1, 8, 8, 8, 768),
        "image_encoder.patch_embed.proj.weight": (768, 1, 16, 16, 16),
        "image_encoder.blocks.0.attn.rel_pos_d": (27, 64),
        "image_encoder.blocks.11.attn.rel_pos_w": (15, 64),
        "image_encoder.blocks.3.mlp.lin1.weight": (3072, 768),
        "image_encoder.neck.2.weight": (384, 384, 3, 3, 3),
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (3, 128),
        "prompt_encoder.mask_downscaling.6.weight": (384, 16, 1, 1, 1),
        "mask_decoder.transformer.layers.1.cross_attn_image_to_token.q_proj.weight": (192, 384),
        "mask_decoder.transformer.norm_final_attn.weight": (384,),
        "mask_decoder.output_upscaling.3.weight": (96, 48, 2, 2, 2),
        "mask_decoder.output_hypernetworks_mlps.3.layers.2.weight": (48, 384),
        "mask_decoder.iou_prediction_head.layers.2.weight": (4, 256),
    }
    assert {name: tuple(state[name].shape) for name in published} == published


@pytest.mark.parametrize("config", [SMALL_PAPER, SMALL_TRANSFORMER], ids=["paper", "transformer"])
def test_batch_is_one_at_a_time(config: GlobalConfig) -> None:
    network = small(config)
    image, points, labels = request(3, 32, [1, 0, 1])
    mask = torch.randn(3, 1, 16, 16, 16)
    with torch.inference_mode():
        features = network.encode(image)
        together = network.decode(features, points, labels, mask)
        assert together.shape == (3, 1, *[config.mask_size] * 3)
        for i in range(3):
            s = slice(i, i + 1)
            alone = network.decode(network.encode(image[s]), points[s], labels[s], mask[s])
            torch.testing.assert_close(together[s], alone, rtol=1e-3, atol=1e-4)
            kept = network.decode(features.index(i), points[s], labels[s], mask[s])
            torch.testing.assert_close(together[s], kept, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("config", [SMALL_PAPER, SMALL_TRANSFORMER], ids=["paper", "transformer"])
def test_padding_points_have_no_effect(config: GlobalConfig) -> None:
    network = small(config)
    image, points, labels = request(2, 32, [1, -1, 0, -1])
    with torch.inference_mode():
        features = network.encode(image)
        padded = network.decode(features, points, labels)
        plain = network.decode(features, points[:, [0, 2]], labels[:, [0, 2]])
        torch.testing.assert_close(padded, plain, rtol=1e-3, atol=1e-4)
        no_points = network.decode(features, points[:, :0], labels[:, :0])
        only_padding = network.decode(features, points[:, [1, 3]], labels[:, [1, 3]])
        torch.testing.assert_close(only_padding, no_points, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("config", [SMALL_PAPER, SMALL_TRANSFORMER], ids=["paper", "transformer"])
def test_answers_repeat_to_the_bit_and_prompts_leave_features_alone(config: GlobalConfig) -> None:
    network = small(config)
    image, points, labels = request(1, 32, [1, 0])
    with torch.inference_mode():
        features = network.encode(image)
        first = network.decode(features, points, labels)
        network.decode(features, points.flip(1), labels, network.to_mask_prompt(first))
        assert torch.equal(network.decode(features, points, labels), first)
        assert torch.equal(network.encode(image).embedding, features.embedding)


@pytest.mark.parametrize("config", [SMALL_PAPER, SMALL_TRANSFORMER], ids=["paper", "transformer"])
def test_gradients_reach_every_parameter(config: GlobalConfig) -> None:
    network = small(config).train()
    image, points, labels = request(2, 32, [config.box_label, 1, 0])
    features = network.encode(image)
    first = network.decode(features, points, labels)
    second = network.decode(features, points, labels, network.to_mask_prompt(first).detach())
    (first.square().mean() + second.square().mean()).backward()
    unreached = {name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().sum() == 0}
    # SAM's box corners are no prompts here.
    corners = {f"prompt_encoder.point_embeddings.{i}.weight" for i in (2, 3)}
    assert unreached == (corners if config is SMALL_PAPER else set())


def test_transformer_is_finite_in_bfloat16_forward_and_backward() -> None:
    torch.manual_seed(0)
    network = build_global("transformer")
    image, points, labels = request(1, 64, [2, 1, 0])
    with torch.autocast("cpu", torch.bfloat16):
        logits = network.decode(network.encode(20 * image), points, labels)
    assert logits.shape == (1, 1, 64, 64, 64)
    assert logits.isfinite().all()
    logits.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_bfloat16_stays_near_float32() -> None:
    network = small(SMALL_TRANSFORMER)
    image, points, labels = request(1, 32, [2, 1, 0])
    with torch.inference_mode():
        expected = network.decode(network.encode(image), points, labels)
        with torch.autocast("cpu", torch.bfloat16):
            got = network.decode(network.encode(image), points, labels)
    assert (got - expected).abs().mean() < 0.02


def test_untrained_transformer_draws_the_ellipsoid_in_the_box() -> None:
    torch.manual_seed(0)
    network = build_global("transformer").eval()
    image, _, _ = request(1, 64, [2])
    with torch.inference_mode():
        logits = network.decode(network.encode(image), torch.full((1, 1, 3), 31.5), torch.tensor([[2]]))
    # The box is the middle 64 / 1.8 = 35.6 voxels of each axis.
    assert logits[0, 0, 31, 31, 31] > 1
    assert logits[0, 0, 0, 0, 0] < -1
    axis = torch.arange(64) - 31.5
    radius = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
    drawn, ellipsoid = logits[0, 0] > 0, radius < 64 / 3.6
    dice = 2 * (drawn & ellipsoid).sum() / (drawn.sum() + ellipsoid.sum())
    assert dice > 0.7


def test_click_maps_act_where_the_click_is_and_nowhere_else() -> None:
    torch.manual_seed(0)
    network = build_global("transformer").eval()
    image, points, labels = request(1, 64, [2])
    with torch.inference_mode():
        features = network.encode(image)
        positions = network.prompt_encoder.dense_positions()
        sampled = (features.skips[1], features.embedding)
        prompts = network.prompt_encoder(points, labels, None, sampled, features.skips[-1])
        base = network.mask_decoder(features.embedding, positions, prompts, features.skips)
        for kind in (1, 2):
            assert prompts.maps is not None
            maps = prompts.maps.clone()
            maps[0, kind, 6, 20, 25] = 1.0  # one voxel of 32^3: 12..13, 40..41, 50..51 of 64^3
            one_click = dataclasses.replace(prompts, maps=maps)
            clicked = network.mask_decoder(features.embedding, positions, one_click, features.skips)
            change = (clicked - base).abs()[0, 0]
            # Two 3^3 convolutions reach two voxels of 32^3, the interpolation one voxel of 64^3 more.
            reach = change[7:19, 35:47, 45:57]
            assert change[12:14, 40:42, 50:52].min() > 0
            torch.testing.assert_close(change.sum(), reach.sum())


def test_clicks_of_either_kind_change_the_mask() -> None:
    network = small(SMALL_TRANSFORMER)
    image, points, _ = request(1, 32, [2, 1])
    with torch.inference_mode():
        features = network.encode(image)
        masks = [network.decode(features, points, torch.tensor([[2, label]])) for label in (-1, 0, 1)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (masks[one] - masks[other]).abs().mean() > 1e-3


def test_mask_prompt_is_the_mean_over_voxels() -> None:
    logits = torch.randn(2, 1, 64, 64, 64)
    prompt = to_mask_prompt(logits)
    assert prompt.shape == (2, 1, 32, 32, 32)
    torch.testing.assert_close(prompt[1, 0, 3, 5, 31], logits[1, 0, 6:8, 10:12, 62:64].mean())
    assert torch.equal(to_mask_prompt(prompt), prompt)


def test_features_index_expand_and_size() -> None:
    network = small(SMALL_TRANSFORMER)
    image, _, _ = request(3, 32, [1])
    with torch.inference_mode():
        features = network.encode(image)
    assert len(features) == 3
    assert features.nbytes == sum(4 * t.numel() for t in (features.embedding, *features.skips))
    assert torch.equal(features.expand(2).embedding[1], features.embedding[0])
    assert torch.equal(features.index(-1).skips[0], features.skips[0][2:])
    assert torch.equal(features.index(torch.tensor([2, 0])).embedding[0], features.embedding[2])
    with pytest.raises(IndexError):
        features.index(3)
    assert features.to(torch.float16).skips[1].dtype == torch.float16


def test_wrong_shapes_are_named() -> None:
    network = small(SMALL_TRANSFORMER)
    with pytest.raises(ValueError, match=r"got \(1, 1, 32, 32, 16\)"):
        network.encode(torch.zeros(1, 1, 32, 32, 16))
    features = network.encode(torch.zeros(1, 1, 32, 32, 32))
    with pytest.raises(ValueError, match=r"B = 1, got \(2, 1, 3\) and \(2, 1\)"):
        network.decode(features, torch.zeros(2, 1, 3), torch.zeros(2, 1, dtype=torch.long))
