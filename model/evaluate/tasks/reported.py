"""What the paper reports of its own model (Gupta et al. 2025, tables of the downstream tasks), and why it is no target."""

from __future__ import annotations

from lumid.model.evaluate.tasks.base import Reported

_CT = "accuracy 0.902, sensitivity 0.880, AUROC 0.95"
CT_QUALITY = Reported(_CT, False, "its data are private; these faults are synthetic")
CT_SCANNERS = Reported(_CT, False, "its data are private; these are doses of a phantom, by scanner")
MR_QUALITY = Reported(
    "accuracy 0.856, sensitivity 0.847, AUROC 0.93", False, "its data are private; these faults are synthetic"
)
BREAST = Reported(
    "accuracy 0.932, sensitivity 0.922, AUROC 0.97", False, "its data are private CT; this is public ultrasound"
)
CHEST = Reported(
    "accuracy 0.701, sensitivity 0.691, AUROC 0.81 (probe); 88.0 beside others' mean AUROC",
    False,
    "labels, split and averaging are not stated, the epoch was chosen on the reported set, and pre-training held the test",
)
PNEUMONIA = Reported(CHEST.values, False, "its images are ChestX-ray14's; these are another hospital's children")
POLYPS = Reported("0.714", False, "neither the metric nor the split is stated; frames of one sequence are alike")
