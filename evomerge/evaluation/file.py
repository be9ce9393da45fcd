"""An evaluator as it is read: a file, a preset, a mapping, or tasks by name. Loads neither torch nor lm-eval."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge import presets
from evomerge.arguments import plain
from evomerge.config import Document, load_yaml, validate
from evomerge.errors import EvaluatorError, beside, choose
from evomerge.evaluation.config import EvaluatorConfig
from evomerge.hiding import hidden


class EvaluatorFile:
    """An evaluator together with where it was read: its name and the folder that its paths are relative to.

    Args:
        places: Where what some keys name lies instead: on a worker's machine.
    """

    def __init__(
        self, config: EvaluatorConfig, name: str, folder: Path, file: str, places: Mapping[str, Path] | None = None
    ) -> None:
        self.config = config
        self.name = name
        self.folder = folder
        self.file = file
        self._places = dict(places or {})

    def placed(self, places: Mapping[str, Path]) -> EvaluatorFile:
        """The same where the files that some keys name lie elsewhere."""
        return EvaluatorFile(self.config, self.name, self.folder, self.file, places)

    def after(self, objectives: Sequence[str], by: str = "--objective") -> EvaluatorFile:
        """The same after other objectives.

        Args:
            by: What messages call the place where they were given.

        Raises:
            EvaluatorError: they do not go with the rest of it.
        """
        config = self.config.aimed(objectives)
        data = config.model_dump(exclude_unset=True)
        again = validate(EvaluatorConfig, Document(data, f"{self.file} ({by})"), EvaluatorError)
        return EvaluatorFile(again, self.name, self.folder, self.file)

    def without_chat_template(self) -> EvaluatorFile:
        """The same for models that have none."""
        config = self.config.model_copy(update={"apply_chat_template": False, "fewshot_as_multiturn": False})
        return EvaluatorFile(config, self.name, self.folder, self.file)

    def within(self, timeout: float | None) -> EvaluatorFile:
        """The same with another limit in time (`--timeout`); None leaves it."""
        if timeout is None:
            return self
        return EvaluatorFile(self.config.model_copy(update={"timeout": timeout}), self.name, self.folder, self.file)

    def path(self, relative: str, key: str) -> Path:
        """A file or folder that the YAML names; raises EvaluatorError where it is missing."""
        path = self._places.get(key, self.folder / relative)
        if not path.exists():
            raise EvaluatorError(f"{self.file}: {key} = {relative}: no such file or folder ({path}){beside(path)}")
        return path

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for two runs to belong to one study (devices, batches and limits in time may differ).

        It stands in studies, so that of a command's variables it has the names alone, and no password of its words.
        """
        data = self.config.model_dump(mode="json", exclude_defaults=True)
        for loose in ("batch_size", "max_batch_size", "device", "timeout", "scratch"):
            data.pop(loose, None)
        named = [("function", (self.config.function or "").rpartition(":")[0])] if self.config.function else []
        if self.config.items:
            named.append(("items", self.config.items))
        for key, name in named:
            data[f"{key}_sha256"] = hashlib.sha256(self.path(name, key).read_bytes()).hexdigest()
        if self.config.command:
            data["command"] = [hidden(a) for a in self.config.command]
            data["command_sha256"] = {
                a: hashlib.sha256((self.folder / a).read_bytes()).hexdigest()
                for a in self.config.command
                if not Path(a).is_absolute() and (self.folder / a).is_file()
            }
        if self.config.env:
            data["env"] = sorted(self.config.env)
        data.pop("include_path", None)
        return json.loads(json.dumps(data, sort_keys=True))  # type: ignore[no-any-return]  # json gives Any


def load_evaluator(name: str | Path | Mapping[str, Any]) -> EvaluatorFile:
    """Read an evaluator: a preset's name ("quickstart"), a file, or the content of one.

    Paths of a content that is given are relative to the current folder.

    Raises:
        EvaluatorError: every problem of the file, one line each.
    """
    if isinstance(name, Mapping):
        config = validate(EvaluatorConfig, Document(plain(name), "<evaluator>"), EvaluatorError)
        return EvaluatorFile(config.aimed(config.objectives), "evaluator", Path.cwd(), "<evaluator>")
    path = presets.find("evaluators", str(name)) if not Path(name).is_file() else Path(name)
    if path is None:
        if Path(name).suffix not in (".yaml", ".yml"):
            known = presets.names("evaluators")
            raise EvaluatorError(f'evaluator "{name}": neither a file nor a preset; {choose(str(name), known)}')
        path = Path(name)
    document = load_yaml(path, EvaluatorError)
    config = validate(EvaluatorConfig, document, EvaluatorError)
    return EvaluatorFile(config.aimed(config.objectives), path.stem, path.parent, str(path))


def evaluator_for(
    tasks: Sequence[str | Mapping[str, Any]],
    file: str = "--tasks",
    include_path: Path | None = None,
    options: Mapping[str, Any] = {},
) -> EvaluatorFile:
    """The evaluator of `--tasks A B`, or of mergekit-evolve's tasks. The zoo's are found by name.

    Args:
        include_path: Folder of task files that lm-eval does not ship.
        options: Further keys of an evaluator.
    """
    zoo = presets.folder("evaluators") / "zoo"
    names = [t if isinstance(t, str) else str(t.get("name")) for t in tasks]
    data: dict[str, Any] = {"tasks": [t if isinstance(t, str) else dict(t) for t in tasks], **options}
    if include_path is not None:
        if not include_path.is_dir():
            raise EvaluatorError(f"--include-path {include_path}: no such folder")
        data["include_path"] = str(include_path.resolve())
    elif any((zoo / f"{name}.yaml").is_file() for name in names):
        data["include_path"] = str(zoo)
    config = validate(EvaluatorConfig, Document(data, file), EvaluatorError)
    return EvaluatorFile(config, "-".join(names), Path(), file)
