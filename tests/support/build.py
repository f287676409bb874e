"""Compile a .pyx file against the installed rtloop with nothing but Cython and a C compiler.

`python build.py FOLDER INCLUDE` compiles all modules that tests share against the rtloop in the folder INCLUDE, which
may be that of another architecture, for a machine without a compiler.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

#: The modules beside this file that several tests use, with flags for the compiler.
SHARED = {
    "buffer_probe": (), "exchanges": (), "guilty": ("-g", "-Wl,-z,lazy"), "probes": (), "regions": (), "scoped": (),
    "signalled": (), "swaps": (), "tuned": (), "waits": (),
}  # fmt: skip


def compile_pyx(
    source: Path, out: Path, *more: str, environment: Mapping[str, str] | None = None, include: str = ""
) -> Path:
    """Compile `source` into the folder `out`, with `more` compiler flags; returns the extension module's path.

    The variables of `environment` are added for Cython. `include` is that of the installed rtloop by default.
    """
    include = include or importlib.import_module("rtloop").get_include()
    c_file = out / (source.stem + ".c")
    module = out / (source.stem + sysconfig.get_config_var("EXT_SUFFIX"))
    subprocess.run(
        [sys.executable, "-m", "cython", "-3", "--line-directives", "-X", "freethreading_compatible=True",
         "-I", include, str(source), "-o", str(c_file)],
        env={**os.environ, **(environment or {})}, check=True,
    )  # fmt: skip
    compiler = os.environ.get("CC", "cc").split()
    flags = ["-O2", *more, "-fPIC", "-shared", "-I", include, "-I", sysconfig.get_paths()["include"]]
    subprocess.run([*compiler, *flags, str(c_file), "-o", str(module)], check=True)
    return module


def import_module(path: Path) -> ModuleType:
    """Import an extension module from its path."""
    name = path.name.split(".")[0]
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)
    return module


if __name__ == "__main__":
    for name, flags in SHARED.items():
        folder = Path(sys.argv[1]) / name
        folder.mkdir(parents=True)
        compile_pyx(Path(__file__).with_name(f"{name}.pyx"), folder, *flags, include=sys.argv[2])
