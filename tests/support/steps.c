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

/* Functions enter and leave of a loop. */
typedef struct ends {
  int64_t enters;
  int64_t steps;
  int64_t leaves;
  int64_t code;
  int64_t steps_at_leave;
} ends_t;

int begin(void *data) {
  ends_t *ends = data;
  ends->enters++;
  return (int)ends->code;
}

int work(const rt_cycle_t *cycle, void *data) {
  ends_t *ends = data;
  (void)cycle;
  if (ends->enters != ends->leaves + 1) return -71;
  ends->steps++;
  return RT_CONTINUE;
}

void rest(void *data) {
  ends_t *ends = data;
  ends->leaves++;
  ends->steps_at_leave = ends->steps;
}
