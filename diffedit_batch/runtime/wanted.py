"""Which prompts and captions the rows to be done lack, found out without a model."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from diffedit_batch.config import JobConfig, fingerprint
from diffedit_batch.data.generated import Generated, TextTable
from diffedit_batch.data.row import ManifestRow
from diffedit_batch.data.storage import Storage
from diffedit_batch.data.text_files import CAPTIONS, PROMPTS, Key
from diffedit_batch.models.identity import ModelIdentity, identify_captioner, identify_prompt_writer
from diffedit_batch.schema import ImageRef


@dataclass(frozen=True)
class TextRequest:
    """A text that is wanted: its key, and for a caption where the image is."""

    key: Key
    image: ImageRef | None = None


@dataclass
class Wanted:
    """Texts to generate, each once, however many rows ask for it."""

    prompts: dict[Key, TextRequest] = field(default_factory=dict)
    captions: dict[Key, TextRequest] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.prompts or self.captions)

    @property
    def sections(self) -> tuple[str, ...]:
        """Of the config, with the models that generate them."""
        return tuple(kind.name for kind in (PROMPTS, CAPTIONS) if getattr(self, kind.name))

    def add(self, row: ManifestRow) -> None:
        """Add what a row lacks."""
        for name, key in row.missing:
            assert row.request is not None
            if name == PROMPTS.name:
                self.prompts.setdefault(key, TextRequest(key))
            else:
                self.captions.setdefault(key, TextRequest(key, row.request.image))


def open_generated(
    config: JobConfig,
    storage: Storage,
    run_id: str = "",
    check_lease: Callable[[], object] = lambda: None,
) -> Generated:
    """The texts under a job's output folder, and what would generate the missing ones; other
    arguments as of `TextTable`.
    """
    writing = (run_id, check_lease)
    return Generated(
        prompts=TextTable(storage, PROMPTS, lambda: _prompts_generator(config), *writing),
        captions=TextTable(storage, CAPTIONS, lambda: _captions_generator(config), *writing),
    )


def find_wanted(rows: Iterable[ManifestRow]) -> Wanted:
    """What rows lack that are still to be edited. Raises ModelError where a model is missing."""
    wanted = Wanted()
    for row in rows:
        wanted.add(row)
    return wanted


def _prompts_generator(config: JobConfig) -> str:
    prompts = config.prompts
    sampling = prompts.model_dump(exclude={"id", "revision", "dtype", "local_files_only"})
    return _name(
        identify_prompt_writer(prompts), [sampling, prompts.dtype or config.device, config.seed]
    )


def _captions_generator(config: JobConfig) -> str:
    captions = config.captions
    return _name(
        identify_captioner(captions),
        [captions.prefix, captions.max_new_tokens, captions.dtype or config.device],
    )


def _name(model: ModelIdentity, parameters: list[object]) -> str:
    """For people to recognise, and different wherever texts may be."""
    return f"{model.id}@{model.revision} {fingerprint(parameters)[:12]}"
