"""evomerge is on no package index: what documents and shipped files tell people to install comes from a clone.

Messages of the program may name an extra (`pip install 'evomerge[wandb]'`): where they are shown evomerge is installed,
and pip takes that one.
"""

import re
from pathlib import Path

import pytest
from packaging.requirements import InvalidRequirement, Requirement

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(
    f
    for pattern in ("*.md", "*.yaml", "*.yml", "Makefile", "docs/**/*.md", "docs/**/*.ipynb", "evomerge/cli/starter/*")
    for f in ROOT.glob(pattern)
    if f.is_file()
)
# A command that installs, to the end of its line or code.
INSTALL = re.compile(r"(?:pip3? install|uv (?:pip install|add|tool install)|pipx install|uvx)\b((?:[^`\n\\]|\\\n)*)")


def from_an_index(text):
    """The words by which a text has evomerge installed from an index."""
    found = []
    for command in INSTALL.finditer(text):
        for word in re.split(r"[\s,;&|)]+", command[1]):
            try:
                requirement = Requirement(word.strip("'\"."))
            except InvalidRequirement:  # an option, a path, shell
                continue
            if requirement.name.lower() == "evomerge" and requirement.url is None:
                found.append(f"{command[0].strip()}: {word}")
    return found


@pytest.mark.parametrize("file", SHIPPED, ids=lambda f: str(f.relative_to(ROOT)))
def test_nothing_installs_evomerge_from_an_index(file):
    assert from_an_index(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("  - ~/evomerge/bin/pip install --quiet evomerge \"ray[default]==2.60.0\"", True),
        ("`pip install 'evomerge[postgresql]'`, PostgreSQL", True),
        ("$ uv pip install evomerge==0.1", True),
        ("pip install -c constraints.txt -e '.[vision]'", False),
        ("`make search`, then evomerge", False),
        ("pip install dist/evomerge-*.whl", False),
        ("pip install torch`, then `evomerge search", False),
        ('~/evomerge/bin/pip install "$(ls -t ~/w/dist/evomerge-*.whl | head -n 1)" "ray[default]"', False),
    ],
)  # fmt: skip
def test_the_search_for_such_commands(text, found):
    assert bool(from_an_index(text)) is found


def test_files_are_looked_at():
    names = {str(f.relative_to(ROOT)) for f in SHIPPED}
    assert {"README.md", "ray_cluster.yaml", "docs/cluster.md", "docs/storage.md", "CHANGELOG.md"} <= names
