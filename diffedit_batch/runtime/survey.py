"""What a run finds when it starts; nothing is written."""

from collections.abc import Callable

from diffedit_batch.config import JobConfig
from diffedit_batch.data.ledger import Ledger
from diffedit_batch.data.manifest import Manifest
from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import ManifestError
from diffedit_batch.models.identity import (
    ModelIdentity,
    identify_clip,
    identify_lpips,
    identify_safety_checker,
)
from diffedit_batch.runtime.selection import Selection, Selector
from diffedit_batch.runtime.wanted import Wanted, find_wanted, open_generated


class Survey:
    """The manifest of a job against the texts and results there are.

    Args:
        config: the job.
        selection: which rows are done beside those that have no result yet.
        storage: its output.
        model: its model.
        run_id: of the run that will add to the texts.
        check_lease: see `TextTable`.

    Attributes:
        generated: the texts.
        manifest: the rows, of those that match.
        selector: what becomes of each.

    Raises:
        ManifestError: the manifest cannot be used as a whole, or not beside these results.
        ConfigError: the condition of the selection is none.
        ModelError: there is no such CLIP model, no file of LPIPS, or no safety checker.
    """

    def __init__(
        self,
        config: JobConfig,
        selection: Selection,
        storage: Storage,
        model: ModelIdentity,
        *,
        run_id: str = "",
        check_lease: Callable[[], object] = lambda: None,
    ) -> None:
        # What cannot be had is said before anything starts.
        if config.scores.clip is not None:
            identify_clip(config.scores)
        if config.scores.lpips is not None:
            identify_lpips(config.scores)
        if config.checked_model is not None:
            identify_safety_checker(config.checked_model)
        self.generated = open_generated(config, storage, run_id, check_lease)
        self.manifest = Manifest(
            config, f"{model.id}@{model.revision}", self.generated, selection.where
        )
        ledger = Ledger(storage)
        problems = ledger.type_problems(self.manifest.carried_schema)
        if problems:
            raise ManifestError(f"manifest {self.manifest.uri}", problems)
        self.selector = Selector(selection, self.manifest, ledger)

    def find_wanted(self) -> Wanted:
        """Which texts rows lack that are still to be edited."""
        if not self.manifest.may_lack_texts:
            return Wanted()
        return find_wanted(self.selector.rows_to_do())
