"""PyInstaller hook: adds the modules of the commands, which the command line imports by name."""

from PyInstaller.utils.hooks import collect_data_files

from rtloop.tools.cli import COMMANDS

hiddenimports = sorted({*COMMANDS.values()})
datas = collect_data_files("rtloop.tools")
