"""DualClickMed as a MONAI Label app: ``monailabel start_server --app apps/dualclickmed --studies DIR``."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from lib import __version__
from lib.activelearning.scoring import ImageScores
from lib.activelearning.strategies import strategies
from lib.configs.options import ServerOptions
from lib.errors import UserError
from lib.imaging import facts, native
from lib.imaging.headers import SUFFIXES
from lib.imaging.label_files import read_labels
from lib.imaging.volume import Volume, image_notes
from lib.infers import dicom_seg
from lib.infers.auto import AutoTask
from lib.infers.images import located, remove_uploads, with_image
from lib.infers.segmenter import Segmenter
from lib.infers.tasks import LabelsTask, ObjectTask
from lib.learning.lifeline import follow_server
from lib.learning.record import VERSIONS
from lib.server.answers import answer_to
from lib.server.archive import connect
from lib.server.leftovers import clear_half_written, private_temporary_folder
from lib.server.lifetime import look_after
from lib.server.limits import Limits
from lib.server.reading import Reader, available
from lib.server.review import ReadOnly
from lib.server.routes import install
from lib.server.sessions import SafeSessions
from lib.server.studies import Studies
from lib.server.uploads import Files
from lib.trainers import agreement
from lib.trainers.learning import Learning
from lib.trainers.running import serve_processes
from lib.viewers.learned import Keeper
from lib.viewers.masks import segmenting
from lib.viewers.options import ViewerOptions
from lib.viewers.page_routes import Page
from lib.viewers.serving import Served, Viewers
from lib.weights.files import model_dir
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from starlette.middleware import Middleware

logger = logging.getLogger(__name__)

DESCRIPTION = "Interactive segmentation of 3D medical images: click or draw a box, get a mask"


class DualClickMed(MONAILabelApp):
    """Wires the tasks to MONAI Label.

    MONAI Label builds the app anew in every process that trains or scores, so that nothing is loaded here.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        # Trainings build the app as well; none may outlive its server.
        follow_server()
        self.options = ServerOptions.from_conf(conf)
        self.limits = Limits.from_conf(conf)
        self.viewer_options = ViewerOptions.from_conf(conf)
        super().__init__(
            app_dir,
            studies,
            conf,
            name="DualClickMed",
            description=DESCRIPTION,
            version=__version__,
        )
        # A list, because OHIF appends to it.
        self.labels = list(self.options.labels.values)
        # Scores are computed on request, not by a process at every start.
        self._auto_update_scoring = False

    def init_infers(self) -> dict[str, InferTask]:
        return {
            "dualclickmed": LabelsTask(self.segmenter),
            "dualclickmed_object": ObjectTask(self.segmenter),
            "dualclickmed_auto": AutoTask(self.segmenter, self.learning.prior),
        }

    def init_trainers(self) -> dict[str, TrainTask]:
        return self.learning.trainers()

    def init_strategies(self) -> dict[str, Strategy]:
        return strategies(self.learning.record)

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        return {"dualclickmed": ImageScores(self.learning.record, self.options)}

    def init_datastore(self) -> Datastore:
        """The studies, and what was learned from them; called before everything that needs either."""
        datastore = self._studies()
        self.learning = Learning(datastore, datastore._datastore_path, self.options)
        # With the labels that annotators added.
        self.options = self.learning.options
        self.segmenter = Segmenter(self.options)
        self.learning.load = self.segmenter.volume
        return datastore

    def _studies(self) -> Any:
        """MONAI Label's datastore of an archive, or one of a folder that no crash or request can damage."""
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        endings = settings.MONAI_LABEL_DATASTORE_FILE_EXT
        if endings == type(settings).model_fields["MONAI_LABEL_DATASTORE_FILE_EXT"].default:
            # MONAI Label's own choice includes photographs and lacks MetaImage.
            endings = [f"*{ending}" for ending in SUFFIXES]
        return Studies(self.studies, extensions=endings, read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY)

    def _init_dicomweb_datastore(self) -> Datastore:
        dicom_seg.install(self.options.labels)
        return connect(self.studies)

    def _load_sessions(self, load: bool = False) -> SafeSessions | None:
        if not load:
            return None
        return SafeSessions(
            settings.MONAI_LABEL_SESSION_PATH, settings.MONAI_LABEL_SESSION_EXPIRY, self.limits.session_bytes
        )

    def cleanup_sessions(self) -> None:
        if self._sessions is not None:
            self._sessions.remove_expired()

    def on_init_complete(self) -> None:
        """Called in the server alone."""
        temporary = private_temporary_folder()
        reader = self._reader(temporary)
        look_after(lambda: None if reader is None else reader.stop())
        record = self.learning.record.folder
        for folder in (model_dir(self.options.model_dir), record, record / VERSIONS):
            clear_half_written(folder)
        serve_processes(self.learning.record)
        super().on_init_complete()
        # Complete only now, and needed in the server alone.
        from monailabel.app import app as web

        if self.options.review:
            web.user_middleware.append(Middleware(ReadOnly))
        endpoints = install(web, self.limits, self._waits_for, self._files(reader))
        page = Page(self, endpoints.in_turn, answer_to, endpoints.submitting)
        web.include_router(page.router(), prefix=settings.MONAI_LABEL_API_STR)
        web.include_router(agreement.router(self.learning, answer_to), prefix=settings.MONAI_LABEL_API_STR)
        self.learning.watch(lambda trainer: self.async_training(trainer, enqueue=True))
        if not self.options.review:
            threading.Thread(target=self._warm_up, args=(reader,), name="warm-up", daemon=True).start()
            keeper = Keeper(self.datastore()) if self.viewer_options.learn and self._has_folder() else None
            served = Served(
                segmenting(self.segmenter),
                self.segmenter.experts.forget,
                self.segmenter.experts.licence(),
                keeper,
            )
            self.viewers = Viewers(self.viewer_options, self.limits, served)
            self.viewers.start()
        else:
            self._say_ready()

    def _waits_for(self) -> str | None:
        """Why clients cannot be answered yet; a server for review needs no networks."""
        return None if self.options.review else self.segmenter.experts.waiting_for()

    def _has_folder(self) -> bool:
        """Whether images can be added: an archive takes DICOM alone."""
        found = not self.studies.startswith(("http://", "https://"))
        if not found:
            logger.warning("--conf learn_from_viewers needs a folder of studies; nothing is kept.")
        return found

    def _reader(self, temporary: Path) -> Reader | None:
        """Let separate processes read all files from now on, where the system supports it."""
        facts.limit_to(facts.ReadLimits(image_bytes=self.limits.image_bytes))
        if not available():
            logger.warning("This system cannot read files in processes of their own: they are read here.")
            return None
        reader = Reader(self.limits.image_bytes, self.limits.timeout, temporary)
        native.run_by(reader)
        return reader

    def _files(self, reader: Reader | None) -> Files:
        def load(image: str) -> Volume:
            path, modality = located(image, self.datastore(), None)
            return self.segmenter.volume(Path(path), modality)

        def label(image: str, path: Path, info: Mapping[str, Any]) -> None:
            read_labels(path, load(image), info, self.options.labels)

        return Files(load, image_notes, label, reader)

    def info(self) -> dict[str, Any]:
        """The description for clients; without usable weights it offers no task and tells what to do."""
        problem = self.segmenter.experts.problem()
        description = DESCRIPTION if problem is None else f"{DESCRIPTION}. Not ready: {problem}"
        told = super().info()
        stats = self.learning.latest_first(told.get("train_stats", {}))
        return {
            **told,
            "description": description,
            "train_stats": stats,
            "learning": self.learning.info(),
        }

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]:
        """Called when a label was submitted; what is returned becomes part of the answer."""
        super().on_save_label(image_id, label_id)
        return self.learning.on_save_label(image_id)

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Segment; a request for an unknown task or for a file that is not its own is refused."""
        try:
            return self._infer(request, datastore or self.datastore())
        except UserError as error:
            remove_uploads(request)
            raise HTTPException(error.status, str(error)) from error
        except Exception:
            remove_uploads(request)
            raise

    def infer_wsi(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """MONAI Label's entry for whole slides, which it opens before any task sees the request."""
        raise HTTPException(400, "Whole-slide images are 2D; these tasks segment 3D images.")

    def _infer(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        model = request.get("model")
        if not isinstance(model, str) or model not in self._infers:
            known = ", ".join(self._infers)
            raise UserError(f"There is no task {str(model)[:100]!r}; the tasks are {known}.")
        sessions = self.sessions()
        folder = None if sessions is None else Path(sessions.store_path)
        answer = super().infer(with_image(request, datastore, folder), datastore)
        self.learning.note_prediction(request)
        return answer

    def _warm_up(self, reader: Reader | None) -> None:
        try:
            if reader is not None:
                reader.start()
        except OSError as error:
            logger.error("Files cannot be read in processes of their own: %s", error)
        try:
            self.segmenter.experts.warm_up()
            self._say_ready()
        except UserError as error:
            logger.error("Not ready: %s", error)

    def _say_ready(self) -> None:
        address = f"http://127.0.0.1:{settings.MONAI_LABEL_SERVER_PORT}"
        logger.info("Ready: %s", os.environ.get("DUALCLICKMED_ADDRESS", address))
