"""Where rows and images come from, and where results go."""

from typing import Literal

from pydantic import Field, field_validator

from diffedit_batch.config.section import Section
from diffedit_batch.redact import has_credentials, is_signed


class InputConfig(Section):
    """Where rows and images come from."""

    manifest: str = Field(description="Parquet file, folder or glob; local or s3://, gs://, ...")
    image_root: str | None = Field(None, description="null: the manifest's folder")
    allowed_schemes: list[Literal["s3", "gs", "http", "https"]] = Field(
        ["s3", "gs"], description="of image URIs that are not under image_root"
    )
    image_key: Literal["stat", "content"] = Field(
        "stat", description="what tells that an image file changed: size and age, or a hash of it"
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="our name: the manifest's name"
    )
    max_pixels: int = Field(64_000_000, ge=1, description="larger images fail, before decoding")
    max_bytes: int = Field(64_000_000, ge=1, description="larger files fail, before opening")
    size_multiple: int | None = Field(
        None, ge=8, description="px; working sizes are multiples of it; null: what the UNet halves"
    )

    @field_validator("manifest", "image_root")
    @classmethod
    def _holds_no_secret(cls, uri: str | None) -> str | None:
        return _without_secret(uri)


class OutputConfig(Section):
    """Where results go, and how many rows may fail."""

    uri: str = Field(description="folder, local or s3://, gs://, ...")
    max_failed_fraction: float = Field(0.1, ge=0, le=1)

    @property
    def preview_uri(self) -> str:
        """Where previews go: beside the output, so that the two are never mixed."""
        return f"{self.uri.rstrip('/')}-preview"

    @field_validator("uri")
    @classmethod
    def _holds_no_secret(cls, uri: str) -> str:
        _without_secret(uri)
        return uri


def _without_secret(uri: str | None) -> str | None:
    if uri is not None and (has_credentials(uri) or is_signed(uri)):
        raise ValueError(
            "holds a password or signature, which would end up in records and logs; leave them to"
            " the environment (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, roles)"
        )
    return uri
