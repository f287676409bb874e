/* The request that a running loop go on with another step, and the answer of its thread.
 *
 * The control thread fills the request in and asks; the loop's thread takes it between two cycles, and answers. One
 * word decides between a request that is taken and one that is withdrawn, because nobody knows when a step returns.
 *
 *   NONE --ask--> ASKED --take--> TAKEN --answer--> DONE or REFUSED --ask--> ASKED
 *                   \--withdraw--> NONE
 *
 * A cycle does not touch the word: the command that goes with the request makes it look.
 */
#ifndef RTLOOP_SWAP_H
#define RTLOOP_SWAP_H

#include <stdint.h>

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
};

typedef struct rt_swap {
  /* Of the control thread, until it asks. */
  void *self; /* argument of the callbacks, from the first cycle of the new step on */
  void *successor, *former;
  int (*take_over)(void *successor, void *former, const rt_cycle_t *cycle);
  const rt_live_t *live; /* parameters and signals of the new step; NULL: as those of a loop without any */

  /* Of the loop's thread, until it answers. */
  uint64_t cycle; /* index of the first cycle of the new step */
  int32_t code;   /* what take_over() has returned */

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
