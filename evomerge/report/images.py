"""A fusion of image models as a table, as plain data, as a page, and as the card of the student."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from evomerge import __version__
from evomerge.errors import InputError
from evomerge.images.fused import FusedImages, replaced_lines
from evomerge.publishing.front import TASKS, UNTOLD, front_matter
from evomerge.publishing.lineage import Lineage, lineage_of, model_name
from evomerge.publishing.sections import table_line
from evomerge.report.outputs import write_atomically
from evomerge.report.page.distances import distances_page, features_words
from evomerge.report.page.render import is_report

RESULT, PAGE, CARD, GRID = "result.json", "report.html", "README.md", "grid.png"
KIND = "fuse_images"
AVERAGE, FLOOR = "weight average", "teacher again"


def images_text(fused: FusedImages) -> str:
    """The table that the command prints."""
    cells = _rows(images_dict(fused))
    widths = [max(len(r[i]) for r in cells) for i in range(len(cells[0]))]
    lines = ["Fréchet distance to each teacher's pictures (lower is nearer)"]
    lines += ["  " + "  ".join(f"{c:<{w}}" for c, w in zip(r, widths, strict=True)).rstrip() for r in cells]
    lines.append(f"FIDt, the mean of the diagonal: {fused.distances.fidt:.4f}")
    lines.append(f"{fused.out}/: model/, grid.png, report.html, README.md, result.json")
    return "\n".join(lines)


def images_dict(fused: FusedImages) -> dict[str, Any]:
    """What result.json holds and `--json` prints."""
    return {
        "kind": KIND,
        "name": fused.config.name,
        "model": str(fused.model),
        "architecture": fused.architecture,
        "told": fused.told,
        "styles": list(fused.distances.styles),
        "old": list(fused.old),
        "teachers": {
            name: {"model": model_name(fused.places[name]), "sha256": content}
            for name, content in fused.contents.items()
        },
        "distances": fused.distances.to_dict(),
        "least_on_diagonal": list(fused.distances.least_on_diagonal),
        "images": fused.config.measure.images,
        "features": fused.config.measure.features,
        "prompts": list(fused.prompts),
        "grid": fused.config.measure.grid,
        "replaced": {name: list(components) for name, components in fused.replaced.items()},
        "pictures": fused.pictures,
        "training": {"seconds": round(fused.training_seconds, 1), "history": [dict(line) for line in fused.learned]},
        "seconds": round(fused.seconds, 1),
        "file": _public(fused),
    }


def write_images(fused: FusedImages) -> None:
    """Write the student's card, and README.md, report.html and result.json of the whole; result.json last.

    Raises:
        EvoMergeError: the folder cannot be written.
    """
    data = images_dict(fused)
    for folder in (fused.model, fused.out):
        _text(folder / CARD, _card(fused, data))
    write_page(data, fused.out, fused.out / PAGE)
    _text(fused.out / RESULT, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def write_page(data: Mapping[str, Any], out: Path, file: Path) -> int:
    """Write the report of a fusion.

    Args:
        data: As result.json has it.
        out: The fusion's folder, for its grid of pictures.

    Returns:
        Its size in bytes.
    """
    when = time.strftime("%Y-%m-%d %H:%M %Z").strip()
    footer = f"Written by evomerge {__version__} on {when} from {out}. docs/images.md says what each part means."
    _text(file, distances_page(data, _rows(data), out / GRID, footer))
    return file.stat().st_size


def read_fusion(folder: Path) -> dict[str, Any] | None:
    """What a finished fusion of image models wrote into its folder; None where it is none."""
    try:
        data = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) and data.get("kind") == KIND else None


def report_again(folder: Path, asked: Path | None, overwrite: bool) -> tuple[Path, int] | None:
    """`evomerge report` of a fusion's folder: file and size; None where the folder is no fusion's.

    Raises:
        InputError: the file exists and is no report, or is a folder.
    """
    data = read_fusion(folder)
    if data is None:
        return None
    file = asked or folder / PAGE
    if file.is_dir():
        raise InputError(f"--out {file}: is a folder; expected a file, such as {file / PAGE}")
    if file.exists() and not overwrite:
        with file.open(encoding="utf-8", errors="replace") as f:
            if not is_report(f.read(4096)):
                raise InputError(f"{file}: exists, and is no report of evomerge; give another --out, or --overwrite")
    return file, write_page(data, folder, file)


def _rows(data: Mapping[str, Any]) -> list[list[str]]:
    """Heads, and the cells of each style, of the weight average, and of the teachers' own pictures made again."""
    found = data["distances"]
    rows = [["", *found["references"]]]
    rows += [[s, *(f"{v:.4f}" for v in row)] for s, row in zip(found["styles"], found["matrix"], strict=True)]
    rows.append([AVERAGE, *(f"{v:.4f}" for v in found["average"])])
    rows.append([FLOOR, *(f"{v:.4f}" for v in found["floor"])])
    return rows


def _card(fused: FusedImages, data: Mapping[str, Any]) -> str:
    """A model card in the Hub's format."""
    of = _lineage(fused)
    head, *rows = _rows(data)
    table = "\n".join([table_line(head), table_line(["---", *["---:"] * (len(head) - 1)]), *map(table_line, rows)])
    task = TASKS["diffusers"] if fused.told == "text" else UNTOLD
    front = front_matter(
        of, name=fused.config.name, relation="finetune", tags=["evomerge", "diffusion", "distillation"],
        library="diffusers", task=task,
    )  # fmt: skip
    styles = ", ".join(fused.distances.styles)
    first = fused.distances.styles[0]
    prompts = ", ".join(repr(p) for p in fused.prompts[:3])
    replaced = "".join(f"\n{line}.\n" for line in replaced_lines(fused.replaced))
    return f"""{front}
# {fused.config.name}

One {fused.architecture} with the styles {styles}: a student of {len(fused.contents) - 1} teachers (DMM, arXiv
2504.12364).

```python
from evomerge.images.student import StyledPipeline

pipeline = StyledPipeline.from_pretrained(FOLDER)
pipeline.generate([{prompts}], "{first}")
pipeline.plain("{first}").save_pretrained(OTHER)  # one style as a pipeline that diffusers loads alone
```

diffusers alone loads the folder too, without any style.

## Measured

Fréchet distances on {fused.config.measure.images:,} pictures each, on {features_words(data)} (not
Inception's: they cannot be compared with published FID), lower is nearer. Rows are styles of the student, columns
teachers. `{AVERAGE}`: the mean of all models' weights. `{FLOOR}`: the teacher itself with other noise.

{table}
{replaced}
{of.section("a fusion", "its base and teachers")}

## How it was made

Made by evomerge {__version__} (`evomerge fuse`), shown {fused.pictures:,} pictures, from this file:

```yaml
{yaml.safe_dump(data["file"], sort_keys=False, allow_unicode=True)}```
"""


def _lineage(fused: FusedImages) -> Lineage:
    roles = {fused.places["begins"]: "what the student began as"}
    contents = {fused.places["begins"]: fused.contents["begins"]}
    for name, place in fused.places.items():
        if name != "begins" and place not in roles:
            roles[place] = f"teacher of {name}"
            contents[place] = fused.contents[name]
    return lineage_of(roles, contents)


def _public(fused: FusedImages) -> dict[str, Any]:
    """The fusion's file with folders by their names alone: where they lie on somebody's disk is private."""
    data: dict[str, Any] = fused.config.model_dump(mode="json", exclude_unset=True)
    for key in ("base", "student"):
        if data.get(key):
            data[key] = model_name(data[key])
    data["teachers"] = [{"model": model_name(t.model), "style": t.style} for t in fused.config.teachers]
    data["pictures"]["path"] = Path(fused.config.pictures.path).name
    return data


def _text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda part: part.write_text(text, encoding="utf-8"))
