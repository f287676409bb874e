/* Steps in C, for FunctionLoop: what a user of rtloop's header writes. */
#include "rtloop/include/rtloop/cycle.h"

typedef struct counter {
  int64_t steps;
  int64_t stop_at;
  int64_t code;
  double t;
} counter_t;

int count(const rt_cycle_t *cycle, void *data) {
  counter_t *counter = data;
  counter->steps++;
  counter->t = cycle->t;
  if (cycle->index != (uint64_t)counter->steps - 1) return -71;
  return counter->steps == counter->stop_at ? (int)counter->code : RT_CONTINUE;
}

int nothing(const rt_cycle_t *cycle, void *data) {
  (void)cycle;
  return data ? -22 : RT_CONTINUE;
}

rt_step_t checked = count;
