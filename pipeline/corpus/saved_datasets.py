"""Hugging Face datasets as ``save_to_disk`` writes them, read without the `datasets` package.

A dataset is a folder with ``dataset_info.json``, ``state.json`` (which names its data) and Arrow streams; a
dictionary of datasets is a folder with ``dataset_dict.json`` (which names its splits) and a dataset in each.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from pyarrow import fs

from storage_schema.errors import UserError
from storage_schema.json_files import JSON_BYTES, as_object, parse_json

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
METADATA = {STATE, INFO, SPLITS}
DATA_SUFFIX = ".arrow"
Listing = dict[str, fs.FileInfo]
"""Files by their names relative to the corpus."""


def keep_data(filesystem: fs.FileSystem, listing: Listing) -> Listing:
    """The listing with only the data files of each saved dataset, and without any other Arrow file.

    Raises:
        ValueError: a saved dataset is incomplete, not readable, or is a selection of rows.
        OSError: the place cannot be read.
    """
    folders = {_folder(name) for name in listing if PurePosixPath(name).name == STATE}
    folders = {folder for folder in folders if _join(folder, INFO) in listing}
    dictionaries = {_folder(name) for name in listing if PurePosixPath(name).name == SPLITS}
    data: set[str] = set()
    for folder in sorted(_without_stale_splits(filesystem, listing, folders, dictionaries)):
        data.update(_data_names(filesystem, listing, folder))
    return {name: info for name, info in listing.items() if name in data or _is_other(name, folders)}


def _is_other(name: str, folders: set[str]) -> bool:
    """Whether a file does not belong to a saved dataset."""
    path = PurePosixPath(name)
    return _folder(name) not in folders and path.name != SPLITS and path.suffix.lower() != DATA_SUFFIX


def _without_stale_splits(
    filesystem: fs.FileSystem, listing: Listing, folders: set[str], dictionaries: set[str]
) -> set[str]:
    """The datasets, without those that lie in a dictionary's folder but are not named by it."""
    for dictionary in sorted(dictionaries):
        where = listing[_join(dictionary, SPLITS)].path
        splits = {_join(dictionary, split) for split in _names(_read(filesystem, where).get("splits"), where)}
        if absent := sorted(splits - folders):
            raise UserError(f"{where} names the split {absent[0]!r}, which is not there. Save it again.")
        folders = {folder for folder in folders if _folder(folder) != dictionary or folder in splits}
    return folders


def _data_names(filesystem: fs.FileSystem, listing: Listing, folder: str) -> list[str]:
    where = listing[_join(folder, STATE)].path
    state = _read(filesystem, where)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise UserError(
            f"The dataset of {where} is a selection of rows kept beside its data (_indices_data_files), which "
            "is not followed here. Load it with `datasets`, call flatten_indices(), and save it again."
        )
    entries = state.get("_data_files")
    if isinstance(entries, list):
        entries = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries]
    names = [_join(folder, name) for name in _names(entries, where)]
    if absent := [name for name in names if name not in listing]:
        raise UserError(f"{where} names the file {absent[0]!r}, which is not there. Save the dataset again.")
    return names


def _read(filesystem: fs.FileSystem, path: str) -> dict:
    with filesystem.open_input_stream(path, compression=None) as stream:
        content = stream.read(JSON_BYTES + 1)
    try:
        return as_object(parse_json(content, path), path)
    except ValueError as error:
        raise UserError(f"{error} Save the dataset again.") from error


def _names(found: object, where: str) -> list[str]:
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise UserError(f"{where} does not name files or splits as save_to_disk does. Save it again.")
    return found


def _folder(name: str) -> str:
    return PurePosixPath(name).parent.as_posix()


def _join(folder: str, name: str) -> str:
    return PurePosixPath(folder, name).as_posix()
