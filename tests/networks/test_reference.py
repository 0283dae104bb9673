"""The whole fast networks against the published ones, spelled out; the full sizes: `bench --parity`."""

from __future__ import annotations

import pytest
import torch
from dualclickmed.benchmarks.parity import LIMIT, compare_global, compare_local, randomised
from dualclickmed.networks.build import build_global, build_local
from dualclickmed.networks.configs import GlobalConfig, LocalConfig
from dualclickmed.networks.image_encoder import RelativeAttention
from dualclickmed.networks.reference import PublishedGlobal, PublishedLocal, published_attention

SMALL_GLOBAL = {
    "embed_dim": 24, "depth": 3, "heads": 2, "window": 6, "global_blocks": (1,), "prompt_dim": 24,
    "decoder_heads": 2, "decoder_mlp": 32, "mask_size": 16,
}  # fmt: skip
SMALL_LOCAL = LocalConfig(init_filters=8, blocks_down=(1, 2, 1), out_channels=8, feature_size=8)


@pytest.mark.parametrize(
    "config",
    [
        GlobalConfig(image_size=32, patch=8, **SMALL_GLOBAL),
        GlobalConfig(image_size=64, patch=16, mask_tokens=4, iou_head=20, point_kinds=2, **SMALL_GLOBAL),
        GlobalConfig(image_size=32, patch=8, mask_tokens=4, **SMALL_GLOBAL),
    ],
    ids=["one mask", "16^3 patches, four masks, quality", "four masks"],
)
def test_global_network_is_the_published_one(config: GlobalConfig) -> None:
    differences = compare_global(randomised(build_global(config), seed=1), seed=2)
    wanted = {"embedding", "masks from clicks", "masks from clicks and a mask", "first mask"}
    assert set(differences) == wanted | ({"quality"} if config.iou_head else set())
    assert max(differences.values()) <= LIMIT, differences


def test_local_network_is_monais() -> None:
    differences = compare_local(randomised(build_local(SMALL_LOCAL), seed=3), seed=4, side=24)
    assert set(differences) == {"features", "mask from clicks", "mask from no click"}
    assert max(differences.values()) <= LIMIT, differences


def test_a_wrong_axis_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = randomised(build_global(GlobalConfig(image_size=32, patch=8, **SMALL_GLOBAL)), seed=1)
    published = PublishedGlobal(network)
    with torch.inference_mode():
        image = torch.randn(1, 1, 32, 32, 32)
        expected = network.encode(image).embedding
        tables = {name: t for name, t in published.state.items() if name.endswith("rel_pos_h")}
        published.state.update({name.replace("pos_h", "pos_w"): t for name, t in tables.items()})
        assert (published.encode(image) - expected).norm() / expected.norm() > 100 * LIMIT


def test_published_attention_is_the_sum_over_single_keys() -> None:
    """The formula for one query, key by key."""
    torch.manual_seed(5)
    g, n, heads, c = 2, 3, 2, 4
    attention = RelativeAttention(heads * c, heads, g, n)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, g, g, g, heads * c)
    with torch.no_grad():
        got = published_attention(x, attention.state_dict(), heads, n)
        padded = torch.zeros(n, n, n, heads * c)
        padded[:g, :g, :g] = x[0]
        q, k, v = attention.qkv(padded).split(heads * c, dim=-1)
        d, h, w = 1, 0, 1
        parts = []
        for head in range(heads):
            s = slice(head * c, (head + 1) * c)
            logits, values = [], []
            for kd, kh, kw in torch.cartesian_prod(*[torch.arange(n)] * 3).tolist():
                bias = (
                    q[d, h, w, s] @ attention.rel_pos_d[d - kw + n - 1]
                    + q[d, h, kd, s] @ attention.rel_pos_h[h - kw + n - 1]
                    + q[d, h, kh, s] @ attention.rel_pos_w[kh - kw + n - 1]
                )
                logits.append(q[d, h, w, s] @ k[kd, kh, kw, s] / c**0.5 + bias)
                values.append(v[kd, kh, kw, s])
            parts.append(torch.stack(logits).softmax(0) @ torch.stack(values))
        torch.testing.assert_close(got[0, d, h, w], attention.proj(torch.cat(parts)), rtol=1e-4, atol=1e-5)


def test_compact_networks_have_no_published_form() -> None:
    for preset in ("compact", "transformer"):
        with pytest.raises(ValueError, match="no published form"):
            PublishedGlobal(build_global(preset))
    with pytest.raises(ValueError, match="no published form"):
        PublishedLocal(build_local("compact"))
