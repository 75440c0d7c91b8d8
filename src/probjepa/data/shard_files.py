"""Files of rows in a folder, or in an object store: which there are, and what tells each from what it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from probjepa.data.files import SHARD_SUFFIXES, names_image, suffix_of, walk
from probjepa.errors import ConfigError, DataError, ProbjepaError, short
from probjepa.files import first_line, regular

INDEX = "index.json"  # of litdata's chunks, which end in .bin: what it does not name is passed over
# what object stores say of a file's content, the best first
_MARKS = ("etag", "generation", "md5hash", "mtime", "lastmodified", "last_modified", "created")


class ShardError(DataError):
    """A shard that cannot be read, has other columns than the first, or changes: the others may go on."""


class Shard(NamedTuple):
    """One file of rows.

    Attributes
    ----------
    path
        where it is: a path, or an address such as ``s3://bucket/a.parquet``
    name
        what its output is called, below the folder of outputs
    """

    path: str
    name: str

    @property
    def file(self) -> str:
        """What it is called itself, below the folder of inputs."""
        return "/".join(PurePosixPath(self.path).parts[-1 - self.name.count("/") :])


def is_remote(place: str) -> bool:
    """Whether a place is an address that fsspec opens."""
    return "://" in place


def filesystem(address: str) -> tuple[Any, str]:
    """Return the fsspec file system of an address, and its path there.

    Raises
    ------
    ConfigError
        if no installed package knows such addresses
    """
    from fsspec.core import url_to_fs

    try:
        found: tuple[Any, str] = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"'{address}' cannot be opened ({first_line(error)}): install what fsspec needs for it, s3fs for "
            "s3:// or gcsfs for gs://"
        ) from error
    return found


def content_of(place: str) -> bytes:
    """Return what a file holds."""
    if not is_remote(place):
        return regular(place).read_bytes()
    system, name = filesystem(place)
    content: bytes = system.cat_file(name)
    return content


def files_below(source: str) -> dict[str, str]:
    """Return the files below a folder or an address, or the one that it is: name below it → path.

    Raises
    ------
    DataError
        if there is nothing, or a store cannot be listed
    """
    if is_remote(source):
        system, root = filesystem(source)
        with _remote(source, "listed"):
            system.invalidate_cache()
            return {
                name[len(root) :].lstrip("/") or PurePosixPath(name).name: system.unstrip_protocol(name)
                for name in system.find(root)
            }
    if not Path(source).exists():
        raise DataError(f"no such file or folder: '{source}': check the path")
    if Path(source).is_dir():
        return {file.relative_to(source).as_posix(): str(file) for file in walk(Path(source))}
    return {Path(source).name: source}


def find_files(source: str) -> tuple[dict[str, str], list[str]]:
    """Return the shards below a folder or an address, or the one that it is, and the paths of other files.

    Shards are name below it → path, sorted by name.

    Raises
    ------
    DataError
        if there is none, or one that litdata's index names is not there
    """
    found = files_below(source)
    chunks, indexes = set[str](), set[str]()
    for name, path in found.items():
        if PurePosixPath(name).name == INDEX and (named := chunk_index(path)[1]):
            indexes.add(name)
            chunks |= {name.removesuffix(INDEX) + chunk for chunk in named}
            if absent := sorted(chunks - found.keys()):
                raise DataError(f"'{path}' names {absent[0]}, which is not there: copy it, too")
    if suffix_of(source) == ".bin":
        chunks |= found.keys()
    shards = {
        name: path
        for name, path in sorted(found.items())
        if name in chunks or suffix_of(name) not in (None, ".bin")
    }
    if not shards:
        raise DataError(
            f"'{source}' holds no shards: they are files that end in {', '.join(SHARD_SUFFIXES[:-1])}, or "
            ".bin beside litdata's index.json"
        )
    return shards, sorted(found[name] for name in found.keys() - shards - indexes)


def find_shards(source: str) -> list[Shard]:
    """Return the shards below a folder or an address, or the one that it is, sorted by name.

    Other files are passed over. The output of ``a/b.tar`` is called ``a/b.parquet``.

    Raises
    ------
    DataError
        if there is none, or two would have one output
    """
    return as_shards(find_files(source)[0], suffix_of)


def as_shards(files: Mapping[str, str], suffix: Callable[[str], str | None]) -> list[Shard]:
    """Return files (name → path) as shards, whose outputs end in ``.parquet`` in the place of the suffix.

    Raises
    ------
    DataError
        if two would have one output
    """
    shards: dict[str, Shard] = {}
    for name, path in files.items():
        output = f"{name[: -len(suffix(name) or '')]}.parquet"
        if output in shards:
            raise DataError(f"{shards[output].path} and {path} would both be '{output}': rename one of them")
        shards[output] = Shard(path, output)
    return list(shards.values())


def hub_address(name: str) -> str:
    """Return the address of the parquet files that the hub makes of every set; of one split, "NAME:SPLIT"."""
    path, _, split = name.partition(":")
    root = f"hf://datasets/{path}@refs/convert/parquet"
    system, folder = filesystem(root)
    try:
        configs = [place.rsplit("/", 1)[-1] for place in system.ls(folder, detail=False)]
        configs = [config for config in configs if not config.startswith(".")]
        config = configs[0] if len(configs) == 1 else "default"
        splits = [place.rsplit("/", 1)[-1] for place in system.ls(f"{folder}/{config}", detail=False)]
    except Exception as error:  # many types: no such set, no network, no right to see it
        raise DataError(
            f"hf:{name} cannot be streamed ({short(first_line(error), 200)}): check the name and the network"
        ) from error
    split = split or "train"
    if split not in splits:
        raise DataError(
            f"hf:{name}: the hub has parquet files of {', '.join(splits)}, and not of all of '{split}': "
            "choose another split, or leave stream out"
        )
    return f"{root}/{config}/{split}"


def holds_shards(source: str) -> bool:
    """Whether a source is a folder with shards, and without images beside them."""
    found, chunks = False, dict[Path, dict[str, dict[str, Any]]]()
    for file in walk(Path(source)) if Path(source).is_dir() else ():
        suffix = suffix_of(file.name)
        if suffix == ".bin" and file.parent not in chunks:
            chunks[file.parent] = chunk_index(str(file.with_name(INDEX)))[1]
        if file.name in chunks.get(file.parent, ()) or suffix not in (None, ".bin"):
            found = True
        elif names_image(file):
            return False
    return found


def chunk_index(place: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return litdata's settings, and of each chunk what its index.json says; nothing of any other file.

    Raises
    ------
    ShardError
        if the store cannot be read
    """
    with _remote(place, "read"):
        try:
            content = content_of(place)
        except FileNotFoundError:
            return {}, {}
    try:
        index = json.loads(content)
        chunks = {str(chunk["filename"]): chunk for chunk in index["chunks"]}
        return index["config"], {name: chunks[name] for name in chunks if suffix_of(name) == ".bin"}
    except (ValueError, TypeError, LookupError, RecursionError):
        return {}, {}


def file_mark(path: str) -> str:
    """Return what tells a file from what it was: its size, and its time or what the store has for that.

    Raises
    ------
    ShardError
        if it is not there
    """
    with _remote(path, "read"):
        if not is_remote(path):
            status = os.stat(path)
            return f"{status.st_size} bytes, {status.st_mtime_ns}"
        system, name = filesystem(path)
        system.invalidate_cache()
        info = {key.lower(): value for key, value in system.info(name).items()}
        mark = next((info[key] for key in _MARKS if info.get(key) is not None), "")
        return f"{info.get('size')} bytes, {mark}"


@contextmanager
def _remote(path: str, what: str) -> Iterator[None]:
    """Turn whatever a file system raises into one line."""
    try:
        yield
    except ProbjepaError:
        raise
    except Exception as error:  # each package for a store has errors of its own
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ShardError(f"'{path}' cannot be {what} ({reason}): check the place and your rights") from error
