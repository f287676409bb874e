"""Process of the plant: a cart-pole that moves in real time and speaks UDP on the loopback interface.

``python -m rtloop.demo.plant`` prints one line of JSON with its port, simulates until a line comes on its standard
input, and then prints one line of JSON with the pole's report. It exits silently when its standard input is closed, so
that it never outlives the process that started it.
"""

from __future__ import annotations

import argparse
import json
import select
import subprocess
import sys
import warnings
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, cast

from rtloop.process.interpreter import python

__all__ = ["PlantProcess", "Report", "main"]

PRIORITY = 85  # the world does not wait for its controller


@dataclass(frozen=True, slots=True)
class Report:
    """Report of the pole, from the plant.

    Attributes
    ----------
    observed_s : float
        Duration of the simulation, from the release of the pole.
    fell_at_s : float or None
        Time at which the pole passed 45 degrees and the motor was cut; None if it stood to the end.
    worst_angle_deg : float
        The largest angle, in degrees from upright; 90 is flat on the table.
    oldest_state_ms : float
        The greatest age of a state whose answer still acted on the cart: the worst delay in the control loop.
    states_sent, forces_received : int
        Datagrams.
    trace : dict
        ``interval_s``, ``position_m`` and ``angle_deg``, from the release of the pole.
    """

    observed_s: float
    fell_at_s: float | None
    worst_angle_deg: float
    oldest_state_ms: float
    states_sent: int
    forces_received: int
    trace: dict[str, Any]

    @property
    def stood(self) -> bool:
        """True if the pole stood to the end."""
        return self.fell_at_s is None


class PlantProcess:
    """The plant in a process of its own; a context manager that leaves no process behind.

    Parameters
    ----------
    duration_ns : int
        Duration of the observation after the release of the pole.
    seed : int
        Seed of the pushes.
    period_ns : int
        Period at which it sends its state and receives forces.
    """

    def __init__(self, duration_ns: int, seed: int, period_ns: int = 1_000_000) -> None:
        # -P: a folder called rtloop in the current directory must not hide the installed package.
        command = [python(), "-P", "-m", __name__, str(duration_ns), str(seed), str(period_ns)]
        # Its own session: Ctrl-C is left to the parent, and the plant ends with its standard input.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            self.address = ("127.0.0.1", int(self._read(20.0)["port"]))
        except BaseException:
            self._close()
            raise

    def _read(self, timeout: float) -> dict[str, Any]:
        stdout = cast("IO[str]", self._process.stdout)
        if not select.select([stdout], [], [], timeout)[0]:
            raise RuntimeError(f"the plant's process has not answered for {timeout:g} s")
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the plant's process has ended with exit code {self._process.wait(timeout)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def finish(self) -> Report:
        """Stop the plant and return its report."""
        stdin = cast("IO[str]", self._process.stdin)
        stdin.write("stop\n")
        stdin.flush()
        return Report(**self._read(20.0))

    def _close(self) -> None:
        """End the process, by force if necessary."""
        with self._process as process:  # closes the pipes and waits
            cast("IO[str]", process.stdin).close()
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
            except BaseException:
                process.kill()
                raise

    def __enter__(self) -> PlantProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()


def main() -> None:
    """Run the plant, as described at the top of this module."""
    from rtloop import RTSetupWarning
    from rtloop.demo.physics import Plant

    parser = argparse.ArgumentParser(prog="python -m rtloop.demo.plant", description="The plant of rtloop demo.")
    for name in ("duration_ns", "seed", "period_ns"):
        parser.add_argument(name, type=int)
    options = parser.parse_args()
    plant = Plant(
        options.period_ns, duration_ns=options.duration_ns, seed=options.seed, priority=PRIORITY, strict=False,
        lock_memory="own", name="plant",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RTSetupWarning)  # the user sees the same in the controller's own grants
        plant.start()
    try:
        print(json.dumps({"port": plant.port}), flush=True)
        command = sys.stdin.readline()
    finally:
        plant.stop()
    if command:
        print(json.dumps(plant.report()), flush=True)
    plant.close()


if __name__ == "__main__":
    main()
