"""Can the judges be trusted? Their verdicts on pictures whose verdict is known."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffedit_batch.demo.scenes import ImageArray
from diffedit_batch.evaluation.arms import Studio
from diffedit_batch.evaluation.items import Item
from diffedit_batch.evaluation.judges import judge


@dataclass(frozen=True)
class Admission:
    """Success rates on pictures whose verdict is known.

    Attributes:
        source: of untouched sources; must be 0.
        counterfactual: of true edits; must be at least 0.995.
        round_trip: of true edits through the autoencoder: what it leaves for any editor to reach.
        agreement: share of the first two on which both judges say the same; must be at least 0.97.
        num_items: items judged.
    """

    source: float
    counterfactual: float
    round_trip: float
    agreement: float
    num_items: int

    @property
    def is_granted(self) -> bool:
        """Whether the judges say what they must."""
        return self.source == 0 and self.counterfactual >= 0.995 and self.agreement >= 0.97


def admit(studio: Studio, items: Sequence[Item]) -> Admission:
    """What the judges say of untouched, truly edited, and truly edited and autoencoded pictures."""

    def rate(pictures: Sequence[ImageArray]) -> tuple[float, float]:
        verdicts = [judge(item, one) for item, one in zip(items, pictures, strict=True)]
        agreed = sum(one.by_rules == one.by_network for one in verdicts)
        return sum(one.is_success for one in verdicts) / len(items), agreed / len(items)

    source, agreement_on_sources = rate([item.source for item in items])
    counterfactual, agreement_on_edits = rate([item.counterfactual for item in items])
    round_trip, _ = rate([studio.round_trip(item.counterfactual) for item in items])
    return Admission(
        source,
        counterfactual,
        round_trip,
        (agreement_on_sources + agreement_on_edits) / 2,
        len(items),
    )
