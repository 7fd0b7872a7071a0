"""The networks of today in PyTorch: timm's own classes, whole and in narrow variants that are quick to compile."""

from collections.abc import Callable
from functools import partial

import torch
from torch import library, nn

from orc_jax.models import MODELS, VIT_SIZES, efficientnet, resnet, sides
from orc_jax.models.convnext import ConvNeXt
from orc_jax.models.efficientnet import EfficientNet, Row
from orc_jax.models.vit import Mixer, VisionTransformer
from tests import torch_models


def define_operators() -> None:
    """torchvision of another build than PyTorch's lacks its compiled operators, and then fails to import, though no
    network here needs them."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        registered = library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            registered.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        OPERATORS.append(registered)


OPERATORS: list[library.Library] = []  # kept: what is collected is not registered any more
define_operators()

import timm  # noqa: E402
from timm.models import _efficientnet_builder as builder  # noqa: E402
from timm.models import efficientnet as timm_efficientnet  # noqa: E402
from timm.models import mobilenetv3 as timm_mobilenetv3  # noqa: E402


class WithFeatures(nn.Module):
    """A network of timm that returns (logits, features), with its names."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x):
        features = self.network.forward_head(self.network.forward_features(x), pre_logits=True)
        return self.network.get_classifier()(features), features

    def state_dict(self, *args, **options):
        return self.network.state_dict(*args, **options)

    def load_state_dict(self, *args, **options):
        return self.network.load_state_dict(*args, **options)

    def named_parameters(self, *args, **options):
        return self.network.named_parameters(*args, **options)


def whole(name: str, classes: int, size: int) -> nn.Module:
    """timm's network of a registered name, or what ours for small images are in timm."""
    if name.startswith("mixer"):
        of = timm.models.mlp_mixer.MlpMixer
        return of(img_size=size, patch_size=4 if size < 48 else 16, num_blocks=8, embed_dim=512, num_classes=classes)
    if name.endswith("_patch4_32"):
        numbers = VIT_SIZES[name.split("_")[1]]
        return timm_vit(classes, numbers["features"], numbers["heads"], 12, 4, size)
    if name.startswith(("vit", "deit")):
        return timm.create_model(name, num_classes=classes, img_size=size)
    if name.startswith("convnext") and name.endswith("_32"):
        return timm.create_model(name.removesuffix("_32"), num_classes=classes, patch_size=1)
    return timm.create_model(name, num_classes=classes)


def timm_vit(classes: int, features: int, heads: int, blocks: int, patch: int, size: int) -> nn.Module:
    of = timm.models.vision_transformer.VisionTransformer
    numbers = {"embed_dim": features, "num_heads": heads, "depth": blocks}
    return of(img_size=size, patch_size=patch, num_classes=classes, **numbers)


# Every kind of block, each with what it may have, in few channels: ours, and timm's words for the same.
ROWS = (
    (Row("ds", 1, 3, 1, 1, 8, True, True),),
    (Row("ir", 2, 5, 2, 2.5, 16, relu=True), Row("ir", 1, 3, 1, 3, 16, True)),
    (Row("cn", 1, 1, 1, 1, 24, skips=False),),
)
WORDS = [
    ["ds_r1_k3_s1_e1_c8_se0.25_nre"],
    ["ir_r2_k5_s2_e2.5_c16_nre", "ir_r1_k3_s1_e3_c16_se0.25"],
    ["cn_r1_k1_s1_c24"],
]
FUSED_ROWS = (
    (Row("cn", 1, 3, 1, 1, 8),),
    (Row("er", 2, 3, 2, 4, 16),),
    (Row("ir", 1, 3, 2, 4, 24, True), Row("ir", 1, 3, 1, 6, 24, True)),
)
FUSED_WORDS = [
    ["cn_r1_k3_s1_e1_c8_skip"],
    ["er_r2_k3_s2_e4_c16"],
    ["ir_r1_k3_s2_e4_c24_se0.25", "ir_r1_k3_s1_e6_c24_se0.25"],
]


def timm_mobile(classes: int) -> nn.Module:
    squeeze = partial(
        timm_mobilenetv3.SqueezeExcite,
        gate_layer="hard_sigmoid",
        force_act_layer=nn.ReLU,
        rd_round_fn=timm_mobilenetv3.round_channels,
    )
    return timm_mobilenetv3.MobileNetV3(
        builder.decode_arch_def(WORDS),
        num_classes=classes,
        num_features=32,
        stem_size=8,
        fix_stem=True,
        act_layer=timm.layers.get_act_layer("hard_swish"),
        se_layer=squeeze,
    )


def timm_efficient(classes: int) -> nn.Module:
    return timm_efficientnet.EfficientNet(
        builder.decode_arch_def(FUSED_WORDS),
        num_classes=classes,
        num_features=32,
        stem_size=8,
        fix_stem=True,
        pad_type="same",
        norm_layer=partial(nn.BatchNorm2d, eps=1e-3),
        act_layer=nn.SiLU,
    )


def timm_convnext(classes: int, convolutional: bool) -> nn.Module:
    numbers = {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24), "patch_size": 2 if convolutional else 1}
    return timm.models.convnext.ConvNeXt(num_classes=classes, conv_mlp=convolutional, **numbers)


def timm_resnetd(classes: int) -> nn.Module:
    of, numbers = timm.models.resnet, {"layers": (1, 1, 1, 1), "channels": (8, 12, 16, 20)}
    return of.ResNet(of.Bottleneck, num_classes=classes, stem_width=4, stem_type="deep", avg_down=True, **numbers)


# By name: ours, the side of its images, and timm's by the number of classes.
Variant = tuple[Callable, int, Callable[[int], nn.Module]]
NARROW: dict[str, Variant] = {
    "narrow_vit": (
        partial(VisionTransformer, features=32, heads=2, blocks=2, patch=4),
        16,
        lambda classes: timm_vit(classes, 32, 2, 2, 4, 16),
    ),
    "narrow_mixer": (
        partial(Mixer, features=24, blocks=2, patch=4),
        16,
        lambda classes: timm.models.mlp_mixer.MlpMixer(
            img_size=16, patch_size=4, num_classes=classes, num_blocks=2, embed_dim=24
        ),
    ),
    "narrow_convnext": (
        partial(ConvNeXt, blocks=(1, 1, 1, 1), widths=(8, 12, 16, 24), patch=1, convolutional=False),
        16,
        partial(timm_convnext, convolutional=False),
    ),
    "narrow_efficientnet": (
        partial(EfficientNet, stages=FUSED_ROWS, stem=8, style=efficientnet.efficient(head=32, same=True, eps=1e-3)),
        24,
        timm_efficient,
    ),
    "narrow_mobilenetv3": (
        partial(EfficientNet, stages=ROWS, stem=8, style=efficientnet.mobile(head=32)),
        24,
        timm_mobile,
    ),
    "narrow_resnetd": (
        partial(resnet.ResNet, blocks=(1, 1, 1, 1), widths=(8, 32, 48, 64, 80), inner=(8, 12, 16, 20), stem="deep"),
        32,
        timm_resnetd,
    ),
}
WHOLE = [
    name for name in MODELS if name.startswith(("deit", "vit", "mixer", "convnext", "efficient", "tf_", "mobilenetv3"))
]
WHOLE += ["resnet18d", "resnet34d", "resnet50d"]


def reference(name: str, classes: int, size: int) -> WithFeatures:
    """timm's network of a name of ours."""
    return WithFeatures(NARROW[name][2](classes) if name in NARROW else whole(name, classes, size))


def side(name: str) -> int:
    """Of the images in tests: whole networks get smaller ones than they are made for."""
    return NARROW[name][1] if name in NARROW else min(sides(name), 64)


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Draws every parameter and buffer, so that activations stay moderate and nothing is without effect."""
    torch_models.randomize(model, seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    of_norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in of_norms and name.endswith("weight"):
            parameter.uniform_(0.5, 1.5, generator=generator)
        elif id(parameter) in of_norms or name.endswith(("cls_token", "pos_embed")):
            parameter.normal_(0, 0.2, generator=generator)
        elif name.endswith("gamma"):
            parameter.uniform_(0.2, 0.5, generator=generator)
    for module in model.modules():
        if getattr(module, "has_skip", False):  # as in `torch_models`: or sums of branches would grow with depth
            last = next(name for name in ("bn3", "bn2", "bn1") if hasattr(module, name))
            module.get_submodule(last).weight.mul_(0.3)
    return model


SMOOTH = {
    "ReLU": nn.SiLU,
    "HardSwish": nn.SiLU,
    "Hardswish": nn.SiLU,
    "HardSigmoid": nn.Sigmoid,
    "Hardsigmoid": nn.Sigmoid,
}


def smooth(model: nn.Module) -> None:
    """Replaces activations and poolings that have corners; ours become the same functions (see `test_timm`)."""
    for name, child in model.named_children():
        kind = type(child).__name__
        if kind in SMOOTH:
            setattr(model, name, SMOOTH[kind]())
        elif kind == "MaxPool2d":
            setattr(model, name, nn.AvgPool2d(3, 2, 1))
        else:
            smooth(child)
