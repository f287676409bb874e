"""The FMU: a mass on a spring, exported by OpenModelica, from the package gemseo-fmu."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

import fmpy
from fmpy.fmi2 import FMU2Slave, fmi2CallbackFunctions


def find() -> Path:
    """Return the file, without importing the package."""
    spec = importlib.util.find_spec("gemseo_fmu")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the FMU is missing: pip install --no-deps gemseo-fmu==3.1.1")
    return Path(next(iter(spec.submodule_search_locations))) / "problems" / "fmu_files" / "linux" / "Mass_Damper.fmu"


def initialised(folder: Path, logger: int) -> tuple[Any, int, int]:
    """Extract the FMU into a new folder and initialise it; return it with the references of its input and output.

    The folder must not contain an FMU whose library is loaded: overwriting that file ends the process by SIGSEGV.
    `logger` is the address of a C function. Memory comes from the C library's calloc and free, by their addresses: what
    fmpy passes by default are Python functions, which take the GIL.
    """
    description = fmpy.read_model_description(find())
    fmpy.extract(find(), unzipdir=folder)
    slave = FMU2Slave(guid=description.guid, unzipDirectory=str(folder), instanceName="plant",
                      modelIdentifier=description.coSimulation.modelIdentifier)  # fmt: skip
    libc, types = ctypes.CDLL(None), dict(fmi2CallbackFunctions._fields_)
    callbacks = fmi2CallbackFunctions(
        logger=types["logger"](logger),
        allocateMemory=ctypes.cast(libc.calloc, types["allocateMemory"]),
        freeMemory=ctypes.cast(libc.free, types["freeMemory"]),
    )
    slave.instantiate(callbacks=callbacks)
    slave.setupExperiment(startTime=0.0)
    slave.enterInitializationMode()
    slave.exitInitializationMode()
    references = {variable.name: variable.valueReference for variable in description.modelVariables}
    return slave, references["f"], references["y"]
