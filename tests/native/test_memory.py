"""Memory of a step and what watches it: stacks, the heap, huge pages, the guard."""

from __future__ import annotations

from native_programs import MEMORY, THREADS, UNDEFINED, HeaderTests, Mutation, Program

PROGRAMS = {
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
    "heap": Program(
        (MEMORY, THREADS, UNDEFINED),
        {"BROKEN_ANSWER": MEMORY},
        {
            "every malloc is glibc's": Mutation("heap.h", "grown >= bytes && grown < bytes + 65536", "bytes"),
        },
    ),
    "hugepage": Program((MEMORY,), {"BROKEN_CHILD": MEMORY, "BROKEN_POPULATE": MEMORY, "BROKEN_COLLAPSE": MEMORY}),
    "memory": Program(
        (UNDEFINED,),  # ASan turns mlock(2) into nothing
        mutations={
            "a locked page is not tried": Mutation(
                "memory.h", "return mlock(p, page) || rt_memory_is_locked(p) == 1;", "return 1;"
            ),
            "an unlocked page is not tried": Mutation(
                "memory.h", "if (munlock(p, page) || rt_memory_is_locked(p) != 0) return 0;", ""
            ),
            "a process that may not lock cannot tell": Mutation("memory.h", "return mlock(p, page) ||", "return"),
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
}


class TestMemory(HeaderTests):
    """Each program of the table above: sound, and failing with each of its known faults."""
