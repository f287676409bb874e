"""Exchanges between threads and processes: rings, latest values, broadcasts, pools, wakes, and C11's memory model."""

from __future__ import annotations

from native_programs import MEMORY, THREADS, UNDEFINED, HeaderTests, Mutation, Program

# Pieces of headers that several mutations change.
_WRITE = "memcpy(rt_latest_back(latest), value, value_bytes);\n  rt_latest_publish(latest);"
_PUSH = "  memcpy((char *)(ring + 1) + (tail & ring->mask) * item_bytes, item, item_bytes);\n"
_ITEM_IS_IN = "  rt_store_release(&ring->tail, tail + 1);\n"
_PUT = "  memcpy(rt_shared_latest_back(s), value, s->value_bytes);\n"
_VALUE_IS_NEW = "  rt_shared_latest_publish(s);\n}\n\n/* Write a value and stamp"
_SET = (
    "  rt_parameters_store_words((uint64_t *)(void *)rt_parameters_place(v, back), place,\n"
    "                            sizeof(rt_parameters_writer_t) + v->set_bytes);\n"
)
_SET_IS_NEW = """  do {
    if (tries-- == 0) return -EAGAIN;
    const uint32_t front = rt_parameters_is_state(state) ? RT_PARAMETERS_FRONT(state) : 2;
    next = RT_PARAMETERS_STATE(RT_PARAMETERS_NUMBER(state) + 1, front, back) | RT_PARAMETERS_NEW;
  } while (!rt_compare_exchange_acq_rel(word, &state, next));
"""
_LOOK = "s->back = rt_shared_latest_find_back(s, word);\n}\n\n/* Take the side of reader"
_SEE_TAIL = "ring->tail_seen = rt_load_acquire(&ring->tail);\n  const uint64_t all = ring->tail_seen - head"

PROGRAMS = {
    "broadcast": Program(
        (MEMORY, THREADS),
        {"BROKEN_PUBLISH": THREADS},
        {
            "a place too few": Mutation("broadcast.h", "capacity < 2 ? 2 :", "capacity < 2 ? 1 :"),
            "goes on behind the end": Mutation(
                "broadcast.h", "if (RT_UNLIKELY(writer->next == writer->end)) writer->next = writer->records;", ""
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
                "rt_add_release(&(writer)->block->written, 1);",
                "rt_store_relaxed(&(writer)->block->written, (writer)->block->written + 1);",
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
    "killed": Program(
        (UNDEFINED,),
        mutations={
            "an item that is not there yet": Mutation("ring.h", _PUSH + _ITEM_IS_IN, _ITEM_IS_IN + _PUSH),
            "a value that is not there yet": Mutation(
                "shared_latest.h", _PUT + _VALUE_IS_NEW, _VALUE_IS_NEW.replace("}\n", _PUT + "}\n", 1)
            ),
            "who sleeps stays asleep": Mutation("wakes.h", "  rt_store_release(word, 0u);\n", ""),
            "a set that is not there yet": Mutation("parameters.h", _SET + _SET_IS_NEW, _SET_IS_NEW + _SET),
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
    "model": Program((UNDEFINED,)),
    "pool": Program(
        (MEMORY, THREADS),
        {f"BROKEN_{name}": MEMORY for name in ("TAKE", "FREE", "HINT", "RECHECK", "INDEX")} | {"BROKEN_ORDER": THREADS},
        mutations={
            "takes are not counted": Mutation("pool.h", "(*was & (*was - 1)) + RT_POOL_TAKE", "*was & (*was - 1)"),
            "one look is enough": Mutation("pool.h", "if (takes == former && takes != UINT64_MAX) return", "return"),
            "goes on after a lost race": Mutation("pool.h", "takes = UINT64_MAX; /*", "continue; /*"),
            "leaves a hint behind": Mutation(
                "pool.h", "if (RT_UNLIKELY(!(uint32_t)next)) rt_pool_clear", "if (0) rt_pool_clear"
            ),
            "meets a hint in vain": Mutation("pool.h", "if (rt_pool_clear_hint(pool, leaf) &&", "if (0 &&"),
            "high water too low": Mutation("pool.h", "&high, index + 1, 1", "&high, index, 1"),
            "takes a block that is not there": Mutation("pool.h", "RT_LIKELY((uint32_t)was)", "1"),
            "does not search": Mutation("pool.h", "  return rt_pool_search(pool);", "  return NULL;"),
            "leaves a taken block on the stack": Mutation("pool.h", "  rt_pool_stack(pool)[depth] = NULL;\n", ""),
            "forgets the place on the stack": Mutation("pool.h", "  pool->places[index] = depth;\n", ""),
            "frees what was never taken": Mutation(
                "pool.h", "index >= rt_load_relaxed(&pool->high_water)", "index >= pool->count"
            ),
            "frees the spare one again": Mutation(
                "pool.h", "if (recent_is == RT_POOL_SPARE && (char *)block == pool->recent) return", "if (0) return"
            ),
            "frees no block": Mutation("pool.h", "recent_is == RT_POOL_LENT && (char *)block", "(char *)block"),
            "loses the spare one": Mutation("pool.h", "if (recent_is != RT_POOL_SPARE) {", "{"),
            "counts the spare one": Mutation(
                "pool.h", "rt_load_relaxed(&pool->depth) + is_spare", "rt_load_relaxed(&pool->depth)"
            ),
            "half of an inverse": Mutation("pool.h", "bits < 64; bits *= 2", "bits < 20; bits *= 2"),
            "free without the mutex": Mutation(
                "pool.h",
                "  const int rc = rt_pool_free_single(pool, block);\n  pthread_mutex_unlock(&pool->lock);",
                "  pthread_mutex_unlock(&pool->lock);\n  const int rc = rt_pool_free_single(pool, block);",
            ),
            "no inheritance": Mutation("pool.h", "pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT)", "0"),
            "the checker is blind": Mutation("pool_check.h", "index >= high || pool->places[index] != i", "0"),
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
                "ring.h", "rt_store_release(&ring->head, next);", "rt_store_relaxed(&ring->head, next);"
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
}


class TestExchanges(HeaderTests):
    """Each program of the table above: sound, and failing with each of its known faults."""
