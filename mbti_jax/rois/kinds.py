"""The kinds of ROI, one row each.

The row number is the channel of an ROI in the network's masks and class vector, so rows are appended and
never reordered. A further kind is a row here and a rule for drawing it in training (`rois.tasks`).
"""

import dataclasses

from tfds_brats.conventions import EDEMA, ENHANCEMENT, NECROTIC_CORE


@dataclasses.dataclass(frozen=True)
class RoiKind:
    """A kind of ROI.

    Attributes:
        name: as users write it.
        label: its number in ROI maps. A component has its number in canonical segmentations; 4 is the
            resection cavity's and never an ROI.
        color: RGB.
        title: as users read it.
        is_component: whether segmentations hold it under `label`.
        layer: in a label map, kinds of a higher layer cover those of a lower one where boxes overlap.
    """

    name: str
    label: int
    color: tuple[int, int, int]
    title: str
    is_component: bool = True
    layer: int = 3


# Colors that stay apart under the common color-vision deficiencies (Okabe & Ito).
KINDS = (
    RoiKind("normal", 5, (0, 158, 115), "normal tissue", is_component=False, layer=0),
    RoiKind("necrotic_core", NECROTIC_CORE, (86, 180, 233), "necrotic core"),
    RoiKind("edema", EDEMA, (240, 228, 66), "edema", layer=2),
    RoiKind("enhancement", ENHANCEMENT, (213, 94, 0), "enhancing tumor"),
    RoiKind("tumor", 6, (204, 121, 167), "whole tumor", is_component=False, layer=1),
)

CHANNELS = tuple(kind.name for kind in KINDS)
NUM_KINDS = len(KINDS)
NORMAL, TUMOR = CHANNELS.index("normal"), CHANNELS.index("tumor")
# Name -> label, of the components of a tumor in the order of their channels.
COMPONENTS = {kind.name: kind.label for kind in KINDS if kind.is_component}
COMPONENT_CHANNELS = tuple(channel for channel, kind in enumerate(KINDS) if kind.is_component)
# What a pixel of a painted slice can be: no tumor, or a component; the number is the canonical label.
NUM_LABELS = 1 + len(COMPONENTS)
# Label in ROI maps -> name.
ROI_LABELS = {kind.label: kind.name for kind in sorted(KINDS, key=lambda kind: kind.label)}
COLORS = {kind.name: kind.color for kind in KINDS}
# Channels from the lowest layer up; within one, later rows cover earlier ones.
DRAWING_ORDER = tuple(sorted(range(NUM_KINDS), key=lambda channel: KINDS[channel].layer))

if len(ROI_LABELS) < NUM_KINDS or len(COLORS) < NUM_KINDS:
    raise ValueError("two kinds of ROI share a label or a name")
if sorted(COMPONENTS.values()) != list(range(1, NUM_LABELS)):
    raise ValueError("the components' labels must be 1, 2, ...: label logits are numbered by them")
