"""A checkpoint's way to the Hugging Face hub: everything that can be refused is asked first, then its files go up.

huggingface_hub's own client does the work, with its own settings: HF_TOKEN or the token of `hf auth login`,
HF_ENDPOINT, HF_HUB_OFFLINE, HF_HUB_DISABLE_XET. Nothing here passes the token on, nor what the client raises as it is:
that may have addresses with signatures in it.
"""

from __future__ import annotations

import glob
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from evomerge.errors import EvoMergeError, InputError
from evomerge.publishing.repository import KEPT, OWN, RECIPE, made_by_evomerge, model_files, shown, stale
from evomerge.publishing.sections import public
from evomerge.recipe import load_chain
from evomerge.sources import INDEX, SINGLE, read_object
from evomerge.sources.diffusion import is_diffusion
from evomerge.sources.folder import HUB_ID, REVISION

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Where older versions of transformers noted what a file was loaded from.
_PLACES = {"config.json": "_name_or_path", "tokenizer_config.json": "name_or_path"}


@dataclass(frozen=True)
class Destination:
    """Where a checkpoint is to go.

    Attributes:
        repo: OWNER/NAME.
        private: Whether the repository is made private where it is not there yet; None: as its owner has it.
        branch: None: main.
        replace: Whether the checkpoint may take the place of a model that evomerge did not make.
    """

    repo: str
    private: bool | None = None
    branch: str | None = None
    replace: bool = False

    def __post_init__(self) -> None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        try:
            validate_repo_id(self.repo)
        except HFValidationError as e:
            raise InputError(f"--push {self.repo}: is no name of a repository of the hub's: {_line(e)}") from None
        if "/" not in self.repo:
            raise InputError(f"--push {self.repo}: expected OWNER/NAME, as in me/{self.repo}")
        if self.branch is not None and not REVISION.fullmatch(self.branch):
            raise InputError(f"--revision {self.branch}: is no name of a branch")


@dataclass(frozen=True)
class Pushed:
    """What was pushed.

    Attributes:
        url: Of the repository.
        commit: Its commit.
        files: What the repository now has of the checkpoint.
    """

    url: str
    commit: str
    files: tuple[str, ...]


def prepare(to: Destination) -> str:
    """Make sure that a push would be taken and destroys nobody's model, before anything is built for it.

    The repository (and branch) is made where it is missing: only the hub knows who may make one and write to it.

    Returns:
        What was made on the hub, for `left_over`; empty: nothing.

    Raises:
        InputError: offline, no token or a wrong one, no right to write there; a model is there that evomerge did not
            make.
        EvoMergeError: the hub cannot be reached, or fails.
    """
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise InputError(f"--push {to.repo}: HF_HUB_OFFLINE forbids the network; unset it, or leave --push out")
    if get_token() is None:
        raise InputError(
            f"--push {to.repo}: there is no token of the hub's: log in once (hf auth login), or set HF_TOKEN, with one "
            "that may write"
        )
    api = HfApi()
    with _told(f"--push {to.repo}: "):
        who = api.whoami()
    name = who.get("name")
    token = (who.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise InputError(
            f'--push {to.repo}: the token ("{token.get("displayName", "?")}" of {name}) may only read; make one that '
            f"may write: {constants.ENDPOINT}/settings/tokens"
        )
    with _told(f"--push {to.repo}: ", name):
        there, branch_there = _listed(api, to)
        made = there is None and _created(api, to)
    words = f"repository {to.repo}" if made else ""
    with left_over(words), _told(f"--push {to.repo}: ", name):
        _check_writable(api, to.repo)
        if not to.replace:
            _check_ours(api, to, there or (), to.branch if branch_there else None)
        if to.private and api.model_info(to.repo).private is False:
            raise InputError(
                f"--push {to.repo}: --private: the repository is there and public; make it private on its page, or "
                "give another name"
            )
        if to.branch is not None and not branch_there:
            api.create_branch(to.repo, branch=to.branch, exist_ok=True)
            words = words or f"branch {to.branch} of {to.repo}"
    return words


def _listed(api: HfApi, to: Destination) -> tuple[list[str] | None, bool]:
    """What the branch has, and whether it is there; one that is not begins as main. None: no such repository."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        try:
            return api.list_repo_files(to.repo, revision=to.branch), True
        except RevisionNotFoundError:
            return api.list_repo_files(to.repo), False
    except RepositoryNotFoundError:
        return None, False


def _created(api: HfApi, to: Destination) -> bool:
    """Make the repository; False where it was there after all, and this token may not see it."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_repo(to.repo, private=to.private)
    except HfHubHTTPError as e:
        if e.response.status_code != 409:
            raise
        return False
    return True


def _check_ours(api: HfApi, to: Destination, there: Sequence[str], branch: str | None) -> None:
    """Raise where another's model would be overwritten."""
    found = model_files(there)
    if found and not made_by_evomerge(api, to.repo, there, branch):
        where = f"branch {branch} of the repository" if branch else "the repository"
        raise InputError(
            f"--push {to.repo}: {where} holds a model that evomerge did not make ({shown(found)}); give another name, "
            "or --replace-model to put this one in its place"
        )


@contextmanager
def left_over(made: str) -> Iterator[None]:
    """Name what `prepare` made on the hub in the message of whatever fails before something is uploaded to it."""
    try:
        yield
    except EvoMergeError as e:
        if made:
            e.args = (f"{e}; {made} was made for this push and stays, without the checkpoint", *e.args[1:])
        raise
    except KeyboardInterrupt as e:  # a signal's, by evomerge's own handler or Python's
        if made:
            before = f"{e}; " if str(e) else ""
            e.args = (f"{before}{made} was made for this push and stays, without the checkpoint", *e.args[1:])
        raise


def _check_writable(api: HfApi, repo: str) -> None:
    """Ask whether a repository may be written to: that it is there says nothing of it."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.auth_check(repo, write=True)
    except HfHubHTTPError as e:
        if e.response.status_code != 404:  # a hub that cannot be asked this says it when it gets the files
            raise


def push(to: Destination, folder: Path, message: str, description: str) -> Pushed:
    """Upload a checkpoint: the files of `files_of`, and nothing else that lies in the folder.

    They go up as they are, but for places on this machine's disk, which recipe.yaml and configurations may name.

    Files of an earlier checkpoint that this one lacks are removed in the same commit (see `stale`); other files stay.

    Args:
        message, description: Of the commit.

    Raises:
        InputError: the hub refuses it.
        EvoMergeError: the hub cannot be reached, or the upload was cut off. The folder is as it was.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    names = files_of(folder)
    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi()
    again = f"; {folder} is whole, and the same command uploads it without building it again"
    with tempfile.TemporaryDirectory(prefix="evomerge-") as scratch, _told(f"--push {to.repo}: ", after=again):
        old = stale(api.list_repo_files(to.repo, revision=to.branch), names, replace=to.replace)
        done = api.upload_folder(
            repo_id=to.repo, folder_path=_staged(folder, names, Path(scratch)),
            delete_patterns=[glob.escape(name) for name in old] or None,  # exact names; None: nothing is asked twice
            commit_message=message, commit_description=description, revision=to.branch,
        )  # fmt: skip
    return Pushed(f"{api.endpoint}/{to.repo}", done.oid, names)


def _staged(folder: Path, names: Sequence[str], scratch: Path) -> Path:
    """A folder of links to what goes up; files that say where something lies on this machine go up without that."""
    changed = dict(_without_paths(folder))
    for name in names:
        if name in changed:
            (scratch / name).write_text(changed[name], encoding="utf-8")
        else:
            (scratch / name).symlink_to((folder / name).resolve())
    return scratch


def _without_paths(folder: Path) -> Iterator[tuple[str, str]]:
    """Files as they may be published, where that is not how they lie there: places on somebody's disk are private."""
    recipe = folder / RECIPE
    if recipe.is_file():
        chain = load_chain(recipe)
        shown = public(chain)
        if shown != chain:
            yield RECIPE, shown.to_yaml()
    for name, key in _PLACES.items():
        data = read_object(folder, name) if (folder / name).is_file() else {}
        if isinstance(data.get(key), str) and not HUB_ID.fullmatch(data[key]):
            del data[key]
            yield name, json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def files_of(folder: Path) -> tuple[str, ...]:
    """Names of a checkpoint's own files, weights first.

    Raises:
        InputError: it holds no weights, or lacks some that its index names.
    """
    if is_diffusion(folder):
        raise InputError(
            f"{folder}: holds diffusion models, which are not pushed here; push the folder with huggingface_hub's own "
            "command"
        )
    weights: Sequence[str] = [SINGLE]
    if (folder / INDEX).is_file():
        try:
            weights = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as e:
            raise InputError(f"{folder / INDEX}: cannot be read ({type(e).__name__})") from None
    missing = [name for name in weights if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder}: is no whole checkpoint: it lacks {missing[0]}; write it again (--overwrite)")
    index = [INDEX] if (folder / INDEX).is_file() else []
    return (*weights, *index, *(name for name in (*OWN, *KEPT) if (folder / name).is_file()))


@contextmanager
def _told(before: str, who: str | None = None, after: str = "") -> Iterator[None]:
    """What the client raises, as one message of ours."""
    try:
        yield
    except EvoMergeError:
        raise
    except Exception as e:  # HTTP, connection, validation, xet: many kinds, some of them of no common root
        _raise(e, before, who, after)


def _raise(error: Exception, before: str, who: str | None, after: str) -> NoReturn:
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    if type(error) is ValueError:  # the client's own words, of a card that the hub does not take
        raise InputError(f"{before}refused: {_line(error)}{after}") from None
    http = next((e for e in _chain(error) if isinstance(e, HfHubHTTPError)), None)
    if http is None:
        cause = _chain(error)[-1]
        raise EvoMergeError(
            f"{before}the hub at {constants.ENDPOINT} cannot be reached, or broke off ({type(cause).__name__}){after}"
            f"{_without_xet(error)}"
        ) from None
    status, said = http.response.status_code, _said(http)
    if status == 401 and who is None:
        where = "HF_TOKEN" if _from_environment() else "the one that hf auth login left"
        raise InputError(f"{before}the hub does not know the token ({where}); make a new one{said}{after}") from None
    if status in (401, 403, 404):
        whose = f"the token of {who}" if who else "the token"
        raise InputError(f"{before}{whose} has no right to write there{said}{after}") from None
    if status in (400, 409, 413, 422):
        raise InputError(f"{before}the hub refuses it (HTTP {status}){said}{after}") from None
    raise EvoMergeError(f"{before}the hub failed (HTTP {status}){said}{after}") from None


def _without_xet(error: Exception) -> str:
    """What helps where large files go to a hub that has no Xet storage: the client tries nothing else by itself."""
    found = any("xet" in f"{type(e).__module__} {e}".lower() for e in _chain(error))
    return "; for a hub without Xet storage set HF_HUB_DISABLE_XET=1" if found else ""


def _chain(error: BaseException) -> list[BaseException]:
    found = [error]
    while (earlier := found[-1].__cause__ or found[-1].__context__) is not None and earlier not in found:
        found.append(earlier)
    return found


def _said(error: Exception) -> str:
    """The server's own words, which have no addresses in them."""
    words = getattr(error, "server_message", None)
    return f" ({_line(words)})" if words else ""


def _line(words: object) -> str:
    return " ".join(str(words).split())[:300]


def _from_environment() -> bool:
    return bool(os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"))
