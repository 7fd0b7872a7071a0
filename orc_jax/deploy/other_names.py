"""What arrays of the networks here are called in other places: timm, torchvision, and code that follows these.

Only names that differ for the same network are here. Networks that differ in what they compute, though their arrays
have the same shapes, are not: timm's MobileNetV1 halves the resolution in its stem, and a VGG of 16 layers for small
images may have four poolings or five.
"""

import re
from collections.abc import Callable, Collection, Iterator

HEADS = ("fc", "linear", "classifier", "head", "head.fc")  # the last layer
SHORTCUTS = ("downsample", "shortcut")  # the projections of residual networks
# What wrappers of a part put into names; what stands before all names is no matter of names (see `torch_match`).
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}

# timm's MobileNetV2. torchvision's names are those of the network here.
TIMM_BLOCKS = (1, 2, 3, 4, 3, 3, 1)  # of each stage
TIMM_OUTER = {
    "conv_stem": "features.0.0",
    "bn1": "features.0.1",
    "conv_head": "features.18.0",
    "bn2": "features.18.1",
    "classifier": "classifier.1",
}
TIMM_FIRST = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1", "bn2": "2"}
TIMM_BLOCK = {"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1", "conv_pwl": "2", "bn3": "3"}

# torchvision's VGG-16 with normalisation: convolution after convolution, each followed by normalisation and ReLU, and
# poolings in between. The network here calls the first two by themselves.
VGG_POOLS = (6, 13, 23, 33)


def mobilenet_v2(name: str) -> str:
    """The name here of an array of timm's MobileNetV2; any other name as it is."""
    outer, _, leaf = name.partition(".")
    if outer in TIMM_OUTER and "." not in leaf:
        return f"{TIMM_OUTER[outer]}.{leaf}"
    found = re.fullmatch(r"blocks\.(\d)\.(\d)\.(conv_\w+|bn\d)\.(\w+)", name)
    if not found or int(found[1]) >= len(TIMM_BLOCKS):
        return name
    stage, block = int(found[1]), int(found[2])
    inner = (TIMM_BLOCK if stage else TIMM_FIRST).get(found[3])
    return name if inner is None else f"features.{1 + sum(TIMM_BLOCKS[:stage]) + block}.conv.{inner}.{found[4]}"


def vgg16_linears(name: str) -> str:
    """The name here of an array of torchvision's `vgg16_bn`; any other name as it is."""
    found = re.fullmatch(r"features\.(\d+)\.(\w+)", name)
    if not found:
        return name
    number, leaf = int(found[1]), found[2]
    if number < VGG_POOLS[0]:
        return f"{('conv', 'bn')[number % 3]}{number // 3 + 1}.{leaf}" if number % 3 < 2 else name
    stage = sum(pool < number for pool in VGG_POOLS)
    return f"layer{stage}.{number - VGG_POOLS[stage - 1] - 1}.{leaf}"


def densenet(name: str) -> str:
    """The name here of an array of a DenseNet that calls its last normalisation as torchvision does."""
    return re.sub(r"^features\.norm5\.", "features.norm_final.", name)


BY_MODEL: dict[str, Callable[[str], str]] = {
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v2_1_4": mobilenet_v2,
    "vgg16_linears": vgg16_linears,
    "densenet_40_12_norm": densenet,
}


def known_as(model: str, wanted: Collection[str]) -> Callable[[str], str]:
    """A function from the name of an array in a file to that of the array of `model`, whose own names are `wanted`.

    A name that is none of `model` stays as it is.
    """
    return lambda name: next((other for other in _spellings(model, name) if other in wanted), name)


def _spellings(model: str, name: str) -> Iterator[str]:
    yield name
    if model in BY_MODEL:
        yield BY_MODEL[model](name)
    module, _, leaf = name.rpartition(".")
    if module in HEADS:
        yield from (f"{head}.{leaf}" for head in HEADS)
    for one, other in (SHORTCUTS, SHORTCUTS[::-1]):
        yield name.replace(f".{one}.", f".{other}.")
    first, *rest = name.split(".")
    yield ".".join([first, *(part for part in rest if part not in WRAPPERS)])
