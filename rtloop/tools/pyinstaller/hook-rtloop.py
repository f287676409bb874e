"""Modules and files of rtloop that PyInstaller does not see: imports of compiled modules, and the guards' library."""

from PyInstaller.utils.hooks import collect_dynamic_libs, collect_submodules

#: Commands, the plugin of pytest and the magic of Jupyter have extras of their own.
_LEFT_OUT = ("rtloop.tools", "rtloop.pytest", "rtloop.zenoh", "rtloop.numba", "rtloop.notebook")

hiddenimports = collect_submodules("rtloop", filter=lambda name: not name.startswith(_LEFT_OUT))
binaries = collect_dynamic_libs("rtloop")
