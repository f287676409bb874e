/* One cycle, as a step in C sees it, and what the step returns.
 *
 * A step in C is `int step(const rt_cycle_t *cycle, void *data)`, compiled with the folder that rtloop.get_include()
 * names on the include path, and run by rtloop.FunctionLoop:
 *
 *     #include "rtloop/include/rtloop/cycle.h"
 */
#ifndef RTLOOP_CYCLE_H
#define RTLOOP_CYCLE_H

#include <stddef.h>
#include <stdint.h>

/* What a callback returns. Any other value ends the loop with a failure that carries the value. */
enum { RT_CONTINUE = 0, RT_STOP = 1 };

/* One cycle, as the callbacks see it. Fields may be appended: rtloop allocates it. */
typedef struct rt_cycle {
  uint64_t index;  /* cycles run before this one */
  int64_t release; /* ns on the loop's clock, as planned */
  int64_t start;   /* ns, when the loop was really there */
  int64_t period;  /* ns, nominal */
  int64_t missed;  /* releases dropped just before this one */
  double t;        /* s, planned, since the first release */
  double dt;       /* s since the previous release that ran; nominal on the first */
} rt_cycle_t;

/* Refuse to compile unless what a pointer points to, such as Cython's Cycle, has the layout of rt_cycle_t. */
#define RT_SAME_FIELD(pointer, field) (offsetof(__typeof__(*(pointer)), field) == offsetof(rt_cycle_t, field))
#define RT_CHECK_CYCLE(pointer)                                                                                        \
  _Static_assert(sizeof *(pointer) == sizeof(rt_cycle_t) && RT_SAME_FIELD(pointer, index) &&                           \
                     RT_SAME_FIELD(pointer, release) && RT_SAME_FIELD(pointer, start) &&                               \
                     RT_SAME_FIELD(pointer, period) && RT_SAME_FIELD(pointer, missed) && RT_SAME_FIELD(pointer, t) &&  \
                     RT_SAME_FIELD(pointer, dt),                                                                       \
                 "a struct differs from rt_cycle_t")

/* What rtloop.FunctionLoop runs: called on the loop's thread, without the GIL, with the address of the loop's data. */
typedef int (*rt_step_t)(const rt_cycle_t *cycle, void *data);

#endif
