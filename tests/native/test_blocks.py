"""Blocks of a running loop: telemetry and its histograms, parameters, signals, and the change of its step."""

from __future__ import annotations

from native_programs import MEMORY, THREADS, UNDEFINED, HeaderTests, Mutation, Program

# Pieces of headers that several mutations change.
_TAKE_SET = "} while (!rt_compare_exchange_acq_rel(word, &state, next));\n  const uint64_t place_bytes"
_TAKE_STEP = "return rt_compare_exchange_acq_rel(&s->state, &asked, (uint64_t)RT_SWAP_TAKEN)"

PROGRAMS = {
    "histogram": Program(
        (MEMORY, THREADS),
        {"BROKEN_OCTAVE": MEMORY, "BROKEN_COUNT": MEMORY, "BROKEN_RANGE": MEMORY, "BROKEN_STORE": THREADS},
        {
            "one too many is within": Mutation("histogram.h", " < h->span;", " <= h->span;"),
            "negative ones are within": Mutation("histogram.h", "h->min > 0 ? h->min : 0", "h->min"),
            "0 has the counter of 1": Mutation("histogram.h", "bits - before : 0", "bits - before : 1"),
            "a short one has another bin": Mutation(
                "histogram.h", ">> (octaves - octave)", ">> (octaves - 1 - octave)"
            ),
            "a bin has one counter": Mutation("histogram.h", "_counter(i)] += h->counts", "_counter(i)] = h->counts"),
            "all are within": Mutation("histogram.h", "(uint64_t)h->max >> RT_HISTOGRAM_SQUARE_BITS == 0", "1"),
            "beyond the end is within": Mutation(
                "histogram.h", "(uint64_t)h->max >> RT_HISTOGRAM_SQUARE_BITS == 0", "h->max >= 0"
            ),
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
            "a mixed record is a plain one": Mutation("sampler.h", "if (s->total == s->words) {", "{"),
            "the first of a row is lost": Mutation("sampler.h", "  if (words % 2) {", "  if (0) {"),
            "a function of more words": Mutation("sampler.h", "others - RT_SAMPLER_SMALL - 1", "others - 8"),
            "pairs anywhere": Mutation("sampler.h", "n == 2 * s->pairs + 1 &&", "n > 0 &&"),
            "pairs of all words": Mutation("sampler.h", " && s->from[n] == s->from[n - 1] + 8", ""),
            "half of a pair is lost": Mutation(
                "sampler.h", "RT_SAMPLER_COPY(uint64_t, to + 8, (const char *)from + 8);", ""
            ),
            "pairs alone": Mutation("sampler.h", "words = 2 * pairs + others", "words = 2 * pairs"),
            "the last of an odd number is lost": Mutation("sampler.h", "if (done < words) ", "if (0) "),
            "a word twice": Mutation("sampler.h", "from[done + 1]);", "from[done]);"),
            "a longer record": Mutation(
                "sampler.h",
                "RT_SAMPLER_HEAD_BYTES + 8 * words);\n}\n\n/* Write a record of words of 8 bytes that",
                "RT_SAMPLER_HEAD_BYTES + 8 * words + 8);\n}\n\n/* Write a record of words of 8 bytes that",
            ),
            "begins a run at the first place": Mutation("sampler.h", "  rt_broadcast_resume(&s->writer);\n", ""),
            "never turns": Mutation("sampler.h", "  if (s->sampler) rt_broadcast_turn(&s->writer);\n", "  (void)s;\n"),
            "counts cycles as samples": Mutation("sampler.h", "places == 0 || every == 1", "1"),
            "the end of a long row is lost": Mutation(
                "sampler.h", "  if (words % 2) rt_sampler_copy_8(to, from);\n", ""
            ),
            "any words are copied as a long row": Mutation(
                "sampler.h", "if (s->words && s->row == s->words) {", "if (s->words) {"
            ),
            "the end of a row is lost": Mutation(
                "sampler.h",
                "  if (words % 2) rt_sampler_copy_8(to + 8 * (words - 1), from + 8 * (words - 1));\n",
                "",
            ),
            "the last pair of a row is lost": Mutation("sampler.h", "i + 2 <= words; i += 2", "i + 2 < words; i += 2"),
            "the start of a row is lost": Mutation(
                "sampler.h", "  rt_store_relaxed((int64_t *)(void *)(place + 16), start);\n", "  (void)start;\n"
            ),
            "a row of any words": Mutation("sampler.h", " && sampler->total == sampler->row", ""),
            "a row in each cycle": Mutation("sampler.h", "sampler->every == 1 && sampler->total", "sampler->total"),
            "half of a word is lost": Mutation(
                "sampler.h", "RT_SAMPLER_COPY(uint16_t, to,", "RT_SAMPLER_COPY(uint8_t, to,"
            ),
            "the start is the release": Mutation(
                "sampler.h", "place + 16, &s->cycle.start);", "place + 16, &s->cycle.release);"
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
    "swap": Program(
        (MEMORY, THREADS),
        {"BROKEN_TRIAL": THREADS},
        mutations={
            "the command is not for swaps": Mutation(
                "loop_commands.h", "  if (command & RT_COMMAND_SWAP) rt_loop_plan_swap(loop);\n", ""
            ),
            "the fast path goes on": Mutation(
                "loop_commands.h", "  loop->is_swap_due = 1;\n  loop->plain_until = INT64_MIN;\n", ""
            ),
            "the former step's signals go on": Mutation(
                "loop_cycle.h",
                "swap->live);\n  rt_sampling_use(&loop->sampling, loop->live.sampler);\n",
                "swap->live);\n",
            ),
            "the signals on trial stay": Mutation(
                "loop_cycle.h",
                "trial->live);\n  rt_sampling_use(&loop->sampling, loop->live.sampler);\n",
                "trial->live);\n",
            ),
            "the samples of before set the limit": Mutation(
                "loop_cycle.h",
                "loop->live.sampler);\n  rt_loop_limit_plain(loop, next.index);\n  rt_loop_use_step",
                "loop->live.sampler);\n  rt_loop_use_step",
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
            "a failure in a trial ends the loop": Mutation(
                "loop_cycle.h", "if (!(incident & trial->watched)) return 0;", "return 0;"
            ),
            "the failed step goes on": Mutation("loop_cycle.h", "  if (trial->seen) rt_loop_revert(loop);\n", ""),
            "a trial does not end": Mutation(
                "loop_cycle.h", "if (!trial->seen && index < trial->until) return 0;", "if (!trial->seen) return 0;"
            ),
            "an overrun in a trial is none": Mutation(
                "loop_cycle.h", "      rt_loop_note_incident(loop, RT_INCIDENT_OVERRUN);\n", ""
            ),
            "infinity passes a trial": Mutation("loop_cycle.h", "!rt_floats_are_finite(loop->swap.floats)", "0"),
            "a slow take_over passes a trial": Mutation(
                "loop_cycle.h", "if (loop->trial.is_on) (void)", "if (0) (void)"
            ),
            "a swap that comes late fails its trial": Mutation("loop_cycle.h", " && !is_excused", ""),
            "no lateness fails a trial after a late swap": Mutation(
                "loop_cycle.h", "trial->was_late && index", "index"
            ),
            "samples as many signals as the former step had": Mutation(
                "loop_cycle.h", "RT_UNLIKELY(loop->sampling.row != (uint32_t)row)", "0"
            ),
            "goes on with the first step after other signals": Mutation(
                "loop_cycle.h",
                "rt_loop_run_cycles_of(loop, NULL, 0, loop->self,",
                "rt_loop_run_cycles_of(loop, NULL, 0, self,",
            ),
        },
    ),
    "swap_model": Program(
        (UNDEFINED,),
        {"BROKEN_TRIAL": UNDEFINED},
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
                "rt_histogram_record(&bank->histograms[RT_INTERVAL], record.start - t->previous_start);",
                "(void)0;",
            ),
            "an interval from long ago": Mutation(
                "telemetry.h",
                "  t->previous_start = record.start;\n  rt_add_relaxed(&t->written, 1);",
                "  rt_add_relaxed(&t->written, 1);",
            ),
            "plain cycles never fold": Mutation(
                "telemetry.h", "  if (RT_UNLIKELY(p->left < 0)) rt_bank_fold(bank);\n", ""
            ),
            "plain cycles fold late": Mutation("telemetry.h", "UINT64_MAX >> 2 * bits", "UINT64_MAX >> (2 * bits - 1)"),
            "every plain cycle folds": Mutation("telemetry.h", "  p->left -= 1;\n", "  p->left = -1;\n"),
            "greater values are added up as often": Mutation(
                "telemetry.h", "if (cycles == p->cycles)", "if (p->cycles)"
            ),
            "greater values do not fold": Mutation(
                "telemetry.h", "(&p->cycles, cycles);\n  rt_bank_fold(bank);", "(&p->cycles, cycles);"
            ),
            "the interval alone is great": Mutation("telemetry.h", "greatest |=", "greatest ="),
            "greater values are within": Mutation("telemetry.h", "h->max > INT32_MAX ? INT32_MAX : h->max", "h->max"),
            "values are rounded up": Mutation(
                "telemetry.h", "_mm_andnot_si128(_mm_srli_epi32(all, RT_HISTOGRAM_SUB_BITS + 1), all)", "all"
            ),
            "0 has no counter": Mutation("telemetry.h", "_mm_subs_epu16", "_mm_sub_epi16"),
            "one above the maximum is within": Mutation(
                "telemetry.h", "INT32_MAX - 1 - (most - least)", "INT32_MAX - 2 - (most - least)"
            ),
            "one below the minimum is within": Mutation(
                "telemetry.h", "INT32_MAX + (uint32_t)least", "INT32_MAX - 1 + (uint32_t)least"
            ),
            "no new minimum": Mutation(
                "telemetry.h", "    if (values[i] < h->min) rt_store_relaxed(&h->min, values[i]);\n", ""
            ),
            "no new maximum": Mutation(
                "telemetry.h", "    if (values[i] > h->max) rt_store_relaxed(&h->max, values[i]);\n", ""
            ),
            "a cleared bank has limits": Mutation("telemetry.h", "rt_store_relaxed(&plain[i], UINT64_C(0));", ";"),
            "a reader does not fold": Mutation("telemetry.h", "      rt_bank_fold(to);\n", ""),
            "a fold keeps the squares": Mutation(
                "telemetry.h", "    rt_store_relaxed(&p->squares[i], UINT64_C(0));\n", ""
            ),
            "a fold keeps the sums": Mutation("telemetry.h", "    rt_store_relaxed(&p->sums[i], (int64_t)0);\n", ""),
            "squares are those of two others": Mutation(
                "telemetry.h", "_mm_mul_epu32(second, second)", "_mm_mul_epu32(first, second)"
            ),
            "sums are those of two others": Mutation(
                "telemetry.h", "_mm_add_epi64(sums[1], second)", "_mm_add_epi64(sums[1], first)"
            ),
            "counters are exchanged": Mutation("telemetry.h", "_epi16(at, 5)", "_epi16(at, 3)"),
            "no late ones": Mutation("telemetry.h", "(is_late != 0)", "0 * is_late"),
            "loses the oldest record": Mutation(
                "telemetry.h", "written + !rt_seqlock_read_valid(&t->lock, begin)", "written + 1"
            ),
            "takes half a record": Mutation(
                "telemetry.h", "written + !rt_seqlock_read_valid(&t->lock, begin)", "written"
            ),
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
            "any maximum": Mutation("telemetry_view.h", "h->counts[end - 1] == 0", "0"),
            "any minimum": Mutation("telemetry_view.h", "h->counts[rt_histogram_counter(h->min)] == 0", "0"),
            "adds nothing up": Mutation("telemetry_view.h", "left -= h->counts[k];", ""),
        },
    ),
}


class TestRunning(HeaderTests):
    """Each program of the table above: sound, and failing with each of its known faults."""
