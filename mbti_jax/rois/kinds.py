"""The kinds of ROI: their channels, labels, colours and titles."""

from tfds_brats.conventions import EDEMA, ENHANCEMENT, NECROTIC_CORE

CHANNELS = ("normal", "necrotic_core", "edema", "enhancement", "tumor")

# Labels of ROI maps, read and written. The components have their canonical labels; 4 is the resection
# cavity's and never an ROI.
ROI_LABELS = {
    1: "necrotic_core",
    2: "edema",
    3: "enhancement",
    5: "normal",
    6: "tumor",
}
COMPONENTS = {"necrotic_core": NECROTIC_CORE, "edema": EDEMA, "enhancement": ENHANCEMENT}
# Where boxes overlap, a label map shows the later one.
DRAWING_ORDER = ("normal", "tumor", "edema", "necrotic_core", "enhancement")
# One colour a channel, distinguishable under the common colour-vision deficiencies (Okabe & Ito).
COLORS = {
    "normal": (0, 158, 115),
    "necrotic_core": (86, 180, 233),
    "edema": (240, 228, 66),
    "enhancement": (213, 94, 0),
    "tumor": (204, 121, 167),
}
# Names as users read them, in the order of the page.
TISSUES = {
    "normal": "normal tissue",
    "edema": "edema",
    "enhancement": "enhancing tumour",
    "necrotic_core": "necrotic core",
    "tumor": "whole tumour",
}
