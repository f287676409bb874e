"""Boot PREEMPT_RT kernels in QEMU, and judge loops inside by the doctor, the tests and the kernel's monitors.

    run.py [KERNEL ...] [--parts PART ...] [--tests TEST ...]

See README.md beside this file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from kernels import NAMES, fetch, modules_of
from machine import Machine, part, section

PYTEST = '"$PYTHON" -m pytest -p no:cacheprovider -p no:xdist -rsx -s --tb=short'
#: Parts that need CPUs that are isolated at boot, and the arguments of that kernel: two of three.
AT_BOOT, ISOLATED = ("doctor", "examine"), "isolcpus=managed_irq,domain,1-2 rcu_nocbs=1-2"
#: Parts with their commands, in the order in which they run.
PARTS = {
    "doctor": '"$PYTHON" -P /inside.py',
    "examine": f"{PYTEST} tests/rt_kernel/examine.py",
    "monitors": f"{PYTEST} tests/rt_kernel/monitors.py",
    "isolation": f"{PYTEST} tests/rt_kernel/partition.py tests/rt/test_isolation.py",
    "can": f"for file in /modules/*.ko; do insmod $file; done; RTLOOP_TEST_VCAN=1 {PYTEST} tests/build/test_can.py",
}
#: Parts in which a test that is skipped is a failure.
NONE_SKIPPED = ("can",)
#: Packages of this Python that the part `can` needs.
CAN_MODULES = ("can", "canopen", "cantools")


def between(text: str, begin: str, end: str) -> str:
    return text.partition(f"=={begin}==")[2].partition(f"=={end}==")[0].strip()


def judge(doctor: dict[str, Any], stats: dict[str, Any]) -> list[str]:
    """Return what is not as it has to be."""
    checks = {f"{check['topic']}: {check['name']}": check for check in doctor["checks"]}
    wanted = {
        "kernel: preemption": ("ok", "PREEMPT_RT"),
        "cpus: isolated CPUs": ("ok", "1-2 of 0-2"),
        "cpus: nohz_full": ("ok", "none"),
        "probe: a real loop": ("ok", "ran 20 cycles"),
        "probe: real-time thread": ("ok", "fifo 80"),
        "machine: virtual machine": ("warn", "QEMU"),
    }
    wrong = [
        f"{name}: {checks.get(name)}"
        for name, (verdict, words) in wanted.items()
        if name not in checks or checks[name]["verdict"] != verdict or words not in checks[name]["found"]
    ]
    if not doctor["host"]["preempt_rt"]:
        wrong.append("host_facts does not know that this is PREEMPT_RT")
    grants = {grant["name"]: grant for grant in stats["grants"]}
    if grants.get("cpu", {}).get("granted") not in ("1", "2", "1-2"):
        wrong.append(f"the loop was not on an isolated CPU: {grants.get('cpu')}")
    if not 95 <= stats["cycles"] + stats["missed"] <= 101:
        wrong.append(f"{stats['cycles']} cycles and {stats['missed']} missed are not the releases of 1 s at 100 Hz")
    return wrong


def judge_doctor(text: str, capture: Path | None) -> list[str]:
    """Print the doctor's page; return what is not as it has to be."""
    try:
        doctor, stats = json.loads(between(text, "doctor", "loop")), json.loads(between(text, "loop", "machine"))
    except ValueError:
        return ["the doctor or the loop did not come to its end inside", text[-8000:]]
    print(between(text, "page", "doctor"))
    if capture is not None:
        capture.write_text(between(text, "machine", "end") + "\n")
    print(
        f"\n{stats['cycles']} cycles, {stats['missed']} missed, at most {stats['latency']['max_ns'] / 1e6:.1f} ms late"
    )
    return judge(doctor, stats)


def run(machine: Machine, kernel: Path, parts: dict[str, str], arguments: argparse.Namespace) -> list[str]:
    """Run parts on a kernel, in one machine for each way to isolate; return what failed."""
    failed = []
    for at_boot in (True, False):
        wanted = {name: name in AT_BOOT or arguments.isolated for name in parts}
        chosen = {name: command for name, command in parts.items() if wanted[name] is at_boot}
        if not chosen:
            continue
        began = time.monotonic()
        script = "uname -r\n" + "".join(part(name, command) for name, command in chosen.items())
        cpus, more = (3, ISOLATED) if at_boot else (2, "")
        modules = modules_of(kernel) if "can" in chosen else ()
        text = machine.run(kernel, script, cpus=cpus, arguments=more, timeout_s=arguments.timeout, modules=modules)
        for name in chosen:
            inside, code = section(text, name)
            if name == "doctor":
                wrong = judge_doctor(inside, arguments.capture)
            else:
                print(inside)
                wrong = [] if code == 0 else [f"exit code {code}"]
                wrong += re.findall("^SKIPPED .*", inside, re.MULTILINE) if name in NONE_SKIPPED else []
                if chosen[name].startswith(PYTEST) and not re.search(r"\b\d+ passed", inside):
                    wrong.append("no test has passed")
            failed += [f"{name}: {line}" for line in wrong]
            if code is None:
                print(text[-8000:])
        print(f"-- {kernel.name}: {', '.join(chosen)}: {time.monotonic() - began:.0f} s", flush=True)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ", ".join(NAMES)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"{known}, or a file; default: 6.12", default=[])
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="what runs (default: all)")
    parser.add_argument("--tests", nargs="+", default=[], metavar="TEST", help="tests to run instead, for pytest")
    parser.add_argument("--command", metavar="LINE", help="a line for sh to run instead")
    parser.add_argument("--isolated", action="store_true", help="run those on three CPUs, two of them isolated at boot")
    parser.add_argument("--capture", type=Path, metavar="FILE", help="write the machine as in tests/unit/machines")
    parser.add_argument("--timeout", type=float, default=900, help="longest time of a machine, in seconds")
    arguments = parser.parse_args()
    os.environ["LC_ALL"] = "C"
    parts = {name: PARTS[name] for name in arguments.parts or PARTS}
    lacking = [name for name in CAN_MODULES if importlib.util.find_spec(name) is None]
    if "can" in parts and lacking:
        if arguments.parts:
            sys.exit(f"the part `can` needs {', '.join(lacking)}: pip install python-can canopen cantools")
        print(f"`can` is left out: it needs {', '.join(lacking)} (pip install python-can canopen cantools)", flush=True)
        del parts["can"]
    if arguments.tests:
        parts = {"tests": f"{PYTEST} {shlex.join(arguments.tests)}"}
    if arguments.command:
        parts = {"command": arguments.command}
    failed = []
    with tempfile.TemporaryDirectory(prefix="rtloop-rt-kernel-") as folder:
        kernels = [fetch(name) if name in NAMES else Path(name) for name in arguments.kernels or ["6.12"]]
        machine = Machine(Path(folder))
        print(f"root file system: {machine.image.stat().st_size >> 20} MiB", flush=True)
        for kernel in kernels:
            failed += [f"{kernel.name}: {line}" for line in run(machine, kernel, parts, arguments)]
    if failed:
        sys.exit("FAILED\n" + "\n".join(failed))
    print(f"passed: {', '.join(parts)} on {', '.join(re.sub('.vmlinuz$', '', kernel.name) for kernel in kernels)}")


if __name__ == "__main__":
    main()
