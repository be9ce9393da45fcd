"""What Optuna's dashboard shows of a study beside its trials: notes in Markdown, and pictures as artifacts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

from evomerge.study.store import Store, Study

# Where a study's pictures lie, and which they are: kept with it.
ARTIFACTS_NOTE = "artifacts"
# Which candidate has the winner's note.
MARKED_NOTE = "marked"
FOLDER = "artifacts"
# What stands between these lines of a study's note is ours; what is above or below it is its reader's.
_FIRST, _LAST = "*evomerge writes from here*", "*to here; notes of your own stand below*"
# As optuna.artifacts and optuna-dashboard have it.
_PREFIX = "artifacts:"


class Display:
    """Writes a study's notes and pictures.

    Args:
        folder: Where its pictures lie; made when the first comes.
    """

    def __init__(self, store: Store, study: Study, folder: Path) -> None:
        self._storage = store.optuna
        self._patience = store.patience
        self._study = study
        self._folder = folder
        self._id = int(store.patience(self._storage.get_study_id_from_name, study.name))

    def note(self, body: str) -> None:
        """Write our part of the study's note; nothing else of it is touched."""
        before = self.read()
        own, found, rest = before.partition(_FIRST)
        after = rest.partition(_LAST)[2] if found else ""
        wanted = f"{own.rstrip()}\n\n{_FIRST}\n\n{body.strip()}\n\n{_LAST}{after}".lstrip()
        if wanted != before:
            self._save(wanted, None)

    def read(self) -> str:
        """The study's note."""
        import optuna
        import optuna_dashboard

        study = self._patience(lambda: optuna.load_study(study_name=self._study.name, storage=self._storage))
        return str(self._patience(optuna_dashboard.get_note, study))

    def mark(self, number: int, body: str) -> None:
        """Write the note of a candidate that was chosen; of those that were before, it is taken away."""
        other = self._study.notes().get(MARKED_NOTE)
        if other == number:
            return
        if other is not None:
            self._save("", other)
        self._study.note(MARKED_NOTE, number)
        self._save(body, number)

    def _save(self, body: str, number: int | None) -> None:
        import optuna
        import optuna_dashboard

        def save() -> None:
            study = optuna.load_study(study_name=self._study.name, storage=self._storage)
            if number is None:
                optuna_dashboard.save_note(study, body)
                return
            # An ended trial has no optuna.Trial; of one save_note takes these three alone.
            trial = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
            optuna_dashboard.save_note(SimpleNamespace(storage=self._storage, study=study, _trial_id=trial), body)

        self._patience(save)

    def pictures(self, files: Sequence[Path]) -> dict[str, str]:
        """Let the dashboard show some pictures, in the place of those that were there by the same names.

        Returns:
            What Markdown shows each by, by name: a path on the dashboard.
        """
        from optuna.artifacts import FileSystemArtifactStore

        kept = (self._study.notes().get(ARTIFACTS_NOTE) or {}).get("files", {})
        self._folder.mkdir(parents=True, exist_ok=True)
        store = FileSystemArtifactStore(self._folder)
        now: dict[str, dict[str, str]] = {}
        for file in files:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            old = kept.get(file.name)
            if old is not None and old["sha256"] == digest and (self._folder / old["id"]).is_file():
                now[file.name] = old
            else:
                now[file.name] = {"id": self._upload(store, file), "sha256": digest}
        # First what is there now, then away with what was: a kill in between leaves a file too many, none too few.
        self._study.note(ARTIFACTS_NOTE, {"folder": str(self._folder.resolve()), "files": now})
        for old in kept.values():
            if old not in now.values():
                self._patience(
                    lambda key: self._storage.set_study_system_attr(self._id, key, json.dumps(None)),
                    f"{_PREFIX}{old['id']}",
                )
                if Path(old["id"]).name == old["id"]:  # a database may say anything
                    (self._folder / old["id"]).unlink(missing_ok=True)
        return {name: f"/artifacts/{self._id}/{found['id']}" for name, found in now.items()}

    def _upload(self, store: Any, file: Path) -> str:
        import optuna
        from optuna.artifacts import upload_artifact

        def upload() -> str:
            study = optuna.load_study(study_name=self._study.name, storage=self._storage)
            return str(upload_artifact(artifact_store=store, file_path=str(file), study_or_trial=study))

        return self._patience(upload)


class Folders:
    """An artifact store (`optuna.artifacts`) over the folders of several studies.

    Args:
        folders: Where pictures lie; what the dashboard's user uploads goes to the first.
        missing: Makes what is raised for an artifact that is in none of them: on this machine it is not.
    """

    def __init__(self, folders: Sequence[Path], missing: Callable[[str], Exception]) -> None:
        self._folders = [Path(f) for f in folders]
        self._missing = missing

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """See `optuna.artifacts`."""
        for folder in self._folders:
            file = folder / artifact_id
            if Path(artifact_id).name == artifact_id and file.is_file():
                return file.open("rb")
        raise self._missing(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """See `optuna.artifacts`."""
        from optuna.artifacts import FileSystemArtifactStore

        if not self._folders:
            raise self._missing(artifact_id)
        self._folders[0].mkdir(parents=True, exist_ok=True)
        FileSystemArtifactStore(self._folders[0]).write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        """See `optuna.artifacts`."""
        self.open_reader(artifact_id).close()
        for folder in self._folders:
            (folder / artifact_id).unlink(missing_ok=True)
