/* Parameters and signals around a step: new parameters before it, a sample of the signals after it.
 *
 * A loop that has either gives its thread another step function, which calls what it needs of these. A loop without
 * them runs the code that it ran before there were any.
 */
#ifndef RTLOOP_LIVE_H
#define RTLOOP_LIVE_H

#include "cycle.h"
#include "parameters.h"
#include "sampler.h"

/* A part of the loop's state. Set between two runs, and constant during a run. */
typedef struct rt_live {
  const uint64_t *state; /* the word of the parameters that a cycle reads; `nothing` if there are none */
  rt_parameters_t *parameters;
  uint64_t nothing;
  rt_sampler_t *sampler; /* NULL if there are no signals */
} rt_live_t;

/* Prepare for a run. Before the loop's thread exists, or on it; O(1). */
static inline void rt_live_init(rt_live_t *live) {
  *live = (rt_live_t){.nothing = 0};
  live->state = &live->nothing;
}

/* Take parameters that have begun a run. Before the loop's thread exists; O(1). */
static inline void rt_live_use_parameters(rt_live_t *live, rt_parameters_t *parameters) {
  live->parameters = parameters;
  live->state = &parameters->view.block->state;
}

/* Sample signals into the block that the sampler writes. Before the loop's thread exists; O(1). */
static inline void rt_live_use_sampler(rt_live_t *live, rt_sampler_t *sampler) { live->sampler = sampler; }

/* Replace them by those of another step, if it has any; NULL if not. The loop's thread between two cycles; O(1). */
static inline void rt_live_replace(rt_live_t *live, const rt_live_t *by) {
  rt_live_init(live);
  if (by && by->parameters) rt_live_use_parameters(live, by->parameters);
  if (by && by->sampler) rt_live_use_sampler(live, by->sampler);
}

/* Make a new set of parameters the one in use, if there is one: three instructions if not, else as
 * rt_parameters_take. The loop's thread. */
static inline void rt_live_before_step(rt_live_t *live, const rt_cycle_t *cycle) {
  if (RT_UNLIKELY(rt_parameters_is_new(live->state))) (void)rt_parameters_take(live->parameters, cycle);
}

#endif
