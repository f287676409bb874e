"""Download the sources of SOEM, an EtherCAT master in C, and unpack them for ethercat.pyx.

They are in the source distribution of soemx (PyPI), its binding for Python; nothing of soemx itself is used. SOEM is
under the GPL, version 3, or a commercial licence, which then applies to the program that is linked with it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "0.1.1"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rtloop-soem"


def archive(folder: Path = CACHE) -> Path:
    """Return where the source distribution is kept."""
    return folder / f"soemx-{VERSION}.tar.gz"


def download(folder: Path = CACHE) -> Path:
    """Download it, once; return the file."""
    file = archive(folder)
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                   "--no-binary", ":all:", f"soemx=={VERSION}"]  # fmt: skip
        with tempfile.TemporaryDirectory(dir=folder) as place:
            subprocess.run([*command, "--dest", place], check=True)
            os.replace(Path(place) / file.name, file)
    return file


def unpack(target: Path, folder: Path = CACHE) -> None:
    """Unpack what SOEM has for Linux into two folders of `target`, which is replaced: sources and headers."""
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4
    with tempfile.TemporaryDirectory() as place:
        shutil.unpack_archive(download(folder), place, **safe)
        shutil.rmtree(target, ignore_errors=True)
        for file in Path(place).glob(f"soemx-{VERSION}/vendor/SOEM/**/*.[ch]"):
            if "win32" in file.parts:
                continue
            place_of = "src" if file.suffix == ".c" else "include/soem" if file.parent.name == "soem" else "include"
            here = target / place_of
            here.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, here)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", action="store_true", help="download it without unpacking it")
    if parser.parse_args().install:
        download()
    else:
        unpack(Path(__file__).parent / "generated" / "soem")


if __name__ == "__main__":
    main()
