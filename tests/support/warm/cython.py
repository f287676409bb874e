"""Cython without its start-up, nine tenths of a second for each module: forked off a process that has loaded it.

With this folder on PYTHONPATH, ``python -m cython`` finds this file before Cython's own. It asks the process of
``warm_cython.py`` for a child that does the same work with the same arguments, folder, environment and open files. If
there is none, or if this process is not like it (another user, other limits), Cython is loaded here, as always.
"""

from __future__ import annotations

import os
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
#: The environment variable with the path of the process's socket.
ADDRESS = "RTLOOP_TEST_CYTHON"


def state() -> list[object]:
    """Describe what a forked child has from its parent and cannot be given: both processes must have the same."""
    import resource

    umask = os.umask(0o077)
    os.umask(umask)
    limits = [
        resource.getrlimit(getattr(resource, name)) for name in sorted(dir(resource)) if name.startswith("RLIMIT")
    ]
    text = [sys.version, sys.getfilesystemencoding()]
    return [*text, umask, os.getresuid(), os.getresgid(), sorted(os.getgroups()), limits]


def ask() -> int | None:
    """Let the child of the warm process compile; returns its exit code, or None if Cython has to be loaded here."""
    import json
    import socket

    streams = [(stream.encoding, stream.errors) for stream in (sys.stdout, sys.stderr)]
    path = [folder for folder in sys.path if os.path.realpath(folder) != HERE]
    order = [sys.argv, os.getcwd(), dict(os.environ), path, streams, state()]
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(os.environ[ADDRESS])
            message = json.dumps(order).encode()
            socket.send_fds(connection, [len(message).to_bytes(8, "big")], [0, 1, 2])
            connection.sendall(message)
            answer = connection.recv(1)
        except (KeyError, OSError):
            return None
        if not answer:  # the other is not like this
            return None
        code = connection.recv(1)
        return code[0] if code else 1  # the child was killed


def main() -> None:
    """Compile as Cython's own module does."""
    code = ask()
    if code is not None:
        sys.exit(code)
    sys.path[:] = [folder for folder in sys.path if os.path.realpath(folder) != HERE]
    from Cython.Compiler.Main import main as compile_here

    compile_here(command_line=1)


if __name__ == "__main__":
    main()
else:
    # What `import cython` gives.
    from Cython import __version__, load_ipython_extension  # noqa: F401
    from Cython.Shadow import *  # noqa: F403
