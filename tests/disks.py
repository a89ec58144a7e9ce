"""A disk in memory whose size can change, to be full or read-only."""

import os
import subprocess
from pathlib import Path

import pytest

PAGE = 4096  # what a disk in memory hands out


class Disk:
    """A disk in memory whose size can change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(root)]
        if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("only root may mount a small disk")

    def resize(self, pages: int) -> None:
        self._remount(f"size={pages * PAGE}")

    def leave(self, pages: int) -> None:
        """Take all space but so many pages away."""
        status = os.statvfs(self.root)
        self.resize(status.f_blocks - status.f_bfree + pages)

    def freeze(self) -> None:
        self._remount("ro")

    def thaw(self) -> None:
        self._remount("rw,size=64m")

    def remove(self) -> None:
        subprocess.run(["umount", self.root], check=True)

    def _remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.root], check=True)
