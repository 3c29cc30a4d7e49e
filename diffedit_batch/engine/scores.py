"""What is measured of finished edits with CLIP, and which of several of a row is the best.

Legend: B edits, D width of CLIP's vectors.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from diffedit_batch.engine.requests import Candidate, EditResult

CLIP_SCORES = ("clip_text", "clip_direction", "clip_image")

_ROUNDING = 1e-4
"""Length of a difference of two vectors below which it has no direction."""


def clip_cosines(
    source: Tensor, edited: Tensor, source_text: Tensor, target_text: Tensor
) -> Tensor:
    """`CLIP_SCORES` of edits, (B, 3), by vectors of length 1, (B, D) each.

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


def best_of(results: Sequence[EditResult], score_name: str) -> EditResult:
    """The best candidate of a row, with what all of them scored.

    An edit beats a picture left as it is, that one beats a failure; then one that is not flagged
    beats one that is; then the higher score wins. Of scores that are equal to 4 decimals it is the
    first: how pictures were batched must not decide.
    """
    scores = [None if one.error else getattr(one, score_name) for one in results]
    ranks = ["failed", "unchanged", "edited"]

    def key(number: int) -> tuple[int, bool, float]:
        one, value = results[number], scores[number]
        score = -math.inf if value is None else round(value, 4)
        return ranks.index(one.status), not one.is_flagged, score

    best = results[max(range(len(results)), key=key)]
    return best.with_found(
        candidates=tuple(
            Candidate(one.request.seed, value) for one, value in zip(results, scores, strict=True)
        ),
        seconds=max(one.seconds for one in results),
    )
