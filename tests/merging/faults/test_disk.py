"""Targets that cannot be written: the message, exit code 2, nothing left behind; on file systems mounted for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Refused = Callable[..., str]
RECIPE = "merge_method: linear\nmodels: [{model: ./a}, {model: ./b}]\nparameters: {weight: 0.5}\n"
CHAIN = f"name: first\n{RECIPE}---\nmerge_method: passthrough\nmodels: [{{model: first}}]\n"
PRIVATE = ("unshare", "--user", "--map-root-user", "--mount")  # needs no rights where user namespaces are allowed


def _mounts() -> str:
    """Why no file system can be mounted here, or nothing."""
    if shutil.which("unshare") is None:
        return "no unshare(1) on this system"
    done = subprocess.run([*PRIVATE, "mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True, text=True)
    return f"no right to mount in a namespace of one's own: {done.stderr.strip()}" if done.returncode else ""


@pytest.fixture
def mounted(models: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """mounted(options, recipe): a merge into a fresh tmpfs of these options; what is left there is on stdout."""
    reason = _mounts()
    if reason:
        pytest.skip(reason)

    def run(
        options: str, recipe: str = RECIPE, before: str = ":", program: str = "-m evomerge"
    ) -> subprocess.CompletedProcess[str]:
        (models / "r.yaml").write_text(recipe)
        target = models / "target"
        target.mkdir(exist_ok=True)
        script = (
            f'mount -t tmpfs -o {options} tmpfs "$1" && {{ {before}; }} && "$2" {program} merge "$3" "$1/deep/out"; '
            'code=$?; find "$1" -mindepth 1; exit $code'
        )
        command = [*PRIVATE, "sh", "-c", script, "sh", str(target), sys.executable, str(models / "r.yaml")]
        return subprocess.run(command, capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL)

    return run


def error(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == "", "left behind"
    found = [line for line in done.stderr.splitlines() if line.startswith("evomerge: error: ")]
    assert len(found) == 1
    return found[0]


def needed(models: Path) -> int:
    return (models / "a" / "model.safetensors").stat().st_size


def test_a_disk_that_is_too_small(mounted: Callable[..., Any], models: Path) -> None:
    message = error(mounted("size=512k"))
    assert "target/deep/out: the disk is full; the model needs" in message


def test_a_disk_that_is_too_small_where_files_have_names(mounted: Callable[..., Any], models: Path) -> None:
    """As on macOS and on file systems without unnamed files."""
    program = models / "named.py"
    program.write_text(
        "import os, sys\ndel os.O_TMPFILE\nfrom evomerge.cli import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    assert "the disk is full" in error(mounted("size=512k", program=str(program)))
    pages = needed(models) // 4096 + 2
    assert "the disk is full" in error(mounted(f"size={pages * 4096}", program=str(program)))


def test_a_disk_that_fills_up_at_the_end(mounted: Callable[..., Any], models: Path) -> None:
    """The weights have room, but not what comes after them."""
    pages = needed(models) // 4096 + 2
    message = error(mounted(f"size={pages * 4096}"))
    assert "target/deep/out: the disk is full" in message


def test_a_disk_without_room_for_another_file(mounted: Callable[..., Any], models: Path) -> None:
    """Inodes run out: the root, `deep`, the weights and the folder are four."""
    message = error(mounted("size=10m,nr_inodes=6"))
    assert "target/deep/out: the disk is full" in message


def test_a_disk_that_is_too_small_for_a_step_of_a_chain(mounted: Callable[..., Any], models: Path) -> None:
    assert "the disk is full" in error(mounted(f"size={int(1.5 * needed(models))}", CHAIN))
    assert "the disk is full" in error(mounted(f"size={2 * needed(models) + 8192}", CHAIN))


def test_the_same_disk_with_room(mounted: Callable[..., Any], models: Path) -> None:
    done = mounted("size=20m", CHAIN)
    assert done.returncode == 0, done.stderr
    names = {Path(line).name for line in done.stdout.splitlines()}
    assert {"deep", "out", "model.safetensors", "recipe.yaml"} <= names and not any(n.startswith(".") for n in names)


def test_a_read_only_target(mounted: Callable[..., Any]) -> None:
    message = error(mounted("ro"))
    assert "target/deep/out: cannot be written (Read-only file system)" in message
    # The folder is there already, so that the first thing to fail is the file of weights.
    done = mounted("size=10m", before='mkdir "$1/deep" && mount -o remount,ro "$1"')
    assert (
        done.returncode == 2 and done.stdout.split() == [done.stdout.strip()] and done.stdout.strip().endswith("/deep")
    )
    assert "cannot be written" in done.stderr and "Traceback" not in done.stderr


def test_a_target_without_the_right_to_write(models: Path) -> None:
    """`chmod` does not stop root, whose capabilities are taken away here."""
    (models / "r.yaml").write_text(RECIPE)
    (models / "closed").mkdir(mode=0o555)
    command = [sys.executable, "-m", "evomerge", "merge", str(models / "r.yaml"), str(models / "closed" / "out")]
    if os.getuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root, and no setpriv(1) to be less")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stderr
    assert "closed/out: cannot be written (no right to write in" in done.stderr and "Traceback" not in done.stderr
    assert not list((models / "closed").iterdir())


def test_a_limit_on_the_size_of_files(models: Path) -> None:
    """`ulimit -f`, and file systems whose files cannot grow so large."""
    (models / "r.yaml").write_text(RECIPE)
    before = sorted(models.rglob("*"))
    script = 'ulimit -f 100; exec "$0" -m evomerge merge "$1" "$2"'
    command = ["bash", "-c", script, sys.executable, str(models / "r.yaml"), str(models / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stderr
    assert "out: cannot be written (File too large" in done.stderr and "--shard-size" in done.stderr
    assert "Traceback" not in done.stderr and sorted(models.rglob("*")) == before


@pytest.mark.parametrize("out", ["file/out", "file", "/proc/nowhere/out", "/dev/null/out", "x" * 300])
def test_a_target_that_cannot_be(out: str, models: Path, refused: Refused) -> None:
    (models / "file").write_text("")
    message = refused(out=models / out, words=(out,))
    assert len(message.splitlines()) == 1 and ("cannot be written" in message or "is a file" in message)


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
@pytest.mark.parametrize("out", ["b", "b/", "b/../b", "link", "."])
def test_a_target_that_holds_a_source(out: str, options: tuple[str, ...], models: Path, refused: Refused) -> None:
    (models / "link").symlink_to(models / "b")
    refused(out=models / out, options=options, words=("holds the source model", "choose another folder"))


@pytest.mark.parametrize("out", ["a/merged", "b/deep/merged"])
def test_a_target_inside_a_source(out: str, models: Path, refused: Refused) -> None:
    refused(out=models / out, words=("lies inside the source model", "choose another folder"))


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_a_target_that_holds_a_sources_adapter(options: tuple[str, ...], models: Path, refused: Refused) -> None:
    import json

    import torch
    from safetensors.torch import save_file

    target = models / "target"
    shutil.copytree(models / "a", target)
    adapter = target / "lora"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    rows, columns = torch_shape(models / "a")
    name = "base_model.model.model.layers.0.mlp.up_proj"
    save_file(
        {f"{name}.lora_A.weight": torch.ones(2, columns), f"{name}.lora_B.weight": torch.ones(rows, 2)},
        adapter / "adapter_model.safetensors",
    )
    recipe = "{merge_method: linear, models: [{model: ./a+./target/lora}, {model: ./b}], parameters: {weight: 1}}"
    refused(recipe, out=target, options=options, words=("holds the source model", "target/lora"))


def torch_shape(model: Path) -> tuple[int, int]:
    from evomerge.header import read_header

    rows, columns = read_header(model / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].shape
    return rows, columns


def test_a_target_that_is_not_empty(models: Path, refused: Refused) -> None:
    (models / "out").mkdir()
    (models / "out" / "mine.txt").write_text("mine")
    refused(words=("out: is not empty; choose another folder, or overwrite it (--overwrite)",))
    refused(options=("--overwrite",), words=("holds no model (config.json), so it is not overwritten",))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_to_a_folder_stands_for_it(overwrite: bool, here: Callable[..., Any], models: Path) -> None:
    (models / "r.yaml").write_text(RECIPE)
    (models / "far").mkdir()
    target = models / "far" / "target"
    if overwrite:
        shutil.copytree(models / "base", target)
    else:
        target.mkdir()
    (models / "link").symlink_to(Path("far") / "target")
    here("merge", models / "r.yaml", models / "link", *(["--overwrite"] if overwrite else []))
    assert (models / "link").is_symlink() and (target / "recipe.yaml").is_file()
    assert sorted(p.name for p in (models / "far").iterdir()) == ["target"]


@pytest.mark.parametrize("to", ["gone", "link", "file"])
def test_a_link_that_leads_to_no_folder(to: str, models: Path, refused: Refused) -> None:
    (models / "file").write_text("")
    (models / "link").symlink_to(to)
    message = refused(out=models / "link", words=("link",))
    assert ("is a file" if to == "file" else "is a link to") in message


@pytest.mark.parametrize("device", ["foo", "meta", "cpu:7", "cuda:9999", ""])
def test_a_device_that_is_none(device: str, models: Path, refused: Refused) -> None:
    assert (
        len(refused(options=("--device", device), words=("--device", "expected cpu, cuda, or cuda:N")).splitlines())
        == 1
    )


def test_cuda_where_there_is_none(models: Path, refused: Refused) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one here")
    assert len(refused(options=("--device", "cuda"), words=("--device cuda:",)).splitlines()) == 1
