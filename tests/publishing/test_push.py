"""`evomerge export --push`: huggingface_hub's real client against a hub on this machine."""

from __future__ import annotations

import functools
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants, lfs, snapshot_download
from huggingface_hub.utils import http_backoff

from evomerge.recipe import load_chain
from tests.hub_server import Hub

pytestmark = pytest.mark.xdist_group("publishing")


@pytest.fixture
def push(study: Path, served: Hub, here, tmp_path: Path):
    """Pushes the study's winner from one folder."""

    def run(repo: str = "me/model", *more: object, check: bool = True) -> SimpleNamespace:
        return here("export", study, tmp_path / "made", "--push", repo, *more, "--json", check=check)

    return run


def message(done: SimpleNamespace, code: int = 2) -> str:
    assert done.returncode == code and "Traceback" not in done.stderr
    assert not any(token in done.stdout + done.stderr for token in ("hf_writer", "hf_reader", "hf_stranger"))
    return done.result["error"]


def test_what_arrives_is_what_was_written_and_loads(push, served: Hub, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = push("me/model", "--private")
    out, there = tmp_path / "made", served.root / "me" / "model"
    assert done.result["pushed"]["url"] == f"{served.url}/me/model" and "me/model" in served.uploads.private
    assert sorted(p.name for p in there.iterdir()) == sorted(p.name for p in out.iterdir())
    for file in there.iterdir():
        if file.name != "recipe.yaml":
            assert file.read_bytes() == (out / file.name).read_bytes(), file.name
    # The study's models lie in folders of the user's: where is nobody's business, and no part of what a recipe means.
    text = (there / "recipe.yaml").read_text()
    assert str(tmp_path.parent) not in text and "model: maths" in text
    assert load_chain(there / "recipe.yaml").hash() == done.result["recipe_hash"]
    (commit,) = served.uploads.commits
    assert commit["summary"] == f"Candidate {done.result['trial']} of s, recipe {done.result['recipe_hash'][:12]}"
    assert served.uploads.leaked == []  # the storage is another service, to which no token goes

    got = AutoModelForCausalLM.from_pretrained("me/model")
    own = AutoModelForCausalLM.from_pretrained(out)
    ids = AutoTokenizer.from_pretrained("me/model")("drevin kunt 5 nesh", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(got(ids).logits, own(ids).logits)
    assert got.generate(ids, max_new_tokens=3).shape[1] > ids.shape[1]


def test_the_same_command_uploads_what_is_there(push, served: Hub, tmp_path: Path) -> None:
    push()
    out = tmp_path / "made"
    written = (out / "model.safetensors").stat().st_mtime_ns
    assert len(served.uploads.commits) == 1
    push()
    assert len(served.uploads.commits) == 1  # nothing has changed
    (out / "README.md").write_text((out / "README.md").read_text() + "\nSaid by hand.\n")
    (out / "LICENSE").write_text("a licence")
    (out / ".env").write_text("SECRET=1")
    (out / "notes.txt").write_text("mine")
    (out / "sub").mkdir()
    (out / "sub" / "config.json").write_text("{}")
    push()
    assert served.uploads.commits[1]["files"] == ["LICENSE", "README.md"]
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    there = {p.name for p in (served.root / "me" / "model").iterdir()}
    assert not there & {".env", "notes.txt", "sub"}
    assert "Said by hand" in (served.root / "me" / "model" / "README.md").read_text()
    (out / "README.md").unlink()
    push()
    assert "Said by hand" not in (out / "README.md").read_text()
    assert (served.root / "me" / "model" / "README.md").read_bytes() == (out / "README.md").read_bytes()
    push("me/model", "--overwrite")  # builds it again
    assert (out / "model.safetensors").stat().st_mtime_ns > written and not (out / "LICENSE").exists()


def filled(served: Hub, repo: str, **files: str) -> Path:
    """A repository with these files."""
    there = served.root / repo
    for name, text in files.items():
        file = there / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return there


OWN_CARD = "---\ntags: [merge, evomerge]\n---\n# one\n"
OWN_RECIPE = "merge_method: linear\nevomerge: {seed: 1}\n"


def test_files_of_an_earlier_push_go_and_nothing_else(push, served: Hub, tmp_path: Path) -> None:
    """What would be loaded beside, or instead of, the new files goes; a folder's files and the user's own stay."""
    names = {
        "model-00001-of-00002.safetensors", "model.safetensors.index.json", "chat_template.jinja", "tokenizer.model",
        "path.png",
    }  # fmt: skip
    stay = {
        "adapter.safetensors", "notes.md", "LICENSE", "NOTICE.txt", "pytorch_model.bin", "model-x.safetensors",
        "old/model-00001-of-00002.safetensors", "model-1/a-of-1.safetensors", "old/model.safetensors", "old/vocab.txt",
        "model-00001-of-1/x-of-00002.safetensors",
    }  # fmt: skip
    there = filled(served, "team/model", **{"README.md": OWN_CARD}, **dict.fromkeys(names | stay, "old"))
    push("team/model")
    assert {*served.uploads.commits[0]["deleted"]} == names
    left = {f.relative_to(there).as_posix() for f in there.rglob("*") if f.is_file()}
    assert left == stay | {f.name for f in (tmp_path / "made").iterdir()}


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"config.json": "{}", "model.safetensors": "x", "README.md": "# mine"}, "config.json, model.safetensors"),
        ({"pytorch_model.bin": "x"}, "pytorch_model.bin"),
        ({f"m-{n}.gguf": "x" for n in range(6)}, "m-0.gguf, m-1.gguf, m-2.gguf, m-3.gguf, 2 more"),
        ({"adapter_config.json": "{}", "README.md": "---\ntags: evomerge-like\n---\n"}, "adapter_config.json"),
        ({"config.json": "{}", "recipe.yaml": "merge_method: linear\nmodels: []\n"}, "config.json"),
        ({"config.json": "{}", "recipe.yaml": "- evomerge: [", "README.md": "---\n- [\n---\n"}, "config.json"),
        ({"config.json": "{}", "README.md": "---\n- evomerge\n---\n"}, "config.json"),
    ],
)
def test_another_s_model_is_not_overwritten(
    files: dict[str, str], named: str, push, served: Hub, tmp_path: Path
) -> None:
    filled(served, "me/theirs", **files)
    words = message(push("me/theirs", check=False))
    assert words.startswith(f"--push me/theirs: the repository holds a model that evomerge did not make ({named}")
    assert "give another name, or --replace-model" in words
    assert not (tmp_path / "made").exists() and served.uploads.commits == []
    new = message(push("me/theirs", "--revision", "new", check=False))  # a new branch begins as main
    assert "the repository holds a model" in new and served.uploads.all_branches("me/theirs") == ["main"]


@pytest.mark.parametrize(
    "files",
    [
        {"README.md": "# nothing yet", "data/model.safetensors": "x", ".gitattributes": ""},
        {"config.json": "{}", "model.safetensors": "x", "README.md": OWN_CARD},
        {"config.json": "{}", "recipe.yaml": OWN_RECIPE},
        {"config.json": "{}", "recipe.yaml": f"name: one\n{OWN_RECIPE}---\nmerge_method: linear\n"},
    ],
)
def test_an_earlier_push_and_an_empty_repository_are_taken(files: dict[str, str], push, served: Hub) -> None:
    filled(served, "me/model", **files)
    push("me/model")
    assert (served.root / "me" / "model" / "model.safetensors").stat().st_size > 100


def test_a_branch_of_its_own_is_looked_at(push, served: Hub) -> None:
    filled(served, "me/model", **{"config.json": "{}", "README.md": OWN_CARD})
    push("me/model", "--revision", "second")
    (served.uploads.folder("me/model", "second") / "README.md").write_text("# by hand")
    (served.uploads.folder("me/model", "second") / "recipe.yaml").unlink()
    words = message(push("me/model", "--revision", "second", check=False))
    assert "branch second of the repository holds a model" in words
    push("me/model")


def test_another_s_model_is_replaced_where_that_is_said(push, served: Hub) -> None:
    from transformers import AutoModelForCausalLM

    old = {"adapter_config.json", "adapter_model.safetensors", "pytorch_model-00001-of-00002.bin", "merges.txt"}
    stay = {"model-q4.gguf", "modeling_theirs.py", "LICENSE"}
    there = filled(served, "me/theirs", **dict.fromkeys(old | stay | {"config.json"}, "{}"))
    push("me/theirs", "--replace-model")
    assert {*served.uploads.commits[0]["deleted"]} == old and stay <= {f.name for f in there.iterdir()}
    AutoModelForCausalLM.from_pretrained("me/theirs")
    push("me/theirs")  # now it is one of evomerge's


@pytest.mark.parametrize(("repo", "more", "made"), [
    ("me/model", (), "repository me/model"),
    ("me/there", ("--revision", "b"), "branch b of me/there"),
])  # fmt: skip
def test_what_was_made_on_the_hub_for_a_push_that_fails_is_named(
    repo: str, more: tuple[str, ...], made: str, push, served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evomerge.errors import SourceChangedError
    from evomerge.pipeline.export import Rebuilt

    def changed(*_: object, **__: object) -> None:
        raise SourceChangedError("a file has changed")

    (served.root / "me" / "there").mkdir(parents=True)
    left = f"{made} was made for this push and stays, without the checkpoint"
    with monkeypatch.context() as patch:
        patch.setattr(Rebuilt, "write", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        assert message(push(repo, *more, check=False), 130) == f"interrupted: {left}"
        patch.setattr(Rebuilt, "write", changed)
        assert message(push(repo, *more, check=False), 1) == "a file has changed"  # it was there before this command
        shutil.rmtree(served.uploads.folder(repo, more[1] if more else "main"))
        assert message(push(repo, *more, check=False), 1) == f"a file has changed; {left}"


def test_what_is_to_be_private_goes_into_no_public_repository(push, served: Hub, tmp_path: Path) -> None:
    (served.root / "me" / "open").mkdir(parents=True)
    assert "the repository is there and public" in message(push("me/open", "--private", check=False))
    assert not (tmp_path / "made").exists()
    push("me/closed", "--private")
    push("me/closed", "--private")


def test_a_branch_is_made(push, served: Hub, tmp_path: Path) -> None:
    push("me/model", "--revision", "second")
    assert served.uploads.commits[0]["revision"] == "second"
    assert list((served.root / "me" / "model").iterdir()) == []
    made = Path(snapshot_download("me/model", revision="second", local_dir=tmp_path / "got"))
    assert (made / "model.safetensors").read_bytes() == (tmp_path / "made" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("token", "repo", "words"),
    [
        ("hf_unknown", "me/model", "the hub does not know the token (HF_TOKEN)"),
        ("hf_reader", "me/model", "may only read"),
        ("hf_writer", "other/model", "the token of me has no right to write there (You don't have the rights"),
        ("hf_writer", "readers/model", "has no right to write there"),
        ("hf_stranger", "me/taken", "the token of stranger has no right to write there"),
        ("", "me/model", "there is no token of the hub's"),
        ("hf_writer", "model", "expected OWNER/NAME, as in me/model"),
        ("hf_writer", "a/b/c", "is no name of a repository"),
        ("hf_writer", "me/mo del", "is no name of a repository"),
    ],
)
def test_what_is_refused_is_refused_before_anything_is_built(
    token: str, repo: str, words: str, push, served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (served.root / "me" / "taken").mkdir(parents=True)
    monkeypatch.setenv("HF_TOKEN", token)
    assert words in message(push(repo, check=False))
    assert not (tmp_path / "made").exists() and served.uploads.commits == []


def test_offline_is_offline(push, served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids the network" in message(push(check=False))
    assert not (tmp_path / "made").exists() and served.uploads.asked == []


def test_a_hub_that_is_out_of_reach(push, served: Hub, tmp_path: Path) -> None:
    served.close()
    assert "cannot be reached, or broke off" in message(push(check=False), 1)
    assert not (tmp_path / "made").exists()


def test_another_model_in_the_folder_is_not_pushed(push, served: Hub, here, study: Path, tmp_path: Path) -> None:
    winner = push().result["trial"]
    other = next(n for n in range(4) if n != winner)
    done = push("me/second", "--trial", other, check=False)
    assert "does not hold this candidate" in message(done) and not (served.root / "me" / "second").exists()
    push("me/second", "--trial", other, "--overwrite")
    assert f"candidate {other}" in (served.root / "me" / "second" / "README.md").read_text()


def test_the_network_goes_midway_and_the_same_command_ends_it(
    push, served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = functools.partial(http_backoff, max_retries=1, base_wait_time=0.01)
    monkeypatch.setattr(lfs, "http_backoff", impatient)
    served.uploads.cut = 10_000
    words = message(push(check=False), 1)
    assert words.endswith("; repository me/model was made for this push and stays, without the checkpoint")
    assert "broke off" in words and f"{tmp_path / 'made'} is whole, and the same command uploads it" in words
    weights = tmp_path / "made" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert served.uploads.commits == [] and list((served.root / "me" / "model").iterdir()) == []
    served.uploads.cut = None
    push()
    assert weights.stat().st_mtime_ns == written
    assert (served.root / "me" / "model" / "model.safetensors").read_bytes() == weights.read_bytes()


def test_a_card_that_the_hub_refuses(push, served: Hub, tmp_path: Path) -> None:
    push()
    file = tmp_path / "made" / "README.md"
    file.write_text(file.read_text().replace("library_name:", "license: mine\nlibrary_name:"))
    words = message(push(check=False))
    assert "refused: Invalid metadata in README.md." in words and '"license" must be one of' in words


def test_a_hub_without_xet_storage_is_told_how(push, served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    assert "for a hub without Xet storage set HF_HUB_DISABLE_XET=1" in message(push(check=False), 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--private",), "--private is about --push OWNER/NAME, which is missing"),
        (("--revision", "x"), "--revision is about --push"),
        (("--replace-model",), "--replace-model is about --push"),
        (("--push", "me/x", "--format", "parquet"), "--push is about a checkpoint"),
        (("--push", "me/x", "--revision", "a..b"), "is no name of a branch"),
    ],
)
def test_options_that_do_not_go_together(
    options: tuple[str, ...], words: str, study: Path, served: Hub, here, tmp_path: Path
) -> None:
    assert words in message(here("export", study, tmp_path / "made", *options, "--json", check=False))
