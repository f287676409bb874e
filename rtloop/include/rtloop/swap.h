/* The request that a running loop go on with another step, and the answer of its thread.
 *
 * The control thread fills the request in and asks; the loop's thread takes it between two cycles, and answers. One
 * word decides between a request that is taken and one that is withdrawn, because nobody knows when a step returns.
 *
 *   NONE --ask--> ASKED --take--> TAKEN --answer--> DONE or REFUSED --ask--> ASKED
 *                   \--withdraw--> NONE     \--answer--> ON_TRIAL --answer--> DONE or REVERTED --ask--> ASKED
 *
 * From ON_TRIAL on the loop runs the new step, and may go back to the former one: the control thread releases neither.
 * DONE gives it the former step, REVERTED the new one.
 *
 * A cycle does not touch the word: the command that goes with the request makes it look.
 */
#ifndef RTLOOP_SWAP_H
#define RTLOOP_SWAP_H

#include <stdint.h>
#include <string.h>

#include "atomics.h"
#include "cycle.h"
#include "live.h"

/* Values of rt_swap.state. */
enum {
  RT_SWAP_NONE = 0,
  RT_SWAP_ASKED = 1,
  RT_SWAP_TAKEN = 2, /* take_over() runs */
  RT_SWAP_DONE = 3,
  RT_SWAP_REFUSED = 4, /* take_over() has returned a code: the former step goes on */
  RT_SWAP_ON_TRIAL = 5,
  RT_SWAP_REVERTED = 6, /* the former step goes on, since the cycle `reverted` */
};

/* Incidents of a step on trial, for which the loop goes back to the former one: bits of a set. */
enum {
  RT_INCIDENT_CODE = 1u,      /* step(), overrun() or wait() has returned a negative code */
  RT_INCIDENT_OVERRUN = 2u,   /* a cycle has ended after the next release */
  RT_INCIDENT_GUARD = 4u,     /* a guard has found a violation */
  RT_INCIDENT_LATE = 8u,      /* a release had passed before the wait for it began */
  RT_INCIDENT_NONFINITE = 16u /* a signal is infinite or not a number */
};

/* Fields of a step that hold floating-point numbers. */
typedef struct rt_floats {
  const double *const *doubles;
  const float *const *floats;
  const void *const *halves; /* IEEE 754 binary16, as their bits */
  uint64_t double_count, float_count, half_count;
} rt_floats_t;

/* Test whether all these fields are finite. The loop's thread after a step; O(numbers). */
static inline int rt_floats_are_finite(const rt_floats_t *f) {
  for (uint64_t i = 0; i < f->double_count; i++) {
    double value; /* the field of a packed struct need not be aligned */
    memcpy(&value, f->doubles[i], sizeof value);
    if (!__builtin_isfinite(value)) return 0;
  }
  for (uint64_t i = 0; i < f->float_count; i++) {
    float value;
    memcpy(&value, f->floats[i], sizeof value);
    if (!__builtin_isfinite(value)) return 0;
  }
  for (uint64_t i = 0; i < f->half_count; i++) {
    uint16_t bits; /* _Float16 is not a type of every compiler */
    memcpy(&bits, f->halves[i], sizeof bits);
    if ((bits & 0x7C00) == 0x7C00) return 0; /* the exponent of infinities and NaNs */
  }
  return 1;
}

/* A step on trial. Used by the loop's thread only. */
typedef struct rt_trial {
  int32_t is_on;
  uint32_t watched; /* RT_INCIDENT_... bits; 0 without a trial */
  uint32_t seen;
  int32_t end; /* for RT_INCIDENT_CODE: RT_END_... */
  int32_t code;
  uint64_t until;   /* index of the first cycle after the trial */
  int32_t was_late; /* whether its first release had passed before the swap, which is no incident */
  void *former;     /* argument of the callbacks of the former step */
  rt_live_t live;   /* its parameters and signals */
} rt_trial_t;

typedef struct rt_swap {
  /* Of the control thread, until it asks. */
  void *self; /* argument of the callbacks, from the first cycle of the new step on */
  void *successor, *former;
  int (*take_over)(void *successor, void *former, const rt_cycle_t *cycle);
  const rt_live_t *live;     /* parameters and signals of the new step; NULL: as those of a loop without any */
  uint64_t trial;            /* cycles that the new step is on trial for; 0: none */
  const rt_floats_t *floats; /* the signals that RT_INCIDENT_NONFINITE is about; NULL: none */
  uint32_t watched;          /* RT_INCIDENT_... bits */

  /* Of the loop's thread, until it answers. */
  uint64_t cycle; /* index of the first cycle of the new step */
  int32_t code;   /* what take_over() has returned */

  /* Of the loop's thread, until it answers RT_SWAP_REVERTED. */
  uint32_t incidents;    /* RT_INCIDENT_... bits, at least one */
  int32_t incident_end;  /* for RT_INCIDENT_CODE: RT_END_STEP, RT_END_OVERRUN or RT_END_WAIT */
  int32_t incident_code; /* and the code */
  uint64_t reverted;     /* index of the first cycle of the former step after the trial */

  uint64_t state; /* RT_SWAP_... */
} rt_swap_t;

/* Ask for what was filled in. The control thread, which has seen the answer to any earlier request; O(1). */
static inline void rt_swap_ask(rt_swap_t *s) { rt_store_release(&s->state, (uint64_t)RT_SWAP_ASKED); }

/* Take the request. Returns 1, or 0 iff there is none, or it was withdrawn. The loop's thread; O(1); one locked
 * instruction; no system call. */
static inline int rt_swap_take(rt_swap_t *s) {
  uint64_t asked = RT_SWAP_ASKED;
  return rt_compare_exchange_acq_rel(&s->state, &asked, (uint64_t)RT_SWAP_TAKEN);
}

/* Answer a request that was taken. The loop's thread; O(1); no system call. */
static inline void rt_swap_answer(rt_swap_t *s, uint64_t state) { rt_store_release(&s->state, state); }

/* Read how far the request has come. Any thread; O(1). */
static inline uint64_t rt_swap_state(const rt_swap_t *s) { return rt_load_acquire(&s->state); }

/* Withdraw the request. Returns 1, or 0 iff the loop's thread has taken it. The control thread; O(1). */
static inline int rt_swap_withdraw(rt_swap_t *s) {
  uint64_t asked = RT_SWAP_ASKED;
  return rt_compare_exchange_acq_rel(&s->state, &asked, (uint64_t)RT_SWAP_NONE);
}

#endif
