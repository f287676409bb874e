"""The C11 headers by themselves, with gcc and clang, under the sanitizers.

A new header gets a program ``test_<header>.c`` here, which returns 0 if all is well, and a line in ``PROGRAMS``.
With one of its ``BROKEN_`` macros, or built against headers with one of its ``Mutation``s, the program has a known
fault and must fail: a test that cannot fail tests nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INCLUDE = HERE.parents[1] / "rtloop" / "include"
HEADERS = sorted((INCLUDE / "rtloop").glob("*.h"))

DIALECT = ("-std=c11", "-D_GNU_SOURCE")
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wno-sign-conversion", "-Werror")
MEMORY = "address,undefined"
THREADS = "thread"
UNDEFINED = "undefined"  # for programs with stacks of their own

# Pieces of headers that several mutations change.
_PUBLISH = "rt_exchange_acq_rel(&latest->between, latest->back"
_TURN = "rt_exchange_acq_rel(&latest->between, latest->front"
_WRITE = "memcpy(rt_latest_back(latest), value, value_bytes);\n  rt_latest_publish(latest);"
_PUSH = "  memcpy((char *)(ring + 1) + (tail & ring->mask) * item_bytes, item, item_bytes);\n"
_ITEM_IS_IN = "  rt_store_release(&ring->tail, tail + 1);\n"
_PUT = "  memcpy(rt_shared_latest_back(s), value, s->value_bytes);\n"
_VALUE_IS_NEW = "  rt_shared_latest_publish(s);\n}\n\n/* Write a value and stamp"
_LOOK = "s->back = rt_shared_latest_find_back(s, word);\n}\n\n/* Take the side of reader"
_WAIT_FAILS = "if (RT_UNLIKELY(!rt_loop_wait(loop, &now, release))) return "
_TAKE_SET = "} while (!rt_compare_exchange_acq_rel(word, &state, next));\n  const uint64_t place_bytes"
_TAKE_STEP = "return rt_compare_exchange_acq_rel(&s->state, &asked, (uint64_t)RT_SWAP_TAKEN)"
_SEE_TAIL = "ring->tail_seen = rt_load_acquire(&ring->tail);\n  const uint64_t all = ring->tail_seen - head"


@dataclass(frozen=True)
class Mutation:
    """A known fault as a change of one header: `old`, which is there once, becomes `new`."""

    header: str
    old: str
    new: str

    def write(self, folder: Path) -> Path:
        """Copy the headers, this one with the fault; returns the folder to include from."""
        include = Path(shutil.copytree(INCLUDE, folder / "include"))
        header = include / "rtloop" / self.header
        text = header.read_text()
        assert text.count(self.old) == 1, f"{self.header} has changed: write this mutation anew"
        header.write_text(text.replace(self.old, self.new))
        return include


@dataclass(frozen=True)
class Program:
    """A test program: its sanitizers, and its known faults, each with the sanitizer it must fail under."""

    sanitizers: tuple[str, ...]
    faults: dict[str, str] = field(default_factory=dict)
    mutations: dict[str, Mutation] = field(default_factory=dict)


PROGRAMS = {
    "broadcast": Program(
        (MEMORY, THREADS),
        {"BROKEN_PUBLISH": THREADS},
        {
            "a place too few": Mutation("broadcast.h", "capacity < 2 ? 2 :", "capacity < 2 ? 1 :"),
            "goes on behind the end": Mutation(
                "broadcast.h", "if (RT_UNLIKELY(place == writer->end)) place = writer->records;", ""
            ),
            "reads what is gone": Mutation("broadcast.h", "  if (count > keep) {", "  if (0) {"),
            "trusts a number of places that is not a power of two": Mutation(
                "broadcast.h", " || (places & (places - 1))) return 0;", ") return 0;"
            ),
            "trusts the size": Mutation("broadcast.h", " || total == 0 || total != bytes)", ")"),
            "any version will do": Mutation(
                "broadcast.h", "if (rt_load_relaxed(&block->version) != RT_BROADCAST_VERSION)", "if (0)"
            ),
            "reads the sizes again": Mutation(
                "broadcast.h",
                "(number & (reader->places - 1)) * bytes",
                "(number & (reader->block->places - 1)) * bytes",
            ),
            "a time machine": Mutation("broadcast.h", "if ((int64_t)count <= 0) return 0;", ""),
            "loses without a count": Mutation("broadcast.h", "    reader->lost += count - keep;\n", ""),
            "begins at the end": Mutation("broadcast.h", "written - (is_from_oldest ? kept : 0)", "written"),
        },
    ),
    "broadcast_model": Program(
        (UNDEFINED,),
        mutations={
            "no fence before the record": Mutation(
                "broadcast.h",
                "  __atomic_thread_fence(__ATOMIC_RELEASE);\n  return writer->next;",
                "  return writer->next;",
            ),
            "no fence after the copy": Mutation(
                "broadcast.h",
                "  __atomic_thread_fence(__ATOMIC_ACQUIRE);\n  const uint64_t oldest",
                "  const uint64_t oldest",
            ),
            "no fence after the newest": Mutation(
                "broadcast.h",
                "    __atomic_thread_fence(__ATOMIC_ACQUIRE);\n    if (rt_load",
                "    if (rt_load",
            ),
            "publishes without a release": Mutation(
                "broadcast.h",
                "rt_add_release(&writer->block->written, 1);",
                "rt_store_relaxed(&writer->block->written, writer->block->written + 1);",
            ),
            "reads without an acquire": Mutation(
                "broadcast.h",
                "written = rt_load_acquire(&reader->block->written), keep",
                "written = rt_load_relaxed(&reader->block->written), keep",
            ),
            "looks at the newest without an acquire": Mutation(
                "broadcast.h",
                "written = rt_load_acquire(&reader->block->written);\n    if (written == 0) return 0;",
                "written = rt_load_relaxed(&reader->block->written);\n    if (written == 0) return 0;",
            ),
            "trusts the place that is being written": Mutation(
                "broadcast.h",
                "rt_load_relaxed(&reader->block->written) - keep;",
                "rt_load_relaxed(&reader->block->written) - reader->places;",
            ),
            "trusts what it has copied": Mutation(
                "broadcast.h", "oldest = rt_load_relaxed(&reader->block->written) - keep;", "oldest = written - keep;"
            ),
            "trusts the newest if it is under way": Mutation(
                "broadcast.h", "- written < reader->places - 1) return 1;", "- written < reader->places) return 1;"
            ),
            "loses the torn without a count": Mutation("broadcast.h", "  reader->lost += torn;\n", ""),
        },
    ),
    "histogram": Program(
        (MEMORY, THREADS),
        {"BROKEN_OCTAVE": MEMORY, "BROKEN_COUNT": MEMORY, "BROKEN_RANGE": MEMORY, "BROKEN_STORE": THREADS},
        {
            "one too many is within": Mutation("histogram.h", " < h->span;", " <= h->span;"),
            "a short one has another bin": Mutation("histogram.h", "&h->counts[value], 1", "&h->counts[value + 1], 1"),
            "a short one is not added": Mutation(
                "histogram.h", "1);\n    rt_histogram_add_any(h, value);\n    return;", "1);\n    return;"
            ),
            "a new short one is no minimum": Mutation(
                "histogram.h", " && value >= h->min && value >= 0", " && value >= 0"
            ),
            "short ones are like all others": Mutation(
                "histogram.h", "h->min > RT_HISTOGRAM_LOW ? h->min : RT_HISTOGRAM_LOW", "h->min"
            ),
            "all are within": Mutation("histogram.h", "h->max >= low &&", ""),
            "beyond the end is within": Mutation("histogram.h", " && h->max >> RT_HISTOGRAM_SQUARE_BITS == 0", ""),
            "a large one loses the upper half of its square": Mutation(
                "histogram.h", "h->squares_high + (uint64_t)(square >> 64)", "h->squares_high"
            ),
            "squares are not added": Mutation(
                "histogram.h",
                "  rt_add128_relaxed(&h->squares_low, &h->squares_high, (uint64_t)value * (uint64_t)value);\n",
                "",
            ),
            "a rare value is not added": Mutation(
                "histogram.h", "  rt_store_relaxed(&h->sum, (int64_t)((uint64_t)h->sum + (uint64_t)value));\n", ""
            ),
            "a cleared one has limits": Mutation("histogram.h", "  rt_store_relaxed(&h->span, (uint64_t)0);\n", ""),
        },
    ),
    "guard": Program(
        (UNDEFINED,),
        mutations={
            "keeps one too few": Mutation(
                "guard.h", "places[kind] < RT_GUARD_PLACES", "places[kind] + 1 < RT_GUARD_PLACES"
            ),
            "one kind takes the room of another": Mutation(
                "guard.h", "if (g->places[kind] <", "if (g->places[RT_GUARD_SYSCALL] <"
            ),
            "what has no room is lost": Mutation("guard.h", "    rt_add_relaxed(&g->unkept[kind], times);\n", ""),
            "a place is known by the depth of its stack": Mutation("guard.h", "words[v->at[i]] != v->marks[i]", "0"),
            "all calls of a function are one place": Mutation(
                "guard.h", "a->marks[from] == b->marks[from] && a->marks[from + 1] == b->marks[from + 1]", "from < 3"
            ),
            "the last cycle is the first": Mutation("guard.h", "rt_store_relaxed(&v->last_cycle, g->cycle);", ";"),
            "the last place is anybody's": Mutation("guard.h", " && !code->is_user", " && 0"),
            "a reset changes nothing": Mutation("guard.h", "    rt_store_relaxed(&g->places[kind], 0u);\n", ""),
            "samples of before the step count": Mutation("guard.h", "if (is_in_step && (uint32_t)", "if ((uint32_t)"),
            "the major faults are minor": Mutation("guard.h", "id == g->major_id ?", "id != g->major_id ?"),
            "the warm-up is guarded": Mutation(
                "guard.h", "if (RT_UNLIKELY(index < g->warmup)) return;", "if (0) return;"
            ),
            "the selector stays after the step": Mutation(
                "guard.h",
                "  g->selector = RT_DISPATCH_ALLOW;\n  g->in_step = 0;",
                "  g->in_step = 0;",
            ),
            "only the first call of a step is seen": Mutation("guard_signal.h", "  g->selector = g->on;\n", ""),
            "allowed calls are violations": Mutation("guard_signal.h", "if (!is_allowed && call", "if (call"),
        },
    ),
    "ending_signals": Program(
        (MEMORY, UNDEFINED),
        mutations={
            "nobody is told": Mutation("ending_signals.h", "    rt_ending_set_flags();\n", ""),
            "a place is never free again": Mutation(
                "ending_signals.h",
                "__atomic_store_n(&rt_ending_flags[found].is_taken, 0, __ATOMIC_SEQ_CST);",
                "return;",
            ),
            "a forked child lives on": Mutation("ending_signals.h", "getpid() != rt_ending_pid", "0"),
            "the thread sleeps on": Mutation(
                "ending_signals.h", "write(rt_ending_fd, &one, sizeof one) < 0", "one == 0"
            ),
            "a handler is replaced": Mutation("ending_signals.h", "now.sa_handler != SIG_DFL", "0"),
            "another action is lost": Mutation("ending_signals.h", " && now.sa_sigaction == rt_ending_note", ""),
        },
    ),
    "heap": Program(
        (MEMORY, THREADS, UNDEFINED),
        {"BROKEN_ANSWER": MEMORY},
        {
            "every malloc is glibc's": Mutation("heap.h", "grown >= bytes && grown < bytes + 65536", "bytes"),
        },
    ),
    "hugepage": Program((MEMORY,), {"BROKEN_CHILD": MEMORY, "BROKEN_POPULATE": MEMORY, "BROKEN_COLLAPSE": MEMORY}),
    "killed": Program(
        (UNDEFINED,),
        mutations={
            "an item that is not there yet": Mutation("ring.h", _PUSH + _ITEM_IS_IN, _ITEM_IS_IN + _PUSH),
            "a value that is not there yet": Mutation(
                "shared_latest.h", _PUT + _VALUE_IS_NEW, _VALUE_IS_NEW.replace("}\n", _PUT + "}\n", 1)
            ),
            "who sleeps stays asleep": Mutation("wakes.h", "  rt_store_release(word, 0u);\n", ""),
            "a successor counts anew": Mutation(
                "shared_latest.h", "s->number = RT_SHARED_LATEST_NUMBER(found);", "s->number = 0;"
            ),
        },
    ),
    "latest": Program(
        (MEMORY, THREADS),
        mutations={
            "the new flag stays in the number": Mutation("latest.h", "back = was & ~RT_LATEST_NEW", "back = was"),
            "nothing is ever new": Mutation("latest.h", "latest->back | RT_LATEST_NEW)", "latest->back)"),
            "the reader keeps its place": Mutation("latest.h", "  latest->front = was & ~RT_LATEST_NEW;\n", ""),
        },
    ),
    "latest_model": Program(
        (UNDEFINED,),
        mutations={
            "publishes without a release": Mutation(
                "latest.h",
                "rt_exchange_acq_rel(&latest->between, latest->back",
                "rt_exchange_acquire(&latest->between, latest->back",
            ),
            "reuses a place without an acquire": Mutation(
                "latest.h",
                "rt_exchange_acq_rel(&latest->between, latest->back",
                "rt_exchange_release(&latest->between, latest->back",
            ),
            "gives back without a release": Mutation(
                "latest.h",
                "rt_exchange_acq_rel(&latest->between, latest->front",
                "rt_exchange_acquire(&latest->between, latest->front",
            ),
            "reads without an acquire": Mutation(
                "latest.h",
                "rt_exchange_acq_rel(&latest->between, latest->front",
                "rt_exchange_release(&latest->between, latest->front",
            ),
            "stamps what it has published": Mutation(
                "latest.h",
                "  memcpy(rt_latest_stamp_of(latest, latest->back), &stamp, sizeof stamp);\n"
                "  rt_store_relaxed(&latest->written_at, time);\n"
                "  rt_store_relaxed(&latest->written_at_monotonic, written);\n  rt_latest_publish(latest);\n",
                "  const uint32_t was = latest->back;\n  rt_store_relaxed(&latest->written_at, time);\n"
                "  rt_store_relaxed(&latest->written_at_monotonic, written);\n"
                "  rt_latest_publish(latest);\n"
                "  memcpy(rt_latest_stamp_of(latest, was), &stamp, sizeof stamp);\n",
            ),
            "reads the stamp of what is between": Mutation(
                "latest.h",
                "rt_latest_stamp_of(latest, latest->front)",
                "rt_latest_stamp_of(latest, latest->between & 3)",
            ),
            "one stamp for all": Mutation(
                "latest.h", "(place + 1) * latest->stride", "(place * 0 + 1) * latest->stride"
            ),
            "publishes first": Mutation(
                "latest.h",
                _WRITE,
                "void *b = rt_latest_back(latest);\n  rt_latest_publish(latest);\n  memcpy(b, value, value_bytes);",
            ),
        },
    ),
    "loop": Program(
        (MEMORY, THREADS),
        mutations={
            "a failure is nobody's business": Mutation(
                "loop.h", "      rt_loop_notify_siblings(loop);\n", "      (void)loop;\n"
            ),
            "a hook is asked for ever": Mutation(
                "loop_commands.h",
                "  __atomic_fetch_and(&loop->command, ~RT_COMMAND_SIBLING_FAILED, __ATOMIC_ACQ_REL);\n",
                "",
            ),
            "a hook cannot go on": Mutation("loop_commands.h", "if (rc == RT_CONTINUE) return RT_GO_ON;", ""),
            "a hook cannot fail": Mutation(
                "loop_commands.h", "rc == RT_STOP ? RT_END_NORMAL : RT_END_ON_PEER_FAILURE", "RT_END_NORMAL"
            ),
            "a hook's code is lost": Mutation("loop_commands.h", "loop->end.code = rc == RT_STOP ? 0 : rc;", ""),
            "a hook's word is forgotten": Mutation(
                "loop_commands.h",
                "  rt_loop_send_command(loop, RT_COMMAND_STOP); /*",
                "  /*",
            ),
            "nobody is asked before the release": Mutation(
                "loop_wait.h", "if (rt_loop_handle_commands(loop) != RT_GO_ON) return now;", "if (0) return now;"
            ),
        },
    ),
    "model": Program((UNDEFINED,)),
    "parameters": Program(
        (MEMORY, THREADS),
        mutations={
            "takes what is not sound": Mutation(
                "parameters.h", " || !rt_parameters_is_sound(", " && !rt_parameters_is_sound("
            ),
            "takes any word": Mutation("parameters.h", "if (!rt_parameters_is_state(state) || ", "if ("),
            "checks the first element only": Mutation(
                "parameters.h", "i < item->count; i++) {", "i < item->count && i < 1; i++) {"
            ),
            "not a number is within": Mutation(
                "parameters.h",
                "!((kind)value >= item->low.field && (kind)value <= item->high.field)",
                "(kind)value < item->low.field || (kind)value > item->high.field",
            ),
            "refuses in silence": Mutation("parameters.h", "rt_store_relaxed(&p->refused, p->refused + 1);", ""),
            "overrules the step": Mutation(
                "parameters.h", "item->offset, value, item->bytes) != 0", "item->offset, value, 0) == 0"
            ),
            "shows nothing to others": Mutation(
                "parameters.h",
                "  rt_parameters_store_words(rt_parameters_shown(&p->view), values, p->view.set_bytes);\n",
                "",
            ),
            "copies an overwritten record": Mutation(
                "parameters.h", "now + 1 > p->capacity ? now + 1 - p->capacity : 0", "0"
            ),
            "trusts the sizes of a block": Mutation(
                "parameters.h", "rt_parameters_bytes(set_bytes, text_bytes) != bytes", "0"
            ),
        },
    ),
    "parameters_model": Program(
        (UNDEFINED,),
        mutations={
            "publishes without releasing": Mutation(
                "parameters.h",
                "| RT_PARAMETERS_NEW;\n  } while (!rt_compare_exchange_acq_rel(",
                "| RT_PARAMETERS_NEW;\n  } while (!rt_compare_exchange_acquire(",
            ),
            "takes without acquiring": Mutation("parameters.h", _TAKE_SET, _TAKE_SET.replace("acq_rel", "release")),
            "gives up without releasing": Mutation("parameters.h", _TAKE_SET, _TAKE_SET.replace("acq_rel", "acquire")),
            "publishes first": Mutation(
                "parameters.h",
                "  } while (!rt_compare_exchange_acq_rel(word, &state, next));\n  return 0;",
                "  } while (!rt_compare_exchange_acq_rel(word, &state, next));\n"
                "  memcpy(rt_parameters_place(v, back), place, sizeof(rt_parameters_writer_t) + v->set_bytes);\n"
                "  return 0;",
            ),
            "writes to the place between": Mutation(
                "parameters.h",
                "3 - RT_PARAMETERS_FRONT(state) - RT_PARAMETERS_BETWEEN(state);",
                "RT_PARAMETERS_BETWEEN(state);",
            ),
            "forgets that it was new": Mutation("parameters.h", "front, back) | RT_PARAMETERS_NEW;", "front, back);"),
        },
    ),
    "pool": Program(
        (MEMORY, THREADS),
        {f"BROKEN_{name}": MEMORY for name in ("TAKE", "FREE", "HINT", "RECHECK", "INDEX")} | {"BROKEN_ORDER": THREADS},
        mutations={
            "takes are not counted": Mutation("pool.h", "(was & (was - 1)) + RT_POOL_TAKE", "was & (was - 1)"),
            "one look is enough": Mutation("pool.h", "if (takes == former && takes != UINT64_MAX) return", "return"),
            "goes on after a lost race": Mutation("pool.h", "takes = UINT64_MAX; /*", "continue; /*"),
            "leaves a hint behind": Mutation(
                "pool.h", "if (RT_UNLIKELY(!(uint32_t)next)) rt_pool_clear", "if (0) rt_pool_clear"
            ),
            "meets a hint in vain": Mutation("pool.h", "if (rt_pool_clear_hint(pool, leaf) &&", "if (0 &&"),
            "high water too low": Mutation("pool.h", "&high, index + 1, 1", "&high, index, 1"),
            "forgets who is on the stack": Mutation("pool.h", "  pool->off_stack[index] = 0;\n", ""),
            "forgets who is off it": Mutation("pool.h", "pool->off_stack[rt_pool_index(pool, block)] = 1;", ""),
            "frees the spare one again": Mutation("pool.h", "if (RT_UNLIKELY(spare == (char *)block))", "if (0)"),
            "counts the spare one": Mutation("pool.h", "top < has_spare ? 0 : top - has_spare", "top"),
            "half of an inverse": Mutation("pool.h", "bits < 64; bits *= 2", "bits < 20; bits *= 2"),
            "free without the mutex": Mutation(
                "pool.h",
                "  const int rc = rt_pool_free_single(pool, block);\n  pthread_mutex_unlock(&pool->lock);",
                "  pthread_mutex_unlock(&pool->lock);\n  const int rc = rt_pool_free_single(pool, block);",
            ),
            "no inheritance": Mutation("pool.h", "pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT)", "0"),
            "the checker is blind": Mutation("pool_check.h", "index >= pool->count || pool->off_stack[index])", "0)"),
        },
    ),
    "ring": Program(
        (MEMORY, THREADS),
        mutations={
            "one too many": Mutation("ring.h", "room = ring->capacity - fill;", "room = ring->capacity + 1 - fill;"),
            "forgets what it drops": Mutation("ring.h", "rt_add_relaxed(&ring->dropped, wanted - room);", ""),
            "watches too much": Mutation(
                "ring.h", "ring->watched = tail + below;", "ring->watched = tail + below + 1;"
            ),
            "no high water": Mutation("ring.h", "fill + wanted > rt_load_relaxed(&ring->high_water)", "0"),
            "does not wrap when pushing": Mutation(
                "ring.h", "  memcpy(ring->items, (const char *)items + first * size, (taken - first) * size);\n", ""
            ),
            "does not wrap when popping": Mutation(
                "ring.h", "  memcpy((char *)items + first * size, ring->items, (taken - first) * size);\n", ""
            ),
            "shows more than one piece": Mutation("ring.h", "*count = all < piece ? all : piece;", "*count = all;"),
        },
    ),
    "ring_model": Program(
        (UNDEFINED,),
        mutations={
            "pushes without a release": Mutation(
                "ring.h", "rt_store_release(&ring->tail, tail + 1);", "rt_store_relaxed(&ring->tail, tail + 1);"
            ),
            "pushes many without a release": Mutation(
                "ring.h", "rt_store_release(&ring->tail, tail + taken);", "rt_store_relaxed(&ring->tail, tail + taken);"
            ),
            "pops without a release": Mutation(
                "ring.h", "rt_store_release(&ring->head, head + 1);", "rt_store_relaxed(&ring->head, head + 1);"
            ),
            "pops many without a release": Mutation(
                "ring.h", "rt_store_release(&ring->head, head + taken);", "rt_store_relaxed(&ring->head, head + taken);"
            ),
            "consumes without a release": Mutation(
                "ring.h", "rt_store_release(&ring->head, rt_load", "rt_store_relaxed(&ring->head, rt_load"
            ),
            "pushes without an acquire": Mutation(
                "ring.h",
                "const uint64_t head = rt_load_acquire(&ring->head), high",
                "const uint64_t head = rt_load_relaxed(&ring->head), high",
            ),
            "pops without an acquire": Mutation(
                "ring.h",
                "    const uint64_t tail = rt_load_acquire(&ring->tail);",
                "    const uint64_t tail = rt_load_relaxed(&ring->tail);",
            ),
            "pops many without an acquire": Mutation(
                "ring.h", _SEE_TAIL + ";", _SEE_TAIL.replace("acquire", "relaxed") + ";"
            ),
            "looks without an acquire": Mutation(
                "ring.h", _SEE_TAIL + ", piece", _SEE_TAIL.replace("acquire", "relaxed") + ", piece"
            ),
            "publishes first": Mutation(
                "ring.h",
                "  memcpy((char *)(ring + 1) + (tail & ring->mask) * item_bytes, item, item_bytes);\n"
                "  rt_store_release(&ring->tail, tail + 1);\n",
                "  rt_store_release(&ring->tail, tail + 1);\n"
                "  memcpy((char *)(ring + 1) + (tail & ring->mask) * item_bytes, item, item_bytes);\n",
            ),
            "publishes many first": Mutation(
                "ring.h",
                "  memcpy(ring->items + place * size, items, first * size);\n",
                "  rt_store_release(&ring->tail, tail + taken);\n"
                "  memcpy(ring->items + place * size, items, first * size);\n",
            ),
            "gives back first": Mutation(
                "ring.h",
                "  memcpy(item, (char *)(ring + 1) + (head & ring->mask) * item_bytes, item_bytes);\n",
                "  rt_store_release(&ring->head, head + 1);\n"
                "  memcpy(item, (char *)(ring + 1) + (head & ring->mask) * item_bytes, item_bytes);\n",
            ),
            "gives many back first": Mutation(
                "ring.h",
                "  memcpy(items, ring->items + place * size, first * size);\n",
                "  rt_store_release(&ring->head, head + taken);\n"
                "  memcpy(items, ring->items + place * size, first * size);\n",
            ),
            "one too many": Mutation("ring.h", "room = ring->capacity - fill;", "room = ring->mask + 2 - fill;"),
        },
    ),
    "sampler": Program(
        (MEMORY, THREADS),
        mutations={
            "every cycle": Mutation("sampler.h", "s->every == 1 ? s->copy : rt_sampler_sample_due", "s->copy"),
            "every odd part": Mutation("sampler.h", "(q >> s->twos | (s->twos ? q << (64 - s->twos) : 0))", "q"),
            "an inverse of few bits": Mutation("sampler.h", "i < 5; i++) s->inverse", "i < 3; i++) s->inverse"),
            "one too many": Mutation("sampler.h", "bytes / word > RT_SAMPLER_MAX - s->total", "0"),
            "any order": Mutation("sampler.h", "if (s->counts[i]) return -EINVAL;", ""),
            "an array is its first word": Mutation(
                "sampler.h", "(const char *)address + done", "(const char *)address"
            ),
            "a mixed record is a plain one": Mutation("sampler.h", "s->total == s->words && ", ""),
            "pairs anywhere": Mutation("sampler.h", "n == 2 * s->pairs + 1 &&", "n > 0 &&"),
            "pairs of all words": Mutation("sampler.h", " && s->from[n] == s->from[n - 1] + 8", ""),
            "half of a pair is lost": Mutation(
                "sampler.h", "RT_SAMPLER_COPY(uint64_t, to + 8, (const char *)from + 8);", ""
            ),
            "pairs alone": Mutation("sampler.h", "i < 2 * pairs + others", "i < others"),
            "half of a word is lost": Mutation(
                "sampler.h", "RT_SAMPLER_COPY(uint16_t, to,", "RT_SAMPLER_COPY(uint8_t, to,"
            ),
            "the start is the release": Mutation("sampler.h", "&cycle->start", "&cycle->release"),
        },
    ),
    "schedule": Program(
        (MEMORY,),
        mutations={
            "forgets what it drops": Mutation(
                "schedule.h",
                "s->missed = rt_schedule_periods(s, late);",
                "rt_schedule_move(s, 0, rt_schedule_periods(s, late));",
            ),
            "a shift waits for an overrun": Mutation("schedule.h", "  s->is_unsettled = RT_UNSETTLED;\n", ""),
            "what an overrun left stays": Mutation("schedule.h", " || end > s->release ? RT_UN", " ? RT_UN"),
            "what a shift left stays": Mutation(
                "schedule.h", "s->shift != 0 || end > s->release ?", "end > s->release ?"
            ),
            "never settles": Mutation("schedule.h", "s->shift != 0 || end > s->release ? RT_UNSETTLED : ", ""),
            "drops one too few": Mutation("schedule.h", "+ (ns % s->period > 0)", ""),
            "a fraction is dropped": Mutation("schedule.h", "    s->rest -= s->unit;\n", "    s->rest = 0;\n"),
            "a tie goes up": Mutation("schedule.h", "unit % 2 == 0 ? 0 : -1", "unit % 2 == 0 ? -1 : -1"),
            "a tie goes down": Mutation("schedule.h", " && s->release % 2) {", ") {"),
            "a fraction begins anew": Mutation(
                "schedule.h", "s->rest += s->part;", "s->rest = rt_schedule_half(s) + s->part;"
            ),
            "a tie is before the end": Mutation(
                "schedule.h", "< ns ? periods + 1 : periods", "< ns ? periods : periods"
            ),
            "a step is missed": Mutation(
                "schedule.h", "rt_schedule_move(s, 0, rt_schedule_periods(s, step))", "rt_schedule_move(s, step, 0)"
            ),
            "forgets a move": Mutation("schedule.h", "s->moved += late;", ""),
            "bursts for ever": Mutation("schedule.h", "    s->burst += 1;\n", ""),
            "counts overruns for ever": Mutation("schedule.h", "  s->overruns_in_row = 0;\n", ""),
            "aligns a multiple": Mutation("schedule.h", "(align - origin % align) % align", "align - origin % align"),
        },
    ),
    "shared_latest": Program(
        (MEMORY, THREADS),
        mutations={
            "any place is one": Mutation(
                "shared_latest.h", "return place < s->readers + 2 ? place : 0;", "return place + 0 * s->readers;"
            ),
            "nothing is new": Mutation(
                "shared_latest.h", "  return is_new;\n}\n\n/* Read", "  return 0 * is_new;\n}\n\n/* Read"
            ),
            "the stamp of another place": Mutation(
                "shared_latest.h", "(s->front + s->stride - sizeof", "(s->places + s->stride - sizeof"
            ),
            "a successor does not know the number": Mutation(
                "shared_latest.h", "s->number = RT_SHARED_LATEST_NUMBER(found);", "s->number = found;"
            ),
            "a place too few": Mutation(
                "shared_latest.h", "(readers + 2) * rt_latest_stride", "(readers + 1) * rt_latest_stride"
            ),
            "a closed side writes": Mutation("shared_latest.h", "  if (RT_UNLIKELY(!s->block)) return;\n" + _PUT, _PUT),
        },
    ),
    "shared_latest_model": Program(
        (UNDEFINED,),
        mutations={
            "a reader may not see what is newest": Mutation(
                "shared_latest.h",
                "word = rt_load_seq_cst(&s->block->newest), wanted",
                "word = rt_load_acquire(&s->block->newest), wanted",
            ),
            "the writer may not see what is wanted": Mutation(
                "shared_latest.h", "uint64_t is = rt_load_seq_cst(held);", "uint64_t is = rt_load_acquire(held);"
            ),
            "the writer gives nothing": Mutation(
                "shared_latest.h",
                "&& rt_compare_exchange_seq_cst(held, &is, word)) is = word;",
                "&& word == 0) is = word;",
            ),
            "a held place is free": Mutation(
                "shared_latest.h", "    used |= UINT64_C(1) << RT_SHARED_LATEST_PLACE(is);\n", ""
            ),
            "nothing is wanted": Mutation(
                "shared_latest.h", "  (void)rt_exchange_seq_cst(s->held, RT_SHARED_LATEST_WANTED);\n", ""
            ),
            "the reader takes what it was not given": Mutation(
                "shared_latest.h", "&wanted, word)) word = wanted;", "&wanted, word)) wanted = word;"
            ),
            "publishes first": Mutation(
                "shared_latest.h", _PUT + _VALUE_IS_NEW, _VALUE_IS_NEW.replace("}\n", _PUT + "}\n", 1)
            ),
            "a successor does not look": Mutation(
                "shared_latest.h",
                _LOOK,
                _LOOK.replace(
                    "rt_shared_latest_find_back(s, word)", "(RT_SHARED_LATEST_PLACE(word) + 1) % (s->readers + 2)"
                ),
            ),
            "a successor writes over the newest": Mutation(
                "shared_latest.h",
                _LOOK,
                _LOOK.replace("rt_shared_latest_find_back(s, word)", "RT_SHARED_LATEST_PLACE(word)"),
            ),
        },
    ),
    "signals": Program(
        (MEMORY, THREADS),
        mutations={
            "shows the record before it is there": Mutation(
                "signals.h",
                "  char *const record = ring->items",
                "  rt_store_release(&ring->tail, tail + 1);\n  char *const record = ring->items",
            ),
            "every cycle": Mutation("signals.h", "cycle->index % s->every", "0"),
            "one too many": Mutation("signals.h", "if (s->count == RT_SIGNALS_MAX) return -ENOSPC;", ""),
            "all are long": Mutation("signals.h", "switch (signal->bytes) {", "switch (8) {"),
            "gaps": Mutation("signals.h", "s->record_bytes += bytes;", "s->record_bytes += 8;"),
            "the start is the release": Mutation("signals.h", "&cycle->start", "&cycle->release"),
        },
    ),
    "simulate": Program(
        (MEMORY,),
        mutations={
            "late cycles sleep": Mutation("simulate.h", "if (target > now) {", "if (target > now - 2 * release) {"),
            "no order of time": Mutation("simulate.h", "[i].start < next->start", "[i].start > next->start"),
            "the last goes first": Mutation("simulate.h", "[i].start < next->start", "[i].start <= next->start"),
            "the margin is not used": Mutation("simulate.h", "release - loop->spin.margin;", "release;"),
            "nothing is learnt": Mutation("simulate.h", "rt_spin_learn(&loop->spin, latency);", "{}"),
            "repeats all but the first": Mutation("simulate.h", "model->at = 0;", "model->at = 1;"),
            "time for ever": Mutation("simulate.h", "now > RT_RELEASE_MAX || release > RT_RELEASE_MAX", "release < 0"),
            "a stop is not seen": Mutation("simulate.h", "if (command & RT_COMMAND_STOP) return RT_END_NORMAL;", ""),
            "a recording is modelled": Mutation("simulate.h", "if (s->is_recorded) {", "if (0) {"),
            "late is not counted": Mutation("simulate.h", "loop->is_late = now > release;", "loop->is_late = 0;"),
            "dt stays": Mutation("loop_cycle.h", "  cycle->dt = rt_loop_next_dt(loop);\n", ""),
            "missed stays": Mutation("loop_cycle.h", "  cycle->missed = schedule->missed;\n", ""),
            "late cycles are not counted": Mutation(
                "loop_cycle.h", "record, loop->is_late, overran", "record, 0, overran"
            ),
            "the usage begins never": Mutation("loop_cycle.h", "cycle->index + 1 == loop->limits.warmup", "0"),
            "the first cycle is a plain one": Mutation(
                "loop_state.h", "  loop->schedule.is_unsettled = RT_UNSETTLED;\n}", "}"
            ),
            "the mode stays": Mutation("simulate.h", "rt_thread_set_float_control(control_)", "(void)control_"),
            "runs on after a failed model": Mutation(
                "simulate.h", "if (RT_UNLIKELY(latency < 0)) return RT_END_MODEL;", ""
            ),
        },
    ),
    "spin": Program(
        (MEMORY,),
        mutations={
            "no budget": Mutation("spin.h", "margin < s->cap ? margin : s->cap", "margin"),
            "never grows": Mutation("spin.h", "if (lateness > s->second) {", "if (0) {"),
            "grows late": Mutation("spin.h", "s->second > s->previous ? s->second : s->previous", "s->previous"),
            "never shrinks": Mutation("spin.h", "s->previous = s->second;", ""),
            "forgets at once": Mutation("spin.h", "s->second > s->previous ? s->second : s->previous", "s->second"),
            "one hiccup counts": Mutation("spin.h", "      s->second = s->worst;", "      s->second = lateness;"),
            "one window for ever": Mutation("spin.h", "    s->count = 0;\n", "    s->count = s->window;\n"),
        },
    ),
    "stack": Program(
        (UNDEFINED, MEMORY),
        mutations={
            "a fork wipes all of it": Mutation(
                "stack.h", "kept - wiped, MADV_WIPEONFORK", "stack->mapping_bytes, MADV_WIPEONFORK"
            ),
            "a fork wipes nothing": Mutation("stack.h", "kept - wiped, MADV_WIPEONFORK", "0, MADV_WIPEONFORK"),
            "frames share a page with what is copied": Mutation("stack.h", "page <= stack->bytes / 8", "0"),
        },
    ),
    "swap": Program(
        (MEMORY, THREADS),
        mutations={
            "the command is not for swaps": Mutation(
                "loop_commands.h", "  if (command & RT_COMMAND_SWAP) rt_loop_plan_swap(loop);\n", ""
            ),
            "the fast path goes on": Mutation(
                "loop_commands.h", "  loop->is_swap_due = 1;\n  loop->plain_until = INT64_MIN;\n", ""
            ),
            "the former step goes on all the same": Mutation(
                "loop_cycle.h", "step(loop->self, cycle)", "step(self, cycle)"
            ),
            "the first step leaves": Mutation("loop.h", "leave(loop->self);", "leave(self);"),
            "a refusal is ignored": Mutation("loop_cycle.h", "  if (swap->code) {", "  if (0) {"),
            "a stop is overtaken": Mutation(
                "loop_cycle.h", "if (rt_load_acquire(&loop->command) & RT_COMMAND_STOP || !", "if (!"
            ),
            "the cycle of the past": Mutation("loop_cycle.h", "  next.release = loop->schedule.release;\n", ""),
            "the watchdog has the former step": Mutation(
                "loop_cycle.h", "  rt_store_release(&loop->hooks.self, self); /* the watchdog's */\n", ""
            ),
        },
    ),
    "swap_model": Program(
        (UNDEFINED,),
        mutations={
            "asks without a release": Mutation(
                "swap.h",
                "rt_store_release(&s->state, (uint64_t)RT_SWAP_ASKED)",
                "rt_store_relaxed(&s->state, (uint64_t)RT_SWAP_ASKED)",
            ),
            "answers without a release": Mutation(
                "swap.h", "rt_store_release(&s->state, state)", "rt_store_relaxed(&s->state, state)"
            ),
            "takes without an acquire": Mutation("swap.h", _TAKE_STEP, _TAKE_STEP.replace("acq_rel", "release")),
            "takes what may be withdrawn": Mutation(
                "swap.h",
                _TAKE_STEP,
                "if (rt_load_acquire(&s->state) != asked) return 0;\n"
                "  rt_store_release(&s->state, (uint64_t)RT_SWAP_TAKEN);\n  return 1",
            ),
            "withdraws what may be taken": Mutation(
                "swap.h",
                "return rt_compare_exchange_acq_rel(&s->state, &asked, (uint64_t)RT_SWAP_NONE)",
                "(void)asked;\n  rt_store_release(&s->state, (uint64_t)RT_SWAP_NONE);\n  return 1",
            ),
            "reads an answer without an acquire": Mutation(
                "swap.h", "return rt_load_acquire(&s->state)", "return rt_load_relaxed(&s->state)"
            ),
        },
    ),
    "telemetry": Program(
        (MEMORY, THREADS),
        {"BROKEN_SEQLOCK": MEMORY},
        {
            "no interval": Mutation(
                "telemetry.h",
                "  rt_bank_record(bank, RT_INTERVAL, record.start - t->previous_start);\n  t->previous_start",
                "  t->previous_start",
            ),
            "an interval from long ago": Mutation("telemetry.h", "  t->previous_start = record.start;\n  rt_", "  rt_"),
            "no late ones": Mutation("telemetry.h", "(is_late != 0)", "0 * is_late"),
        },
    ),
    "telemetry_view": Program(
        (MEMORY,),
        mutations={
            "any magic": Mutation("telemetry_view.h", "return RT_VIEW_MAGIC;", ";"),
            "any version": Mutation(
                "telemetry_view.h", "if (view->version != RT_TELEMETRY_VERSION) return", "if (0) return"
            ),
            "any header": Mutation("telemetry_view.h", "!= sizeof *t) return", "== 0) return"),
            "half a header": Mutation("telemetry_view.h", "if (bytes < sizeof *t) return", "if (0) return"),
            "less than a version": Mutation(
                "telemetry_view.h", "if (bytes < offsetof(rt_telemetry_t, header_bytes)) return", "if (0) return"
            ),
            "any capacity": Mutation("telemetry_view.h", "(capacity & (capacity - 1)) ||", ""),
            "no end of records": Mutation("telemetry_view.h", "capacity > RT_VIEW_MAX_RECORDS ||", ""),
            "keeps more than it has": Mutation("telemetry_view.h", " || keep > capacity", ""),
            "no end of text": Mutation("telemetry_view.h", "text > RT_VIEW_MAX_TEXT", "0"),
            "any file": Mutation("telemetry_view.h", "total != bytes || ", ""),
            "any total": Mutation("telemetry_view.h", " || rt_load_relaxed(&t->total_bytes) != total", ""),
            "believes the text": Mutation("telemetry_view.h", "if (bytes > view->text_capacity)", "if (0)"),
            "looks twice": Mutation(
                "telemetry_view.h",
                "view->record_keep < most ? view->record_keep : most",
                "view->block->record_keep < most ? view->block->record_keep : most",
            ),
            "counts backwards": Mutation("telemetry_view.h", "last > first ? last - first : 0", "last - first"),
            "sums wrap around": Mutation("telemetry_view.h", "if (h->counts[k] > left) return 0;", ""),
            "misses a few": Mutation("telemetry_view.h", "left != 0 && i != RT_INTERVAL && i != RT_WAITING", "0"),
            "misses intervals": Mutation(
                "telemetry_view.h", "i != RT_WAITING && left > 1 + bank->counters.clock_steps", "0"
            ),
            "any maximum": Mutation("telemetry_view.h", "h->counts[rt_histogram_bin(h->max)] == 0", "0"),
            "empty and yet not": Mutation("telemetry_view.h", "left != cycles - warmup", "0"),
        },
    ),
    "wakes": Program(
        (MEMORY, THREADS),
        mutations={
            "wakes in the step": Mutation(
                "wakes.h", "if (rt_load_relaxed(&wakers->loops[i].thread) != self) continue;", "continue;"
            ),
            "all of them in a cycle": Mutation(
                "loop_cycle.h",
                "  rt_wakes_run(&loop->wakes);\n",
                "  while (loop->wakes.count) rt_wakes_run(&loop->wakes);\n",
            ),
            "nobody looks after the cycle": Mutation("wakes.h", "    *wakes->plain_until = INT64_MIN;\n", ""),
            "notes a word twice": Mutation("wakes.h", "if (wakes->words[k] == word) return;", ""),
            "the last first": Mutation(
                "wakes.h",
                "uint32_t *const word = wakes->words[0];",
                "uint32_t *const word = wakes->words[wakes->count - 1];",
            ),
            "wakes for ever": Mutation("wakes.h", "  rt_store_release(word, 0u);\n", ""),
            "a loop is never forgotten": Mutation("loop.h", "  if (loop->wakers) rt_wakers_leave(loop->wakers);\n", ""),
            "forgets whom it has not woken": Mutation(
                "loop.h", "  while (loop->wakes.count) rt_wakes_run(&loop->wakes);\n", ""
            ),
        },
    ),
    "watchdog": Program(
        (MEMORY, THREADS),
        mutations={
            "spins below a filter": Mutation("watchdog.h", "if (RT_UNLIKELY(rc) && now < planned) {", "if (0) {"),
            "a loop in enter is stuck": Mutation(
                "watchdog.h", "if (rt_load_acquire(&loop->phase) != RT_PHASE_BEGIN) {", "if (0) {"
            ),
            "the first release is not waited for": Mutation("watchdog.h", "ahead = cycles == 0 ?", "ahead = 0 ?"),
            "a clock set back is an excuse": Mutation("watchdog.h", "ahead = cycles == 0 ?", "ahead = 1 ?"),
            "a cycle is not seen": Mutation("watchdog.h", "cycles != w->cycles ||", ""),
            "a shift is a hang": Mutation(
                "watchdog.h", "shifted > w->shifted ? shifted - w->shifted : 0", "0 * (shifted - w->shifted)"
            ),
            "a shift back is a hang": Mutation(
                "watchdog.h", "shifted > w->shifted ? shifted - w->shifted : 0", "shifted - w->shifted"
            ),
            "a reset is a shift": Mutation("watchdog.h", "      w->shifted = shifted;\n    }", "    }"),
            "cycles before a reset are forgotten": Mutation("watchdog.h", "w->before += ", "w->before = 0 * "),
            "counts from the look before the release": Mutation("watchdog.h", "+ (ahead > 0 ? ahead : 0)", ""),
            "counts from before the grid was seen": Mutation("watchdog.h", "|| w->since == INT64_MAX", ""),
            "forgives who has not begun": Mutation("watchdog.h", "if (dog->loops[i].since != INT64_MAX)", ""),
            "acts early": Mutation("watchdog.h", ">= w->limit;", ">= w->limit - w->limit / 8;"),
            "acts late": Mutation("watchdog.h", ">= w->limit;", ">= w->limit + w->limit / 8;"),
            "a machine that stood still is a hang": Mutation(
                "watchdog.h", " dog->loops[i].since += late;", " continue;"
            ),
            "all that was slept through is looked at": Mutation(
                "watchdog.h", "planned + late / dog->interval * dog->interval", "planned"
            ),
            "the others are not told": Mutation("watchdog.h", "  rt_loop_notify_siblings(loop);\n", ""),
            "the loop goes on": Mutation("watchdog.h", "  rt_loop_send_command(loop, RT_COMMAND_STOP);\n", ""),
            "nobody is made safe": Mutation(
                "watchdog.h", "loop->hooks.safe ? loop->hooks.safe(rt_load_acquire(&loop->hooks.self)) : 0", "0"
            ),
            "it never ends": Mutation("watchdog.h", "      is_left = 1;\n    }", "    }\n    is_left = 1;"),
            "looks at what has ended": Mutation(
                "watch.h",
                "return __atomic_compare_exchange_n(word, &on,",
                "return 1 | __atomic_compare_exchange_n(word, &on,",
            ),
            "leaves under its look": Mutation(
                "watch.h",
                "if (was != RT_WATCH_ON) {",
                "if (was == RT_WATCH_LOOKING) return 0;\n    if (was != RT_WATCH_ON) {",
            ),
            "leaves while it is made safe": Mutation(
                "watch.h",
                "    if (was != RT_WATCH_ON) {",
                "    if (was == RT_WATCH_TRIPPED) return 1;\n    if (was != RT_WATCH_ON) {",
            ),
            "the step's word goes before": Mutation(
                "loop.h", "loop->end.reason = RT_END_WATCHDOG;", "loop->end.reason = RT_END_NORMAL;"
            ),
        },
    ),
    "wait": Program(
        (MEMORY,),
        mutations={
            "a signal fails the loop": Mutation(
                "loop_wait.h", "if (RT_UNLIKELY(rc) && rc != -EINTR) return", "if (rc) return"
            ),
            "a signal ends the sleep": Mutation(
                "loop_wait.h",
                "if (RT_UNLIKELY(rc) && rc != -EINTR) return rc;",
                "if (rc == -EINTR) break; else if (rc) return rc;",
            ),
            "a signal moves the deadline": Mutation(
                "loop_wait.h",
                "if (RT_UNLIKELY(rc) && rc != -EINTR) return rc;",
                "if (rc == -EINTR) now += 1000; else if (rc) return rc;",
            ),
            "errors are ignored": Mutation(
                "loop_wait.h", "if (RT_UNLIKELY(rc) && rc != -EINTR) return rc;", "if (now < 0) return rc;"
            ),
            "the error is lost": Mutation(
                "loop_cycle.h",
                _WAIT_FAILS + "rt_loop_end_with(loop, RT_END_CLOCK, (int)now);",
                _WAIT_FAILS + "RT_END_CLOCK;",
            ),
            "always sleeps": Mutation(
                "loop_wait.h", "if (target <= now) break;", "if (rc <= 0 && target <= now) break;"
            ),
            "no slices": Mutation(
                "loop_wait.h", "(uint64_t)release - (uint64_t)*now - 1 < (uint64_t)RT_SLICE_NS", "release > *now"
            ),
            "the margin is not used": Mutation(
                "loop_cycle.h", "loop->has_own_wait || loop->spin.margin", "loop->has_own_wait"
            ),
            "its own wait is not used": Mutation(
                "loop_cycle.h", "loop->has_own_wait || loop->spin.margin", "loop->spin.margin"
            ),
            "late ones are not counted": Mutation("loop_wait.h", "    loop->is_late = *now > release;\n", ""),
            "once late, always late": Mutation("loop_cycle.h", "is_warmup);\n  loop->is_late = 0;\n", "is_warmup);\n"),
            "a reset keeps the bank": Mutation(
                "loop_state.h",
                "  loop->bank = rt_telemetry_active_bank(loop->telemetry);\n  loop->sch",
                "  if (!loop->bank) loop->bank = rt_telemetry_active_bank(loop->telemetry);\n  loop->sch",
            ),
            "an interval with the run before": Mutation(
                "loop_state.h", "  loop->schedule.is_unsettled = RT_UNSETTLED;\n}", "}"
            ),
            "an interval with the warm-up": Mutation(
                "loop_cycle.h",
                "  if (!loop->telemetry->has_previous)\n",
                "  if (0)\n",
            ),
            "nothing is learnt": Mutation("loop_wait.h", "rt_spin_learn(&loop->spin, now - target);", ""),
            "starts early": Mutation(
                "loop_wait.h", "RT_UNLIKELY(now < release); reads++", "RT_UNLIKELY(now < target); reads++"
            ),
            "a reset forgets the missed": Mutation(
                "loop_commands.h",
                "  rt_telemetry_swap_banks(loop->telemetry, loop->schedule.release);\n",
                "  loop->telemetry->active ^= 1u;\n  rt_bank_clear(&loop->telemetry->banks[0]);\n",
            ),
        },
    ),
}

MUTATIONS = [(name, fault) for name in PROGRAMS for fault in PROGRAMS[name].mutations]


@pytest.fixture(params=["gcc", "clang"], scope="session")
def compiler(request) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


def compile_c(compiler: str, source: Path, target: Path, *options: str, include: Path = INCLUDE) -> None:
    command = [compiler, *DIALECT, *WARNINGS, f"-I{include}", *options, str(source), "-o", str(target)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr}"


def run(program: Path) -> subprocess.CompletedProcess[str]:
    # At the end of a thread the sanitizers unmap its alternate signal stack, which here belongs to the loop.
    options = {
        "ASAN_OPTIONS": "detect_leaks=1:use_sigaltstack=0",
        "UBSAN_OPTIONS": "halt_on_error=1",
        "TSAN_OPTIONS": "halt_on_error=1:use_sigaltstack=0",
    }

    def execute(*command: str) -> subprocess.CompletedProcess[str]:
        # A program that a sanitizer has halted half-way may have children, and may ignore everything but SIGKILL.
        with subprocess.Popen(
            command, env=os.environ | options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        ) as process:  # fmt: skip
            try:
                out, err = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                err += "\nno end within a minute"
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    result = execute(str(program))
    # Older TSans do not know the address layout of newer kernels; a fixed one they know.
    if "unexpected memory mapping" in result.stderr and shutil.which("setarch"):
        result = execute("setarch", "--addr-no-randomize", str(program))
        if "unexpected memory mapping" in result.stderr or "failed to set personality" in result.stderr:
            pytest.skip(f"this compiler's TSan does not run on this kernel: {result.stderr.strip()}")
    return result


#: For programs that must fail: compiled in half the time, and no more than it takes to notice a fault.
BRIEF = (
    "-O0",
    "-Wno-error",
    "-DPATIENCE=20",  # a loop that a mutation keeps from its end is given up after 2 s
    "-DROUNDS=2000",  # of damage at random
)


def build(name: str, compiler: str, sanitizer: str, folder: Path, *options: str, include: Path = INCLUDE) -> Path:
    program = folder / name
    sanitize = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    if sanitizer == THREADS and compiler == "gcc":
        sanitize.append("-Wno-tsan")  # "fences are not supported": what they order is atomic here, so none is needed
    compile_c(compiler, HERE / f"test_{name}.c", program, "-O1", "-g", "-pthread", *sanitize, *options, include=include)
    return program


@pytest.mark.parametrize(("name", "sanitizer"), [(name, s) for name in PROGRAMS for s in PROGRAMS[name].sanitizers])
def test_header(name, sanitizer, compiler, tmp_path):
    result = run(build(name, compiler, sanitizer, tmp_path))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("name", "fault"), [(name, fault) for name in PROGRAMS for fault in PROGRAMS[name].faults])
def test_known_wrong_variant_fails(name, fault, compiler, tmp_path):
    sanitizer = PROGRAMS[name].faults[fault]
    result = run(build(name, compiler, sanitizer, tmp_path, *BRIEF, f"-D{fault}"))
    assert result.returncode != 0, "the known fault went unnoticed"
    assert any(word in result.stderr for word in ("check failed", "Sanitizer", "runtime error")), result.stderr


@pytest.mark.skipif(
    os.environ.get("RTLOOP_MUTATIONS") == "0", reason="left out by RTLOOP_MUTATIONS=0; make native runs them"
)
@pytest.mark.parametrize(("name", "fault"), MUTATIONS)
def test_mutation_of_a_header_fails(name, fault, tmp_path):
    compiler = shutil.which("gcc") or shutil.which("clang") or pytest.skip("neither gcc nor clang is installed")
    include = PROGRAMS[name].mutations[fault].write(tmp_path)
    result = run(build(name, compiler, PROGRAMS[name].sanitizers[0], tmp_path, *BRIEF, include=include))
    assert result.returncode != 0, "the known fault went unnoticed"
    assert any(word in result.stderr for word in ("check failed", "Sanitizer", "runtime error")), result.stderr


@pytest.mark.parametrize("header", HEADERS, ids=lambda path: path.name)
def test_header_stands_alone(header, compiler, tmp_path):
    """It compiles by itself, twice in one file, and unused."""
    source = tmp_path / "alone.c"
    source.write_text(f'#include "rtloop/{header.name}"\n' * 2 + "int main(void) { return 0; }\n")
    compile_c(compiler, source, tmp_path / "alone", "-O2", "-pthread")


@pytest.mark.parametrize("level", ["-O2", "-O3"])
def test_no_optimizer_leaves_out_the_touch_of_a_page(level, compiler, tmp_path):
    """It may omit writing back what was read. Then the first write of a cycle is a page fault."""
    compile_c(compiler, HERE / "touched_pages.c", tmp_path / "touched", level)
    result = run(tmp_path / "touched")
    assert result.returncode == 0, result.stderr


def test_every_program_is_listed():
    assert {path.stem.removeprefix("test_") for path in HERE.glob("test_*.c")} == set(PROGRAMS)
