"""What a published row is, and what makes configs of several."""

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict


class Row(NamedTuple):
    """A published figure: top-1 accuracy of the target student in percent."""

    config: Callable[[], ConfigDict]
    figure: float | None  # None: not known
    spread: float | None  # standard deviation over the seeds; None: not told
    grade: str
    epoch: str  # which epoch it is of: "last", "best" or "?"
    source: str

    @property
    def text(self) -> str:
        """As it is printed: "74.14 ± 0.16 [B, ?]"."""
        if self.figure is None:
            return "not known"
        spread = "" if self.spread is None else f" ± {self.spread:.2f}"
        return f"{self.figure:.2f}{spread} [{self.grade}, {self.epoch}]"


def with_fields(make: Callable[[], ConfigDict], **fields: object) -> Callable[[], ConfigDict]:
    """What makes the config of `make` with other values of some fields; `orc__beta` is that of `orc.beta`."""

    def config() -> ConfigDict:
        changed = make()
        for name, value in fields.items():
            group, _, option = name.rpartition("__")
            (changed[group] if group else changed)[option] = value
        return changed

    return config


def pair(teacher: str, student: str, **fields: object) -> dict[str, object]:
    """The fields of a teacher and a student, and others."""
    return {"teacher": teacher, "student": student, **fields}


# RepDistiller's README: student by itself, student with KD; the last of 240 epochs.
PAIRS = {
    ("wrn_40_2", "wrn_16_2"): 74.92,
    ("wrn_40_2", "wrn_40_1"): 73.54,
    ("resnet56", "resnet20"): 70.66,
    ("resnet110", "resnet20"): 70.67,
    ("resnet110", "resnet32"): 73.08,
    ("resnet32x4", "resnet8x4"): 73.33,
    ("vgg13", "vgg8"): 72.98,
    ("vgg13", "MobileNetV2"): 67.37,
    ("ResNet50", "MobileNetV2"): 67.35,
    ("ResNet50", "vgg8"): 73.81,
    ("resnet32x4", "ShuffleV1"): 74.07,
    ("resnet32x4", "ShuffleV2"): 74.45,
    ("wrn_40_2", "ShuffleV1"): 74.83,
}
