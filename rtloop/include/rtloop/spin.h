/* The margin before a release at which a loop stops sleeping and starts spinning.
 *
 * A fixed margin, or one learnt from the measured wake-up latency: the second-worst lateness of a short window (and of
 * the window before it) plus a quarter. Leaving out the worst keeps a rare hiccup from costing CPU time forever; two
 * windows of about a fifth of a second let the margin follow a changing load. It is capped by the CPU budget.
 *
 * Real-time contract: rt_spin_learn is a few comparisons, in constant time, without division.
 */
#ifndef RTLOOP_SPIN_H
#define RTLOOP_SPIN_H

#include <stdint.h>

#include "atomics.h"

#define RT_SPIN_FLOOR_NS 2000
#define RT_SPIN_READS 16 /* clock reads to a pause: some 400 ns, well over the 128 cycles that KVM looks for */
#define RT_SPIN_WINDOW_NS INT64_C(200000000)

typedef struct rt_spin {
  int64_t margin; /* 0: do not spin */
  int64_t cap;    /* the CPU budget of one cycle, for a learnt margin */
  int64_t worst;
  int64_t second;
  int64_t previous; /* the second-worst of the window before this one */
  uint32_t count;
  uint32_t window; /* cycles in a window */
  uint32_t is_auto;
} rt_spin_t;

/* Use a fixed margin, in ns; 0 turns spinning off. Before the run; O(1). */
static inline void rt_spin_fixed(rt_spin_t *s, int64_t margin) { *s = (rt_spin_t){.margin = margin}; }

/* Learn the margin, starting from the whole budget: `budget_percent` of the period may be spent spinning. Before the
 * run; O(1). */
static inline void rt_spin_auto(rt_spin_t *s, int64_t period, int64_t budget_percent) {
  int64_t window = RT_SPIN_WINDOW_NS / period;
  int64_t cap = period / 100 * budget_percent + 1;
  *s = (rt_spin_t){.margin = cap, .cap = cap, .previous = cap, .is_auto = 1};
  s->window = window < 32 ? 32 : window > 1000000 ? 1000000 : (uint32_t)window;
}

/* Learn from one sleep, which ended `lateness` ns later than asked. The loop's thread; O(1), without division. */
static inline void rt_spin_learn(rt_spin_t *s, int64_t lateness) {
  if (lateness > s->second) {
    if (lateness > s->worst) {
      s->second = s->worst;
      s->worst = lateness;
    } else {
      s->second = lateness;
    }
  }
  if (RT_UNLIKELY(++s->count >= s->window)) {
    s->previous = s->second;
    s->worst = s->second = 0;
    s->count = 0;
  }
  int64_t margin = s->second > s->previous ? s->second : s->previous;
  margin += (margin >> 2) + RT_SPIN_FLOOR_NS;
  s->margin = margin < s->cap ? margin : s->cap;
}

#endif
