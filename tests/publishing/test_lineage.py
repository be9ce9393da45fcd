"""Where models come from: their own cards, read from folders and from a hub, and never a reason to stop."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download

from evomerge import zoo
from evomerge.publishing.lineage import lineage, lineage_of, model_name
from evomerge.recipe import parse_recipe
from evomerge.sources.cards import Cards, Licence
from tests.hub_server import Hub
from tests.publishing.conftest import card, config


def folder(parent: Path, name: str, **front: object) -> Path:
    made = parent / name
    shutil.copytree(zoo.path("base"), made)
    if front:
        card(made, **front)
    return made


def test_names_are_without_paths() -> None:
    assert model_name("/disk/maths_upper") == "maths_upper" and model_name("zoo:base") == "zoo:base"
    assert model_name("org/model@main") == "org/model"
    assert model_name("org/model@v1+/disk/lora") == "org/model+lora"


def test_a_folder_says_its_licence_and_what_it_was_made_from(tmp_path: Path) -> None:
    a = folder(tmp_path, "a", license="Apache-2.0", base_model=["org/base", "/home/somebody/secret"])
    found = Cards(asking=False).read(str(a))
    assert found.licence == Licence("apache-2.0") and found.parents == ("org/base", "/home/somebody/secret")
    own = lineage_of({str(a): "source"}, {str(a): "f" * 64})
    text = own.section()
    assert "- `a` (source): apache-2.0; content sha256 `ffffffffffffffff`" in text
    assert "  - made from `org/base`, says its card" in text and "made from `secret`" in text
    assert "somebody" not in text and str(tmp_path) not in text and own.hub_ids == []


def test_a_folder_without_a_card_is_known_by_its_configuration(tmp_path: Path) -> None:
    a = folder(tmp_path, "a")
    config(a, _name_or_path="org/base")
    assert Cards().read(str(a), ask=False).parents == ("org/base",)
    assert "made from `org/base`, says config.json" in lineage_of({str(a): "source"}, {}).section()
    config(a, _name_or_path=str(a))  # saved where it was loaded from
    assert Cards().read(str(a), ask=False).parents == ()


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: [mit]\n---\n", Licence("mit")),
        ("---\nlicense: [mit, gpl-3.0]\n---\n", Licence("other", "mit and gpl-3.0")),
        ("---\r\nlicense: mit\r\n---\r\n", Licence("mit")),
        ("\ufeff---\nlicense: mit\n---\n", Licence("mit")),
        ("---\nlicense: other\nlicense_name: acme\nlicense_link: LICENSE\n---\n", Licence("other", "acme", "LICENSE")),
        ("---\nlicense_name: acme\n---\n", Licence("other", "acme")),
        ("---\nlicense: unknown\n---\n", None),
        ("---\nlicense: 4\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\n- a list\n---\n", None),
        ("no front matter\n---\nlicense: mit\n---\n", None),
        ("---\nlicense: 'mit`|\\n# heading'\n---\n", Licence("mit \\n# heading")),
    ],
)
def test_cards_of_others(text: str, licence: Licence | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(text.encode())
    assert Cards().read(str(tmp_path)).licence == licence


def test_what_is_no_card_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    (tmp_path / "config.json").write_text("[1]")
    assert Cards().read(str(tmp_path)).licence is None
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").mkdir()
    assert Cards().read(str(tmp_path)).licence is None


def test_a_circle_of_cards_ends(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for one, other in ((a, b), (b, a)):
        one.mkdir()
        card(one, license="mit", base_model=str(other))
    (origin,) = lineage_of({str(a): "source"}, {}).origins
    assert origin.parents[0].name == "b" and origin.parents[0].parents == ()


def publish(served: Hub, repo: str, **front: object) -> None:
    made = served.root / repo
    shutil.copytree(zoo.path("base"), made)
    if front:
        card(made, **front)


def test_the_hub_is_asked_for_cards_once_and_ancestors_only_where_wanted(served: Hub) -> None:
    publish(served, "org/tune", license="apache-2.0", base_model="org/base")
    publish(served, "org/base", license="llama3.1")
    commit = served.commit("org/tune")
    recipe = parse_recipe("merge_method: linear\nmodels:\n- {model: org/tune@main, parameters: {weight: 1}}\n")
    named = lineage(recipe, ask="named")
    (origin,) = named.origins
    assert origin.licence == Licence("apache-2.0") and origin.card.commit == commit and named.hub_ids == ["org/tune"]
    assert origin.parents[0].licence is None and named.licence == Licence("apache-2.0")
    every = lineage(recipe, ask="all")
    assert every.origins[0].parents[0].licence == Licence("llama3.1") and every.licence is None
    assert [c.kind for c in every.conflicts] == ["ancestor"]
    assert f"revision `main`; commit `{commit[:12]}`" in every.section()
    served.close()  # what was asked for lies in the cache now
    assert lineage(recipe).to_dict() == every.to_dict()


def test_models_without_cards_and_a_hub_that_is_gone(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(served, "org/bare")
    snapshot_download("org/bare", allow_patterns=["*.json"])
    assert Cards().read("org/bare").hub_id == "org/bare" and Cards().read("org/nothing").licence is None
    served.close()
    assert Cards().read("org/bare").commit is not None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Cards().read("org/elsewhere").licence is None


def test_an_adapter_is_a_model_of_its_own(served: Hub, tmp_path: Path) -> None:
    publish(served, "org/base", license="llama3.1")
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    found = lineage_of({f"org/base+{lora}": "source"}, {f"org/base+{lora}": "e" * 64}, ask="named")
    assert found.hub_ids == ["org/base"] and [o.role for o in found.origins] == ["source", "LoRA adapter on org/base"]
    assert found.origins[1].content == "e" * 64 and found.origins[1].parents[0].licence == Licence("llama3.1")
    text = found.section()
    assert "made from `org/base`, says adapter_config.json: llama3.1" in text
    assert [c.kind for c in found.conflicts] == ["unknown", "ancestor"]
