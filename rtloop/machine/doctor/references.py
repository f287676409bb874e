"""References of the doctor's checks: the items of the kernel's documentation, and the verdicts of each check.

`docs/draw_doctor.py` writes these tables into docs/reference/doctor.md; a test compares them with the checks.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ITEMS", "PAGES", "VERDICTS_OF", "Item", "Page", "plain_name", "references"]

#: Checks whose names continue with the name of the finding.
_PREFIXES = ("known problem", "real-time hog")


class Page(NamedTuple):
    """A page of documentation: its title and address."""

    title: str
    url: str


class Item(NamedTuple):
    """An item of a page.

    Attributes
    ----------
    page : str
        Key of `PAGES`.
    name : str
        The item, as the page names it.
    anchor : str
        The section's anchor; empty for the whole page.
    expects : str
        What the page recommends.
    checks : tuple of str
        Names of the checks that cover it; empty if there is none.
    remark : str
        What the checks do not cover, or why there is no check.
    """

    page: str
    name: str
    anchor: str
    expects: str
    checks: tuple[str, ...]
    remark: str = ""


_KERNEL = "https://docs.kernel.org"
_MAN = "https://man7.org/linux/man-pages"
PAGES = {
    "configuration": Page(
        "Real-Time Kernel configuration", f"{_KERNEL}/next/core-api/real-time/kernel-configuration.html"
    ),
    "hardware": Page("Considering hardware", f"{_KERNEL}/core-api/real-time/hardware.html"),
    "theory": Page("Theory of operation", f"{_KERNEL}/core-api/real-time/theory.html"),
    "differences": Page("How realtime kernels differ", f"{_KERNEL}/core-api/real-time/differences.html"),
    "porting": Page(
        "Porting an architecture to support PREEMPT_RT", f"{_KERNEL}/core-api/real-time/architecture-porting.html"
    ),
    "isolation": Page("CPU Isolation", f"{_KERNEL}/admin-guide/cpu-isolation.html"),
    "others": Page("Other pages", ""),
}

_ALLOWED = "allowed: it costs no latency"
#: Every item of the pages about real time and isolation, in their order, then items of other pages.
ITEMS = (
    Item("configuration", "CONFIG_CPU_FREQ", "config-cpu-freq", "enabled, high", ("frequency governor",)),
    Item("configuration", "CONFIG_CPU_FREQ_DEFAULT_GOV_PERFORMANCE", "config-cpu-freq-default-gov-performance",
         "enabled, high", ("frequency governor",)),
    Item("configuration", "Non-performance CPU frequency governors", "non-performance-cpu-frequency-governors",
         "disabled, medium", ("available governors", "frequency governor")),
    Item("configuration", "CONFIG_CPU_IDLE", "config-cpu-idle", "enabled, info; C1 at most",
         ("idle states", "idle latency bound")),
    Item("configuration", "CONFIG_DRM", "config-drm", "disabled, info", ("graphics",)),
    Item("configuration", "CONFIG_EFI_DISABLE_RUNTIME", "config-efi-disable-runtime", "enabled, medium",
         ("EFI runtime services",)),
    Item("configuration", "CONFIG_NO_HZ / CONFIG_NO_HZ_FULL", "config-no-hz-config-no-hz-full", "disabled, medium",
         ("idle tick", "nohz_full")),
    Item("configuration", "CONFIG_PREEMPT_RT", "config-preempt-rt", "enabled, fatal", ("preemption", "version")),
    Item("configuration", "CONFIG_TRACING", "config-tracing-and-tracing-options",
         "enabled, info; no tracer or event in use", ("tracing",)),
    Item("configuration", "CONFIG_IRQSOFF_TRACER and CONFIG_PREEMPT_TRACER",
         "config-irqsoff-tracer-and-config-preempt-tracer", "disabled, high", ("latency tracers",)),
    Item("configuration", "Kernel Debug Options", "kernel-debug-options", "disabled", ("debug options",)),
    Item("configuration", "CONFIG_DEBUG_ATOMIC_SLEEP", "config-debug-atomic-sleep", "allowed", (), _ALLOWED),
    Item("configuration", "CONFIG_DEBUG_BUGVERBOSE and CONFIG_DEBUG_INFO*",
         "config-debug-bugverbose-and-config-debug-info", "allowed", (), _ALLOWED),
    Item("configuration", "CONFIG_DEBUG_FS", "config-debug-fs", "allowed", (),
         "allowed: it costs latency only while a program uses it"),
    Item("configuration", "CONFIG_DEBUG_KERNEL", "config-debug-kernel", "allowed", (), _ALLOWED),
    Item("configuration", "CONFIG_LOCKUP_DETECTOR", "config-lockup-detector", "disabled, high", ("lockup detectors",)),
    Item("configuration", "CONFIG_PROVE_LOCKING", "config-prove-locking", "disabled, high", ("lock debugging",)),
    Item("hardware", "System memory and cache", "system-memory-and-cache", "no shared cache, or a part of it reserved",
         ("shared caches", "NUMA nodes", "graphics")),
    Item("hardware", "Hardware buses", "hardware-buses", "no power management of links", ("PCIe power management",),
         "the latency of a bus such as USB depends on the device, so measure it"),
    Item("hardware", "Virtualization", "virtualization", "whole CPUs; no idle=poll in a guest",
         ("virtual machine", "stolen time", "idle states")),
    Item("hardware", "Networking", "networking", "XDP, or tuned queues", ("threaded NAPI",),
         "the program sets up queues and XDP"),
    Item("hardware", "Firmware", "firmware", "tested", ("firmware interruptions",)),
    Item("hardware", "EFI", "efi", "off, or confined to housekeeping CPUs", ("EFI runtime services",)),
    Item("hardware", "OP-TEE (ARM)", "op-tee-arm", "latency measured", ("secure world (OP-TEE)",)),
    Item("theory", "Scheduling", "scheduling", "a real-time policy", ("real-time priority", "a real loop")),
    Item("theory", "Sleeping spin locks", "sleeping-spin-locks", "PREEMPT_RT", ("preemption",)),
    Item("theory", "Priority inheritance", "priority-inheritance", "PREEMPT_RT", ("preemption",)),
    Item("theory", "Threaded interrupts", "threaded-interrupts", "in threads, FIFO 50",
         ("threaded interrupts", "other real-time threads")),
    Item("differences", "Interrupt handling", "interrupt-handling", "in threads", ("threaded interrupts",)),
    Item("differences", "Soft interrupts, bottom half handling", "soft-interrupts-bottom-half-handling", "in threads",
         ("threaded NAPI", "preemption")),
    Item("differences", "Timers", "timers", "in threads; a loop's own in the interrupt", ("timer resolution",)),
    Item("differences", "RCU callbacks", "rcu-callbacks", "in threads; off the isolated CPUs", ("rcu_nocbs",)),
    Item("porting", "Forced threaded interrupts", "requirements", "supported", ("threaded interrupts",)),
    Item("porting", "Timer and clocksource", "optional-features", "high resolution",
         ("timer resolution", "clocksource", "clock_gettime")),
    Item("porting", "Lazy preemption", "optional-features", "delays ordinary threads only", ("preemption mode",)),
    Item("isolation", "Scheduler domain isolation", "scheduler-domain-isolation", "a cpuset partition, or isolcpus=",
         ("isolated CPUs", "cpuset partitions", "CPUs of this process")),
    Item("isolation", "Unbound work", "housekeeping", "on housekeeping CPUs", ("unbound kernel work",)),
    Item("isolation", "IRQs isolation", "irqs-isolation", "on housekeeping CPUs",
         ("interrupts", "new interrupts", "irqbalance")),
    Item("isolation", "Full Dynticks (aka nohz_full)", "full-dynticks-aka-nohz-full",
         "for work that stays in user space", ("nohz_full",)),
    Item("isolation", "mlock()", "checklist", "locked memory", ("locked memory", "swap")),
    Item("isolation", "SMT", "checklist", "off", ("threads per core",)),
    Item("isolation", "CPU frequency changes", "checklist", "none", ("frequency governor",)),
    Item("isolation", "Deep C-states", "checklist", "limited", ("idle states", "idle latency bound")),
    Item("isolation", "Firmware interrupts (SMI)", "checklist", "off in the firmware", ("firmware interruptions",)),
    Item("others", "[sched-rt-group](https://docs.kernel.org/scheduler/sched-rt-group.html)", "",
         "the runtime of a group; sched_rt_runtime_us above the fair server's share",
         ("fair server", "real-time throttling", "control group's real-time runtime")),
    Item("others", "[threaded NAPI](https://docs.kernel.org/networking/napi.html)", "",
         "a priority for the frames of a card", ("threaded NAPI",)),
    Item("others", "[cgroup-v2, cpuset](https://docs.kernel.org/admin-guide/cgroup-v2.html)", "",
         "valid partitions; no quota", ("cpuset partitions", "control group's CPU limit")),
    Item("others", "[vm.compact_unevictable_allowed](https://docs.kernel.org/admin-guide/sysctl/vm.html)", "", "0",
         ("compaction of locked pages",)),
    Item("others", "[transparent huge pages](https://docs.kernel.org/admin-guide/mm/transhuge.html)", "",
         "madvise or never", ("transparent huge pages", "khugepaged")),
    Item("others", "[KSM](https://docs.kernel.org/admin-guide/mm/ksm.html)", "", "off", ("same-page merging (KSM)",)),
    Item("others", "[kernel.numa_balancing](https://docs.kernel.org/admin-guide/sysctl/kernel.html)", "", "0",
         ("NUMA balancing",)),
    Item("others", "[huge pages](https://docs.kernel.org/admin-guide/mm/hugetlbpage.html)", "",
         "a pool, for HugeBuffer", ("huge page pool",)),
    Item("others", f"[getrlimit(2)]({_MAN}/man2/getrlimit.2.html)", "", "RTPRIO, MEMLOCK, no RTTIME",
         ("real-time priority", "locked memory", "real-time CPU time")),
    Item("others", f"[capabilities(7)]({_MAN}/man7/capabilities.7.html)", "", "CAP_SYS_NICE, CAP_IPC_LOCK",
         ("capabilities",)),
    Item("others", f"[limits.conf(5)]({_MAN}/man5/limits.conf.5.html)", "", "applied to this session",
         ("limits of the login", "user")),
    Item("others", f"[sched(7)]({_MAN}/man7/sched.7.html)", "", "no other thread that hogs a CPU",
         ("other real-time threads", "real-time hog")),
    Item("others", f"[adjtimex(2)]({_MAN}/man2/adjtimex.2.html)", "", "for loops of several hosts",
         ("TAI offset", "time of day")),
    Item("others", "the CVE records and commits named in each finding", "", "a kernel without the problem",
         ("known problems", "known problem")),
)  # fmt: skip

_UNREAD = "not readable"
#: The verdicts that each check may give, with their conditions. A value that cannot be read is always a note.
VERDICTS_OF: dict[str, dict[str, str]] = {
    "a real loop": {"ok": "a loop with the default settings ran", "note": "not tried", "fail": "it did not start"},
    "real-time priority": {"ok": "at least 80, or CAP_SYS_NICE", "note": _UNREAD, "fail": "less"},
    "locked memory": {"ok": "unlimited, or CAP_IPC_LOCK", "note": _UNREAD, "fail": "limited"},
    "real-time CPU time": {"ok": "unlimited", "note": _UNREAD, "warn": "limited"},
    "capabilities": {
        "ok": "held, or the limits make up for them",
        "note": f"missing, and a limit is too low; those of a user namespace; {_UNREAD}",
    },
    "user": {"ok": "any user", "note": f"root by sudo; {_UNREAD}"},
    "limits of the login": {"ok": "applied, or none", "note": _UNREAD, "warn": "in limits.conf, but not applied"},
    "preemption": {"ok": "PREEMPT_RT", "note": _UNREAD, "warn": "any other"},
    "version": {"ok": "5.9 or later", "note": _UNREAD, "warn": "older"},
    "known problems": {"ok": "none of those listed", "note": _UNREAD},
    "known problem": {"note": "it may apply", "warn": "it applies"},
    "preemption mode": {"ok": "PREEMPT_RT, full or lazy", "note": f"none or voluntary; {_UNREAD}"},
    "threaded interrupts": {"ok": "forced", "note": f"not forced; {_UNREAD}"},
    "idle tick": {"ok": "nohz=off, or built without NO_HZ", "note": f"stops on an idle CPU; {_UNREAD}"},
    "tracing": {"ok": "built in, and off", "note": f"not built in; {_UNREAD}", "warn": "a tracer or an event is on"},
    "latency tracers": {"ok": "not built in", "note": _UNREAD, "warn": "built in"},
    "lock debugging": {"ok": "not built in", "note": _UNREAD, "warn": "built in"},
    "debug options": {"ok": "none that costs latency", "note": f"light ones; {_UNREAD}", "warn": "heavy ones"},
    "lockup detectors": {"ok": "off, or not on isolated CPUs", "note": f"on, without PREEMPT_RT; {_UNREAD}",
                         "warn": "on, with PREEMPT_RT"},
    "EFI runtime services": {"ok": "off, none, or confined to other CPUs", "note": f"on; {_UNREAD}"},
    "real-time throttling": {"ok": "at least 90 %, or for SCHED_DEADLINE alone", "note": f"off; {_UNREAD}",
                             "warn": "less than 90 %", "fail": "no time at all"},
    "fair server": {"ok": "at most 10 % of a period, or none",
                    "note": f"on although sched_rt_runtime_us is -1; {_UNREAD}",
                    "warn": "more, or as much as sched_rt_runtime_us"},
    "control group's real-time runtime": {"ok": "some, or no limit", "note": _UNREAD, "fail": "none"},
    "control group's CPU limit": {"ok": "none", "note": _UNREAD, "warn": "a quota"},
    "CPUs of this process": {"ok": "the isolated ones are usable", "note": f"some CPUs are not usable; {_UNREAD}",
                             "warn": "the isolated ones are not in its cpuset"},
    "other real-time threads": {"ok": "none takes a fifth of a CPU", "note": f"some are hidden; {_UNREAD}"},
    "real-time hog": {"warn": "a thread that takes more than a fifth of a CPU"},
    "machine": {"ok": "any", "note": _UNREAD},
    "container": {"ok": "none", "note": f"any; {_UNREAD}"},
    "virtual machine": {"ok": "none", "note": _UNREAD, "warn": "any"},
    "stolen time": {"ok": "at most 0.5 %", "note": _UNREAD, "warn": "more"},
    "firmware interruptions": {"ok": "none in half a second", "note": "not counted", "warn": "some"},
    "secure world (OP-TEE)": {"ok": "none", "note": f"OP-TEE; {_UNREAD}"},
    "graphics": {"ok": "none, or not integrated", "note": f"integrated; {_UNREAD}"},
    "PCIe power management": {"ok": "performance, or off", "note": f"the firmware's setting; {_UNREAD}",
                              "warn": "powersave"},
    "threaded NAPI": {"ok": "on for each card", "note": f"off for some; {_UNREAD}"},
    "isolated CPUs": {"ok": "some", "note": f"none; {_UNREAD}"},
    "cpuset partitions": {"ok": "none, or all valid", "note": _UNREAD, "warn": "one is invalid"},
    "unbound kernel work": {"ok": "not on isolated CPUs", "note": _UNREAD, "warn": "on isolated CPUs"},
    "interrupts": {"ok": "none on isolated CPUs", "note": f"no CPU is isolated; {_UNREAD}",
                   "warn": "some may arrive on isolated CPUs"},
    "new interrupts": {"ok": "not on isolated CPUs", "note": f"on isolated CPUs; {_UNREAD}"},
    "irqbalance": {"ok": "not running, or it leaves the CPUs alone", "note": f"runs; {_UNREAD}"},
    "nohz_full": {"ok": "none", "note": f"on some CPUs; {_UNREAD}"},
    "rcu_nocbs": {"ok": "the isolated CPUs", "note": f"not all isolated CPUs, or none; {_UNREAD}"},
    "threads per core": {"ok": "1, or no neighbour of an isolated CPU", "note": f"more; {_UNREAD}",
                         "warn": "isolated CPUs share their cores"},
    "NUMA nodes": {"ok": "1", "note": f"more; {_UNREAD}"},
    "shared caches": {"ok": "not with isolated CPUs", "note": f"with isolated CPUs; {_UNREAD}"},
    "frequency governor": {"ok": "performance, or fixed bounds", "note": "none is visible",
                           "warn": "one that changes the frequency"},
    "available governors": {"ok": "none that follows the load", "note": f"one that does; {_UNREAD}"},
    "idle states": {"ok": "at most 10 us to leave", "note": f"deeper ones, or idle=poll; {_UNREAD}"},
    "idle latency bound": {"ok": "any", "note": _UNREAD},
    "clocksource": {"ok": "a fast one", "note": f"of unknown speed; {_UNREAD}", "warn": "a slow one"},
    "clock_gettime": {"ok": "through the vDSO", "note": "not measured", "warn": "a system call"},
    "timer resolution": {"ok": "at most 1 us", "note": _UNREAD, "fail": "more"},
    "TAI offset": {"ok": "set", "note": f"not set; {_UNREAD}"},
    "time of day": {"ok": "kept by PTP", "note": "not kept by PTP", "warn": "two services keep one clock"},
    "transparent huge pages": {"ok": "madvise or never", "note": _UNREAD, "warn": "always"},
    "khugepaged": {"ok": "idle, or only for memory that programs offer", "note": _UNREAD, "warn": "for all memory"},
    "same-page merging (KSM)": {"ok": "off", "note": _UNREAD, "warn": "runs"},
    "NUMA balancing": {"ok": "off, or one node", "note": _UNREAD, "warn": "on"},
    "compaction of locked pages": {"ok": "not allowed", "note": _UNREAD, "warn": "allowed"},
    "swap": {"ok": "none", "note": f"some; {_UNREAD}"},
    "huge page pool": {"ok": "filled", "note": f"empty; {_UNREAD}"},
    "Python": {"ok": "any version", "note": "a debug build"},
    "Cython": {"ok": "3 or later", "note": "not installed", "warn": "older"},
    "C compiler": {"ok": "with Python.h", "note": "missing"},
    "wake-up latency": {"ok": "within a tenth of the period", "note": "within half of it", "warn": "later",
                        "fail": "the loop did not run"},
}  # fmt: skip


def plain_name(name: str) -> str:
    """Return the name of a check without the finding: ``"known problem"`` for each known problem."""
    return next((prefix for prefix in _PREFIXES if name.startswith((f"{prefix}:", f"{prefix} "))), name)


def references(name: str) -> list[dict[str, str]]:
    """Return the documents that a check follows, each with its title, item and URL, ready for JSON."""
    found = []
    for item in ITEMS:
        if plain_name(name) in item.checks:
            page = PAGES[item.page]
            if page.url:
                url = f"{page.url}#{item.anchor}"
                found.append({"page": page.title, "item": item.name, "url": url})
            elif item.name.startswith("["):
                text, _, rest = item.name[1:].partition("](")
                found.append({"page": text, "item": text, "url": rest.rstrip(")")})
    return found
