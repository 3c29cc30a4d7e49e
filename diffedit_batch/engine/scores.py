"""What is measured of finished edits with CLIP.

Legend: B edits, D width of CLIP's vectors.
"""

import torch
from torch import Tensor
from torch.nn import functional

_ROUNDING = 1e-4
"""Length of a difference of two vectors below which it has no direction."""


def clip_cosines(
    source: Tensor, edited: Tensor, source_text: Tensor, target_text: Tensor
) -> Tensor:
    """How well edits fit their texts, (B, 3), by vectors of length 1, (B, D) each.

    Cosines of the edited picture and the target text, of what changed in the picture and in the
    text (0 where nothing did), and of the edited picture and the source, as InstructPix2Pix has
    them (arXiv 2211.09800, section 3.1.2).
    """
    direction = functional.cosine_similarity(
        edited - source, target_text - source_text, eps=_ROUNDING
    )
    return torch.stack(
        [(edited * target_text).sum(dim=1), direction, (source * edited).sum(dim=1)], dim=1
    )
