"""What a model's own card says of it: its licence, and what it was made from.

A card is the README.md beside a checkpoint, with YAML in front. Cards are written by others: what one says is kept as
short plain words, and one that is missing, damaged or out of reach says nothing; it never stops anything.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evomerge.sources.adapter import CONFIG as ADAPTER_CONFIG
from evomerge.sources.folder import HUB_ID, local_folder
from evomerge.sources.source import ZOO

README = "README.md"
# Of the zoo, whose models are evomerge's own.
OWN_LICENCE = "apache-2.0"
# Seconds that a hub has for its first word.
_PATIENCE = 5.0
# A card is read so far: its YAML stands in front, some kilobytes at most.
_READ = 200_000
_LONGEST = 200  # characters of anything that a card says
_FRONT_MATTER = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
# What would end the code or the table that it is shown in.
_MARKUP = re.compile(r"[`|<>\[\]]|[^\S ]")


@dataclass(frozen=True)
class Licence:
    """A licence as a card states it.

    Attributes:
        id: The Hub's identifier ("apache-2.0"; "other": one of the model's own).
        name, link: Of one of the model's own, where they are told.
    """

    id: str
    name: str | None = None
    link: str | None = None

    def __str__(self) -> str:
        more = ", ".join(filter(None, (self.name, self.link)))
        return f"{self.id} ({more})" if more else self.id


@dataclass(frozen=True)
class Card:
    """What is known of a model beside its weights.

    Attributes:
        hub_id: Its name on the Hugging Face hub; None for a folder of the user's and the zoo's.
        commit: The revision that the local cache has.
        licence: As its card states it; None: not stated, or there is no card.
        parents: What it was made from: hub ids or folders as they are named.
        said_by: Which file names them.
    """

    hub_id: str | None = None
    commit: str | None = None
    licence: Licence | None = None
    parents: tuple[str, ...] = ()
    said_by: str = ""


class Cards:
    """Reads cards. Once the hub could not be reached it is not asked again.

    Args:
        asking: Whether cards that are not in the local cache may be asked of the hub at all.
    """

    def __init__(self, asking: bool = True) -> None:
        self._asking = asking

    def read(self, path: str, revision: str | None = None, *, ask: bool = True) -> Card:
        """The card of a model or an adapter.

        Args:
            path: `zoo:NAME`, a folder, or a hub id; no revision, nothing after a +.
            ask: Whether the hub is asked for it where the local cache has none.
        """
        if path.startswith(ZOO):
            return Card(licence=Licence(OWN_LICENCE))
        folder = local_folder(path, None)
        if folder is not None:
            return _of_folder(folder)
        if not HUB_ID.fullmatch(path):
            return Card()
        return self._of_hub(path, revision, ask)

    def _of_hub(self, repo: str, revision: str | None, ask: bool) -> Card:
        from huggingface_hub import try_to_load_from_cache

        def cached(name: str, at: str | None) -> Path | None:
            try:
                found = try_to_load_from_cache(repo, name, revision=at)
            except Exception:  # no id of the hub's after all, a cache that is damaged
                return None
            return Path(found) if isinstance(found, str) else None

        here = next((p for n in ("config.json", ADAPTER_CONFIG, README) if (p := cached(n, revision))), None)
        commit = here.parent.name if here is not None else None
        at = commit or revision
        readme = cached(README, at) or (self._asked(repo, at) if ask else None)
        if readme is not None:
            commit = commit or readme.parent.name
        named = repo if "/" in repo or here is not None else None
        folder = readme.parent if readme is not None else here.parent if here is not None else None
        found = _of_folder(folder) if folder is not None else Card()
        return replace(found, hub_id=named, commit=commit)

    def _asked(self, repo: str, revision: str | None) -> Path | None:
        from huggingface_hub import constants, get_session, hf_hub_download, hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, says its reference

        if not self._asking or constants.HF_HUB_OFFLINE:
            return None
        try:
            # The client's download tries again and again where nobody answers, for half a minute.
            url = hf_hub_url(repo, README, revision=revision)
            status = get_session().head(url, headers=build_hf_headers(), timeout=_PATIENCE).status_code
        except Exception:  # no connection, of which there are many kinds
            self._asking = False
            return None
        try:
            return Path(hf_hub_download(repo, README, revision=revision)) if status < 400 else None
        except Exception:  # HTTP, cache, connection: a card is not worth stopping for
            return None


def _of_folder(folder: Path) -> Card:
    front = front_matter(folder)
    parents, said_by = _names(front.get("base_model")), "its card"
    if not parents:
        parents, said_by = _names(_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")), ADAPTER_CONFIG
    if not parents:
        parents, said_by = _names(_object(folder / "config.json").get("_name_or_path")), "config.json"
    # A model saved where it was loaded from names itself.
    parents = tuple(p for p in parents if not _is(p, folder))
    return Card(licence=_licence(front), parents=parents, said_by=said_by if parents else "")


def front_matter(folder: Path) -> dict[str, Any]:
    """The YAML in front of a folder's README.md; empty where there is none that can be read."""
    import yaml

    try:
        with (folder / README).open(encoding="utf-8") as f:
            found = _FRONT_MATTER.match(f.read(_READ))
        front = yaml.safe_load(found.group(1)) if found else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    return front if isinstance(front, dict) else {}


def _licence(front: Mapping[str, Any]) -> Licence | None:
    stated = front.get("license")
    several = [w for x in stated if (w := _word(x))] if isinstance(stated, list) else []
    id_ = _word(stated) if not isinstance(stated, list) else several[0] if len(several) == 1 else None
    name, link = _word(front.get("license_name")), _word(front.get("license_link"))
    if len(several) > 1:
        return Licence("other", name or " and ".join(several)[:_LONGEST], link)
    if id_ is None:
        return Licence("other", name, link) if name or link else None
    return None if id_.lower() == "unknown" else Licence(id_.lower(), name, link)


def _names(value: Any) -> tuple[str, ...]:
    """The models that a card or a configuration names: `base_model` is one, or a list."""
    return tuple(dict.fromkeys(w for x in (value if isinstance(value, list) else [value]) if (w := _word(x))))


def _word(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    return " ".join(_MARKUP.sub(" ", value).split())[:_LONGEST] or None


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is(name: str, folder: Path) -> bool:
    return os.path.realpath(os.path.expanduser(name)) == os.path.realpath(folder)
