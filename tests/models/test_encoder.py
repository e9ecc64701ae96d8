"""The encoder: token maps, split, stems, errors."""

import subprocess
import sys

import pytest
import torch

from eqssl.config import EncoderConfig
from eqssl.models.backbones import ENCODERS, masks_patches, register_encoder
from eqssl.models.encoder import Encoder, token_grid

GREY, COLOUR = ((0.3,), (0.2,)), ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def make(size=64, channels=3, **options):
    return Encoder(EncoderConfig(**options), channels, size, *(COLOUR if channels == 3 else GREY))


@pytest.mark.parametrize(("size", "channels", "side"), [(64, 3, 8), (28, 1, 4), (32, 3, 4)])
def test_tiny_resnet_has_tokens_enough_at_every_small_size(size, channels, side):
    encoder = make(size, channels)
    assert encoder.grid == (side, side)
    assert encoder.tokens(torch.rand(2, channels, size, size)).shape == (2, side**2, 128)


@pytest.mark.parametrize(
    ("options", "size"), [({}, 32), ({"name": "resnet18"}, 64), ({"name": "test_vit", "output_stride": 4}, 32)]
)
def test_the_grid_is_known_without_the_encoder(options, size):
    assert token_grid(EncoderConfig(**options), 3, size) == make(size, **options).grid


def test_an_output_stride_may_not_divide_the_side():
    assert make(28, 1, output_stride=8).grid == (4, 4)


def test_representation_is_the_mean_over_tokens_and_invariant_channels_come_first():
    encoder = make(equi_fraction=0.25).eval()
    images = torch.rand(3, 3, 64, 64)
    assert torch.equal(encoder(images), encoder.tokens(images).mean(1))
    assert encoder.dim_inv == 96 and make(equi_fraction=0.0).dim_inv == 128


def test_normalisation_is_inside():
    encoder = make().eval()
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in COLOUR)
    flat = mean.expand(1, 3, 64, 64) + std
    torch.testing.assert_close(encoder.standardise(flat), torch.ones_like(flat))


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.rand(2, 1, 64, 64)])
def test_integers_and_other_channels_are_refused(images):
    with pytest.raises(ValueError, match=r"images are torch.* of shape \(2, .*; allowed: float in \[0, 1\] of shape"):
        make()(images)


@pytest.mark.parametrize(
    ("options", "size", "grid", "dim", "stem"),
    [
        ({"name": "resnet18"}, 64, (8, 8), 512, "small"),
        ({"name": "resnet18", "output_stride": 32}, 100, (4, 4), 512, "standard"),
        ({"name": "resnet18", "output_stride": 4}, 64, (16, 16), 512, "small"),
        ({"name": "resnet18", "stem": "small", "output_stride": 8}, 96, (12, 12), 512, "small"),
        ({"name": "resnet18", "stem": "standard", "output_stride": 8}, 64, (8, 8), 512, "standard"),
        ({"name": "vit_tiny_patch16_224", "output_stride": 8}, 32, (4, 4), 192, "standard"),
        ({"name": "swin_tiny_patch4_window7_224"}, 224, (7, 7), 768, "standard"),
        ({"name": "torchvision/resnet18"}, 64, (8, 8), 512, "small"),
        ({"name": "torchvision/vit_b_16"}, 64, (4, 4), 768, "standard"),
        ({"name": "torchvision/swin_t"}, 64, (2, 2), 768, "standard"),
    ],
)
def test_timm_and_torchvision_by_name(options, size, grid, dim, stem):
    encoder = make(size, **options)
    assert (encoder.grid, encoder.dim, encoder.backbone.stem) == (grid, dim, stem)
    assert encoder.eval().tokens(torch.rand(1, 3, size, size)).shape == (1, grid[0] * grid[1], dim)


@pytest.mark.parametrize(
    ("options", "size", "local_size"),
    [
        ({"name": "resnet_tiny"}, 32, 16),
        ({"name": "resnet_tiny"}, 64, 24),
        ({"name": "test_vit", "output_stride": 4}, 32, 12),
        ({"name": "test_vit3"}, 224, 96),  # fixed to one size without local crops
        ({"name": "torchvision/swin_t"}, 64, 32),
    ],
)
def test_local_crops_have_96_of_224_px_in_whole_tokens_and_leave_the_features_of_images(options, size, local_size):
    given = (EncoderConfig(**options), 3, size, *COLOUR)
    plain, encoder = Encoder(*given).eval(), Encoder(*given, local_crops=2).eval()
    assert (plain.local_size, encoder.local_size) == (0, local_size)
    encoder.load_state_dict(plain.state_dict())
    images, crops = torch.rand(2, 3, size, size), torch.rand(2, 3, local_size, local_size)
    torch.testing.assert_close(encoder.tokens(images), plain.tokens(images), rtol=1e-6, atol=1e-6)
    tokens = encoder.tokens(crops)
    assert tokens.shape == (2, (encoder.grid[0] * local_size // size) ** 2, encoder.dim)
    tokens.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        (
            {"name": "resnet18", "stem": "standard"},
            32,
            "resnet18, one of whose tokens covers all 32 px of an image: 0, or",
        ),
        ({"name": "torchvision/vit_b_16"}, 64, "torchvision/vit_b_16, which does not take their 32 px beside 64 px"),
        (
            {"name": "swin_tiny_patch4_window7_224"},
            224,
            r"swin_tiny_.*their 96 px .*: 0; ResNets, ConvNeXts and timm's",
        ),
    ],
)
def test_local_crops_that_a_backbone_cannot_take_are_refused(options, size, message):
    with pytest.raises(ValueError, match=rf"--augment.local-crops is 6; allowed with --encoder.name {message}"):
        Encoder(EncoderConfig(**options), 3, size, *COLOUR, local_crops=6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet19"}, r"--encoder.name is 'resnet19'; allowed: resnet_tiny, torchvision/NAME or a timm model"),
        ({"name": "torchvision/none"}, r"--encoder.name is 'torchvision/none'"),
        ({"name": "vit_tiny_patch16_224", "stem": "small"}, "--encoder.stem small is for ResNets"),
        ({"name": "swin_tiny_patch4_window7_224"}, "does not take images of 64 px"),
        ({"pretrained": True}, "resnet_tiny has no published weights"),
        ({"stem": "small"}, "resnet_tiny has no published weights, output stride 8 and one stem"),
        ({"name": "convnext_atto_rms", "pretrained": True}, "convnext_atto_rms has no published weights; allowed: "),
        ({"name": "resnet18", "output_stride": 16}, "resnet18 cannot be made with .*'output_stride': 64"),
        (
            {"name": "resnetv2_50", "output_stride": 64},
            r"stride is 64; allowed with .* resnetv2_50 .*: 4, 8, 16, 32 \(",
        ),
        ({"name": "torchvision/shufflenet_v2_x0_5"}, "this model has no token map"),
        ({"name": "crossvit_tiny_240"}, "crossvit_tiny_240 gives no single map of tokens"),
    ],
)
def test_what_cannot_be_had_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def patches(channels, size):
    return torch.nn.Sequential(torch.nn.Conv2d(channels, 8, 16, 16), torch.nn.Conv2d(8, 12, 1))


def test_an_encoder_of_ones_own_is_had_by_its_name(monkeypatch):
    monkeypatch.setitem(ENCODERS, "patches", None)  # taken away again at the end
    register_encoder("patches", patches)
    encoder = make(name="patches", equi_fraction=0.25)
    assert (encoder.grid, encoder.dim, encoder.dim_inv) == ((4, 4), 12, 9)
    monkeypatch.setitem(ENCODERS, "sixty-four", lambda channels, size: patches(channels, {64: size}[size]))
    assert not masks_patches(encoder.config) and not masks_patches(EncoderConfig(name="sixty-four"))
    assert not masks_patches(EncoderConfig(name="resnet18", output_stride=4))
    with pytest.raises(ValueError, match=r"--encoder.name patches is your own, which alone sets its weights, stride"):
        make(name="patches", pretrained=True)
    with pytest.raises(ValueError, match="allowed: resnet_tiny, patches, sixty-four, torchvision/NAME or a timm model"):
        make(name="patchwork")


@pytest.mark.slow
def test_torchvision_needs_nothing_that_another_package_has_imported():
    code = "from tests.models.test_encoder import make; print(make(name='torchvision/resnet18').dim)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "512\n"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_encoder_is_made_wherever_its_features_are_asked_for(mode):
    with mode():
        encoder = make(name="convnext_atto")
        encoder(torch.rand(1, 3, 64, 64))
    assert [p.requires_grad for p in encoder.parameters()] == [
        p.requires_grad for p in make(name="convnext_atto").parameters()
    ]
    encoder(torch.rand(1, 3, 64, 64)).sum().backward()


@pytest.mark.parametrize("name", ["resnet_tiny", "convnext_atto"])
def test_what_trains_is_what_the_map_depends_on(name):
    encoder = make(name=name)
    encoder.tokens(torch.rand(2, 3, 64, 64)).square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in encoder.parameters())
    assert sum(p.requires_grad for p in encoder.parameters()) > 10


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "test_vit", "test_vit3"])
def test_a_masked_patch_is_the_one_that_the_encoder_does_not_see(name):
    """One or two prefix tokens, registers, and a patch embedding that keeps rows and columns (test_vit)."""
    encoder = make(32, name=name, output_stride=8).eval()
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    mask = torch.rand(2, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    token = torch.zeros(encoder.backbone.width, requires_grad=True)
    encoder.tokens(images, mask=mask, mask_token=token).square().sum().backward()
    unseen = images.grad.view(2, 3, 4, 8, 4, 8).abs().sum((1, 3, 5)).flatten(1) == 0
    assert torch.equal(unseen, mask) and token.grad.any()
    whole = encoder.tokens(images, mask=torch.zeros_like(mask), mask_token=token)
    assert torch.equal(whole, encoder.tokens(images))


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 64), ("swin_tiny_patch4_window7_224", 224), ("pit_ti_224", 224)]
)
def test_backbones_that_merge_patches_have_no_place_for_a_mask(name, size):
    assert make(size, name=name).backbone.width == 0


@pytest.mark.parametrize("fraction", [0.003, 0.019, 0.985, 0.999])
def test_a_split_that_leaves_a_part_too_few_channels_to_be_told_from_a_line_is_refused(fraction):
    with pytest.raises(
        ValueError, match=rf"--encoder.equi-fraction is {fraction}; allowed: 0, or a fraction that leaves both parts"
    ):
        Encoder(EncoderConfig(equi_fraction=fraction), 1, 32, (0.5,), (0.3,))


@pytest.mark.parametrize("name, size, near", [
    ("vit_tiny_patch16_224", 72, "64 or 80"), ("vit_small_patch14_dinov2", 64, "56 or 70"),
    ("torchvision/vit_b_32", 80, "64 or 96"),
])  # fmt: skip
def test_images_whose_last_pixels_are_in_no_patch_are_refused(name, size, near):
    message = rf"--data.image-size is {size}; allowed with --encoder.name {name}, .* such as {near}"
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        Encoder(EncoderConfig(name=name), 3, size, (0.5,) * 3, (0.5,) * 3)
