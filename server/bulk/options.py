"""What `rediff caption` was told about a data set, checked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from rediff_model.files.atomic import is_direct
from rediff_model.machine import usable_processors
from rediff_model.network.addresses import AddressError, server_url, without_password
from server.bulk.inputs import Inputs, Naming, is_data_set
from server.bulk.item import BulkError
from server.bulk.tables import TableFormat
from server.bulk.wording import Wording

if TYPE_CHECKING:
    from collections.abc import Mapping

Format = Literal["txt", "webdataset", TableFormat]


def _workers() -> int:
    """One processor is left to the engine's thread."""
    return max(1, min(8, usable_processors() - 1))


class BulkOptions(BaseModel):
    """Inputs, outputs and manners of a run; fields are the command's options."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    files: tuple[Path, ...] = ()
    lists: tuple[Path, ...] = ()
    recursive: bool = False
    globs: tuple[str, ...] = ()
    naming: Naming = "path"
    image_column: str = "image"
    id_column: str | None = None
    out: Path | None = None
    output_format: Format | None = None
    shard_size: int = Field(1000, ge=1)
    min_confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    doubtful: Path | None = None
    report: Path | None = None
    strict: bool = False
    overwrite: bool = False
    resume: bool = False
    progress: bool | None = None
    workers: int = Field(default_factory=_workers, ge=1, le=256)
    prepend: str = ""
    append: str = ""
    trigger: str = ""
    drop_incomplete_sentence: bool = False
    base_url: str | None = None
    concurrency: int = Field(16, ge=1, le=4096)
    retries: int = Field(8, ge=0, le=1000)
    ray: bool = False
    ray_engines: int | None = Field(None, ge=1, le=100_000)
    ray_group: int = Field(64, ge=1, le=1_000_000)

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """The options of a command line, None standing for what was not given.

        Raises:
            BulkError: a value that cannot be used, or options that exclude each other.
        """
        try:
            options = cls.model_validate(
                {name: value for name, value in given.items() if value is not None}
            )
        except ValidationError as error:
            first = error.errors()[0]
            field = str(first["loc"][0])
            name = {"naming": "id", "output_format": "format"}.get(field, field).replace("_", "-")
            got = without_password(first["input"]) if field == "base_url" else first["input"]
            reason = first["msg"].removeprefix("Value error, ")
            raise BulkError(f"--{name}: {reason}, got {got!r}") from None
        try:
            options._check()
        # Such as a name that is too long to ask for.
        except OSError as error:
            raise BulkError(f"{error.filename}: {error.strerror}") from None
        return options

    @field_validator("prepend", "append", "trigger")
    @classmethod
    def _is_text(cls, value: str) -> str:
        value.encode()
        return value

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        url = None if value is None else server_url(value)
        if url is not None and url.endswith(("/v1", "/caption")):
            raise AddressError(f"leave out {url[url.rindex('/') :]}")
        return url

    @property
    def writes(self) -> bool:
        """Whether captions go to files rather than being printed."""
        return (
            any(is_data_set(path) for path in self.files)
            or bool(self.lists)
            or self.out is not None
            or self.output_format is not None
        )

    @property
    def format(self) -> Format:
        """The given one, else that of the suffix of `out`, else sidecars."""
        if self.output_format is not None:
            return self.output_format
        suffix = "" if self.out is None else self.out.suffix.lower().removeprefix(".")
        return next((one for one in get_args(TableFormat) if one == suffix), "txt")

    @property
    def doubtful_out(self) -> Path | None:
        """Where doubtful captions go; None: nowhere, or beside the others."""
        if self.doubtful is not None or self.min_confidence is None or self.out is None:
            return self.doubtful
        if self.format == "txt":
            return None
        if self.format == "webdataset":
            return self.out.with_name(f"{self.out.name}.doubtful")
        return self.out.with_name(f"{self.out.stem}.doubtful{self.out.suffix}")

    def inputs(self, max_bytes: int) -> Inputs:
        """Where pictures come from; `max_bytes` bounds one from a pipe."""
        return Inputs(
            self.files,
            self.lists,
            self.recursive,
            self.globs,
            self.naming,
            max_bytes,
            self.image_column,
            self.id_column,
        )

    @property
    def wording(self) -> Wording:
        return Wording(
            self.prepend, self.append, self.trigger, full_sentences=self.drop_incomplete_sentence
        )

    def _check(self) -> None:
        if not self.files and not self.lists:
            raise BulkError("name pictures, folders or shards, or a file of paths with --list")
        if self.overwrite and self.resume:
            raise BulkError("--overwrite starts over, --resume does not: give one")
        self._check_ray()
        if not self.writes:
            for name in ("overwrite", "resume", "min_confidence", "doubtful", "report"):
                if getattr(self, name):
                    raise BulkError(
                        f"--{name.replace('_', '-')} is for captions that are written: "
                        "say where with --out or --format"
                    )
            return
        if self.format != "txt" and self.out is None:
            raise BulkError(f"--format {self.format} needs --out")
        if self.output_format is None and self.out is not None and self.out.suffix:
            known = get_args(TableFormat)
            if self.format not in known and not self.out.exists():
                raise BulkError(
                    f"--out {self.out}: a file ends in {', '.join(f'.{one}' for one in known)}; "
                    "for a folder of that name give --format txt or --format webdataset"
                )
        if self.doubtful is not None and self.min_confidence is None:
            raise BulkError("--doubtful needs --min-confidence")
        self._check_apart()
        for folder in (self.out, self.doubtful):
            if self.format not in ("txt", "webdataset") or folder is None:
                continue
            if folder.exists() and not folder.is_dir():
                raise BulkError(f"{folder} is a file, and --format {self.format} needs a folder")
        if self.format in get_args(TableFormat):
            for path in (self.out, self.doubtful):
                if path is not None and path.is_dir():
                    raise BulkError(f"{path} is a folder, and --format {self.format} needs a file")

    def _check_apart(self) -> None:
        """No file is written twice, and none that is read is written."""
        outputs = [path for path in (self.out, self.doubtful_out, self.report) if path is not None]
        for number, path in enumerate(outputs):
            if os.path.abspath(path) in map(os.path.abspath, outputs[:number]):
                raise BulkError(f"{path} cannot take two outputs")
        if self.report is not None and self.report.is_dir():
            raise BulkError(f"{self.report} is a folder, and --report needs a file")
        read = [path for path in (*self.files, *self.lists) if path.is_file()]
        for path in outputs:
            for one in read:
                if path.is_file() and path.samefile(one):
                    raise BulkError(f"{path} is read by this run and cannot be written to")
                shard = self.format == "webdataset" and one.suffix.lower() == ".tar"
                if shard and path.is_dir() and path.samefile(one.parent):
                    raise BulkError(f"{one} lies where shards are to be written, in {path}")

    def _check_ray(self) -> None:
        given = [name for name in ("ray_engines", "ray_group") if name in self.model_fields_set]
        if not self.ray:
            if given:
                raise BulkError(f"--{given[0].replace('_', '-')} is for --ray")
            return
        if self.base_url is not None:
            raise BulkError("--base-url is for a server, --ray is for a cluster: give one")
        for name in ("concurrency", "retries"):
            if name in self.model_fields_set:
                raise BulkError(f"--{name} is for --base-url, not for --ray")
        if self.out is None:
            raise BulkError("--ray needs --out")
        if is_direct(self.out):
            raise BulkError(f"--ray needs a file or folder with --out, {self.out} is neither")
        for path in self.files:
            if path.suffix.lower() == ".parquet":
                raise BulkError(f"--ray reads pictures, folders, lists and .tar shards, not {path}")
