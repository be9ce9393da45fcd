"""Small file systems of a test's own, mounted in a namespace that goes with its processes."""

import shutil
import subprocess

import pytest

PRIVATE = ("unshare", "--user", "--map-root-user", "--mount")  # needs no rights where user namespaces are allowed


def needs_mounts():
    """Skip where nothing can be mounted."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare(1) on this system")
    done = subprocess.run([*PRIVATE, "mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no right to mount in a namespace of one's own: {done.stderr.strip()}")
