"""The models that the paper compares with, and one of today, by their names in timm; each has its own input and licence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Baseline:
    """A row of the paper's tables, and the weights that come nearest to what it says."""

    row: str
    timm: str
    licence: str
    note: str = ""


BASELINES = (
    Baseline("ResNet", "resnet50.a1_in1k", "apache-2.0", "the paper gives no depth"),
    Baseline("EfficientNet-S", "tf_efficientnetv2_s.in1k", "apache-2.0"),
    Baseline("ConvNext-B", "convnext_base.fb_in1k", "apache-2.0"),
    Baseline("ConvNextV2-B", "convnextv2_base.fcmae_ft_in1k", "cc-by-nc-4.0"),
    Baseline("ViT-B", "vit_base_patch16_224.augreg_in1k", "apache-2.0"),
    Baseline("Swin-B", "swin_base_patch4_window7_224.ms_in1k", "mit"),
    Baseline("MAE", "vit_base_patch16_224.mae", "cc-by-nc-4.0"),
    Baseline("DINOv2", "vit_base_patch14_dinov2.lvd142m", "apache-2.0", "at 224, not at its own 518"),
    Baseline("DINOv3", "vit_base_patch16_dinov3.lvd1689m", "dinov3", "not in the paper: a control of today"),
)
"""``lumid evaluate baselines`` stands for all of them, ``random:baselines`` for the same untrained."""


def expanded(models: list[str]) -> list[str]:
    """Names of models with ``baselines`` and ``random:baselines`` as those that they stand for.

    >>> expanded(["mine", "baselines"])[:2]
    ['mine', 'resnet50.a1_in1k']
    """
    whole: list[str] = []
    for model in models:
        start, _, name = model.rpartition("baselines")
        if not name and start in ("", "random:") and model:
            whole += [f"{start}{one.timm}" for one in BASELINES]
        else:
            whole.append(model)
    return whole
