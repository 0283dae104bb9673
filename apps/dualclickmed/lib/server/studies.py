"""The studies folder, stored so that neither a crash nor a race loses a label.

MONAI Label's `LocalDatastore` writes ``datastore_v2.json`` and labels in place and changes its records while
other threads read them. Here

* every change is made on a copy, under a lock that also holds between processes, and replaces the old record
  at once, in memory and on disk;
* a label goes to disk under another name first; a note of what is to be done is written before the label
  takes its place, and the next start or change completes it after a crash;
* ids and tags are plain names, so that nothing is written outside the folder;
* files that are added or removed are noticed at the next request, without a watching thread.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from ..atomic_files import flush_folder, replacing, write_text
from ..errors import UserError
from . import checks, folders
from .leftovers import clear_half_written

logger = logging.getLogger(__name__)

MAX_INFO_BYTES = 1 << 20
"""What clients may store about one image or label, as JSON."""
_PENDING = ".pending.json"
_PART = ".part"


class Studies(LocalDatastore):
    """MONAI Label's local datastore with the promises above. Safe to share between threads and processes.

    Readers take no lock: they see the record before or after a change, never in between.
    """

    _datastore: LocalDatastoreModel

    def __init__(self, datastore_path: str, *args: Any, **kwargs: Any) -> None:
        folder = Path(datastore_path)
        _require_writable(folder)
        self._changing_lock = threading.RLock()
        # One object, because it counts how often a thread has taken it.
        self._process_lock = FileLock(folder / ".lock")
        self._pending = folder / _PENDING
        self._record = folder / kwargs.get("datastore_config", "datastore_v2.json")
        self._seen: tuple[int, int, int] | None = None
        self._watched = folders.Watched()
        with self._process_lock:
            self._clear_up()
        # No thread watches the folder: see `_look`.
        super().__init__(datastore_path, *args, **{**kwargs, "auto_reload": False})

    # What MONAI Label's own code calls to read and write its record.

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        with self._changing_lock, self._process_lock:
            self._complete_pending()
            self._datastore = self._read() or self._datastore

    def _update_datastore_file(self, lock: bool = True) -> None:
        with self._changing_lock, self._process_lock:
            self._write(self._datastore)

    def _reconcile_datastore(self) -> None:
        """Add new files to the record and remove missing ones."""
        with self._changing_lock, self._process_lock:
            self._init_from_datastore_file()
            objects = self._found()
            if objects != self._datastore.objects:
                changed = self._datastore.model_copy(update={"objects": objects})
                self._write(changed)
                self._datastore = changed

    def _look(self) -> None:
        """Note files that were added or removed since the last call; costs one `stat` for each folder."""
        try:
            replaced = self._record.exists() and _identity(self._record) != self._seen
            if self._watched.changed(self._folders()) or replaced:
                self._reconcile_datastore()
        except OSError as error:
            self._watched.forget()
            logger.warning("The studies cannot be listed now, what was known is used: %s", error)

    def _to_id(self, file: str) -> tuple[str, str]:
        return folders.split(file, self._endings)

    # What MONAI Label's endpoints and tasks call.

    def list_images(self) -> list[str]:
        self._look()
        return list(super().list_images())

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        self._look()
        return list(super().get_labeled_images(label_tag, labels))

    def get_unlabeled_images(
        self, label_tag: str | None = None, labels: list[str] | None = None
    ) -> list[str]:
        self._look()
        return list(super().get_unlabeled_images(label_tag, labels))

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        self._look()
        return dict(super().get_labels_by_image_id(image_id))

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        self._look()
        return list(super().datalist(full_path))

    def json(self) -> dict[str, Any]:
        self._look()
        return dict(super().json())

    def get_image_uri(self, image_id: str) -> str:
        """The image's path; its id may also be the file's full name. Empty if there is no such image."""
        if not _known_form(image_id):
            return ""
        self._look()
        return str(super().get_image_uri(self._id_of(image_id)))

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        return dict(super().get_image_info(self._id_of(image_id))) if _known_form(image_id) else {}

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        return str(super().get_label_uri(label_id, label_tag)) if _known_form(label_id) else ""

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        return copy.deepcopy(super().get_label_info(label_id, label_tag))

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Store a new image.

        Raises:
            UserError: the id is no plain name, or another image has it.
        """
        own, ending = self._to_id(Path(image_filename).name)
        image_id = checks.plain_id(image_id or own)
        if not ending.lower().endswith(tuple(self._endings)):
            shown = ", ".join(self._endings)
            raise UserError(f"Images of the studies end in {shown}, but this one ends in {ending[:20]!r}.")
        target = Path(self._datastore.image_path()) / f"{image_id}{ending}"
        with self._change() as draft:
            known = draft.objects.get(image_id)
            if known is not None:
                old = Path(self._datastore.image_path()) / f"{image_id}{known.image.ext}"
                if old.exists() and not _same(old, Path(image_filename)):
                    raise UserError(
                        f"There is an image {image_id!r} already, with other voxels; choose another id, "
                        "or remove that image first."
                    )
            info = {**(image_info or {}), "ts": int(time.time()), "name": target.name}
            with replacing(target) as part:
                shutil.copyfile(image_filename, part)
            labels = known.labels if known is not None else {}
            draft.objects[image_id] = ImageLabelModel(
                image=DataModel(info=_storable(info), ext=ending), labels=labels
            )
        return image_id

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]
    ) -> str:
        """Store a label; once this returns, no crash can take it away.

        Raises:
            ImageNotFoundException: there is no such image.
            UserError: the tag is no plain name, or `label_info` is too large.
        """
        checks.plain_tag(label_tag)
        _, ending = self._to_id(Path(label_filename).name)
        folder = Path(self._datastore.label_path(label_tag))
        with self._changing_lock, self._process_lock:
            self._init_from_datastore_file()
            known = self._datastore.objects.get(image_id)
            if known is None or not _known_form(image_id):
                raise ImageNotFoundException(f"Image {str(image_id)[:100]} not found")
            name = f"{image_id}{ending}"
            info = _storable({**(label_info or {}), "ts": int(time.time()), "name": name})
            part = folder / f".{uuid.uuid4().hex}{_PART}"
            note = {"image": image_id, "tag": label_tag, "ext": ending, "info": info, "part": part.name}
            try:
                _copied(Path(label_filename), part)
                write_text(self._pending, json.dumps(note, default=str))
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            self._complete_pending()
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        path = self.get_label_uri(label_id, label_tag)
        if path:
            Path(path).unlink(missing_ok=True)
        self.refresh()

    def remove_image(self, image_id: str) -> None:
        """Remove an image and its labels.

        Raises:
            ImageNotFoundException: there is no such image.
        """
        known = self._datastore.objects.get(image_id)
        if known is None or not _known_form(image_id):
            raise ImageNotFoundException(f"Image {str(image_id)[:100]} not found")
        with self._changing_lock, self._process_lock:
            for tag, label in known.labels.items():
                Path(self._datastore.label_path(tag), f"{image_id}{label.ext}").unlink(missing_ok=True)
            Path(self._datastore.image_path(), f"{image_id}{known.image.ext}").unlink(missing_ok=True)
            self.refresh()

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is known about an image.

        Raises:
            ImageNotFoundException: there is no such image.
            UserError: it is too much to store, or replaces what the server itself keeps there.
        """
        if not isinstance(info.get("strategy", {}), dict):
            raise UserError("What is stored under 'strategy' must be an object.")
        with self._change() as draft:
            known = draft.objects.get(image_id)
            if known is None:
                raise ImageNotFoundException(f"Image {str(image_id)[:100]} not found")
            known.image.info = _storable({**known.image.info, **info})

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is known about a label.

        Raises:
            LabelNotFoundException: there is no such label.
            UserError: it is too much to store.
        """
        with self._change() as draft:
            label = draft.label(label_id, label_tag)
            if label is None:
                raise LabelNotFoundException(f"Label {str(label_id)[:100]} {str(label_tag)[:64]} not found")
            label.info = _storable({**label.info, **info})

    def set_name(self, name: str) -> None:
        with self._change() as draft:
            draft.name = name

    def set_description(self, description: str) -> None:
        with self._change() as draft:
            draft.description = description

    # How changes are made.

    @contextmanager
    def _change(self) -> Iterator[LocalDatastoreModel]:
        """A copy of the newest record, which takes its place when the ``with`` block ends well."""
        with self._changing_lock, self._process_lock:
            self._init_from_datastore_file()
            draft = self._datastore.model_copy(deep=True)
            yield draft
            self._write(draft)
            self._datastore = draft

    def _write(self, model: LocalDatastoreModel) -> None:
        write_text(self._record, json.dumps(model.model_dump(exclude={"base_path"}), indent=2, default=str))
        self._seen = _identity(self._record)

    def _complete_pending(self) -> None:
        """Do what a label's note says; every step may have been done before."""
        try:
            note = json.loads(self._pending.read_text("utf-8"))
            image_id, tag, ending = (
                checks.plain_id(note["image"]),
                checks.plain_tag(note["tag"]),
                str(note["ext"]),
            )
            info, part_name = dict(note["info"]), checks.plain_id(str(note["part"]).lstrip("."), "part")
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError):
            logger.exception("Set aside %s, which this server cannot have written", self._pending)
            self._pending.rename(self._pending.with_name(f"{_PENDING}-{time.time_ns()}"))
            return
        folder = Path(self._datastore.label_path(tag))
        part, target = folder / f".{part_name}", folder / f"{image_id}{ending}"
        # Another process may have written the record since.
        draft = self._read() or self._datastore.model_copy(deep=True)
        known = draft.objects.get(image_id)
        if part.exists():
            before = known.labels.get(tag) if known is not None else None
            part.replace(target)
            if before is not None and before.ext != ending:
                (folder / f"{image_id}{before.ext}").unlink(missing_ok=True)
            flush_folder(folder)
        if known is not None:
            known.labels[tag] = DataModel(info=info, ext=ending)
            self._write(draft)
            self._datastore = draft
        self._pending.unlink()
        flush_folder(self._pending.parent)

    def _read(self) -> LocalDatastoreModel | None:
        """The record as it is on disk; None if it is as known, or cannot be read."""
        try:
            written = _identity(self._record)
            if written == self._seen:
                return None
            found = LocalDatastoreModel.model_validate_json(self._record.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            # Somebody else writes it in place, or has damaged it: what is known here stays valid.
            logger.exception("The record %s cannot be read; going on with what was known", self._record)
            return None
        found.base_path = self._datastore_path
        self._seen = written
        return found

    def _found(self) -> dict[str, ImageLabelModel]:
        """The record as the files are now; the same object for what has not changed."""
        folder, *tags = self._folders()
        labels_folder = Path(self._datastore.label_path(None))
        old = self._datastore.objects
        images = folders.named(
            folder, self._endings, {f"{image}{known.image.ext}": image for image, known in old.items()}
        )
        labels = {tag.name: folders.named(tag, self._endings) for tag in tags[1:]}
        # Those known keep their order; new ones follow.
        order = [image_id for image_id in old if image_id in images]
        order += [image_id for image_id in images if image_id not in old]
        objects: dict[str, ImageLabelModel] = {}
        for image_id in order:
            known = old.get(image_id)
            name = images[image_id]
            image = (
                known.image
                if known is not None
                else DataModel(info=_first_info(name), ext=name[len(image_id) :])
            )
            found: dict[str, DataModel] = {}
            before = known.labels if known is not None else {}
            for tag in [*before, *(tag for tag in labels if tag not in before)]:
                if tag in before and (labels_folder / tag / f"{image_id}{before[tag].ext}").exists():
                    found[tag] = before[tag]
                elif image_id in labels.get(tag, {}):
                    label_name = labels[tag][image_id]
                    found[tag] = DataModel(info=_first_info(label_name), ext=label_name[len(image_id) :])
            objects[image_id] = ImageLabelModel(image=image, labels=found)
        return objects

    @property
    def _endings(self) -> list[str]:
        return [pattern.lstrip("*") for pattern in self._extensions]

    def _folders(self) -> list[Path]:
        """The images' folder, the labels', and each tag's."""
        labels = Path(self._datastore.label_path(None))
        tags = sorted(tag for tag in labels.iterdir() if tag.is_dir()) if labels.is_dir() else []
        return [Path(self._datastore.image_path()), labels, *tags]

    def _id_of(self, image: str) -> str:
        """The id of an image that is called by its id or by its file's full name."""
        if image in self._datastore.objects:
            return image
        stem, ending = self._to_id(image)
        known = self._datastore.objects.get(stem)
        return stem if known is not None and known.image.ext == ending else image

    def _clear_up(self) -> None:
        """Clean up after a crash: unfinished files, and a record that was cut short."""
        noted = self._pending.read_text("utf-8") if self._pending.exists() else ""
        for folder in (self._pending.parent, *(self._pending.parent / "labels").glob("*/")):
            for part in folder.glob(f".*{_PART}"):
                # A label without a note was never confirmed to a client.
                if part.name not in noted:
                    part.unlink(missing_ok=True)
        clear_half_written(self._pending.parent)
        try:
            LocalDatastoreModel.model_validate_json(self._record.read_text("utf-8"))
        except FileNotFoundError:
            return
        except ValueError:
            aside = self._record.with_name(
                f"{self._record.stem}-damaged-{time.time_ns()}{self._record.suffix}"
            )
            self._record.rename(aside)
            logger.error("The record of the studies was damaged; it is kept as %s and made anew", aside)


def _require_writable(folder: Path) -> None:
    """Labels and the record of the studies lie in their folder.

    Raises:
        UserError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid.uuid4().hex}{_PART}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"The studies folder {folder} must be one that the server can write to, because labels are kept "
            f"in it, but: {error.strerror}. Give a copy of it, or let this user write there."
        ) from error


def _known_form(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(checks.plain_id(value))
    except UserError:
        return False


def _identity(path: Path) -> tuple[int, int, int]:
    """Modification time, inode and size: they change with every replacement, even within one clock tick."""
    status = path.stat()
    return status.st_mtime_ns, status.st_ino, status.st_size


def _storable(info: dict[str, Any]) -> dict[str, Any]:
    return checks.plain_object(info, "info", most=MAX_INFO_BYTES)


def _first_info(name: str) -> dict[str, Any]:
    return {"ts": int(time.time()), "name": name}


def _same(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as left, other.open("rb") as right:
        while block := left.read(1 << 20):
            if block != right.read(1 << 20):
                return False
    return True


def _copied(source: Path, part: Path) -> None:
    """A copy that is on disk; a note tells later where it belongs."""
    part.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, part)
    with part.open("rb+") as stream:
        os.fsync(stream.fileno())
