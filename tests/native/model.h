/* An exhaustive checker of two threads that exchange data through C11 atomics: every interleaving, and every value that
 * the memory model lets a load return.
 *
 * Include it before the header that is to be checked: the operations of atomics.h, and memcpy, become steps of the
 * model. Only the shared places that model_share() names are modelled; whatever else a thread accesses has to be its
 * own.
 *
 * The model is the operational one of views (Kang et al., "A promising semantics for relaxed-memory concurrency", POPL
 * 2017, without promises): the stores to a place form a list; a thread's view says which is the oldest one of each
 * place that it may still read; a release store carries the view of its thread, and a load that acquires it takes that
 * over. A read-modify-write reads the last store of the list and continues its release sequence. A release fence makes
 * the relaxed stores after it carry the view that the thread had at the fence; an acquire fence takes over the views of
 * the stores that relaxed loads before it have read. A sequentially consistent load reads no store that is older than
 * the last such store to its place; the order of the steps is their order S. Plain data is checked for races with the
 * vector clock that is part of a view. Reordering of a load behind a later store is not modelled, as it depends on
 * promises; no algorithm here could use it, for every store that matters is a release. */
#ifndef MODEL_H
#define MODEL_H

#define RTLOOP_ATOMICS_H /* these instead */
#define CHECK_BY_ONE_THREAD

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include "check.h"

#define RT_CACHE_LINE 64
#define RT_LIKELY(x) (x)
#define RT_UNLIKELY(x) (x)

enum { MAIN = 0, LEFT = 1, RIGHT = 2, ACTORS = 3, PLACES = 8, STORES = 64, CELLS = 128, CHOICES = 256 };
enum { BOTH = MAIN }; /* write to a place */
enum { RELAXED = 0, ACQUIRE = 1, RELEASE = 2 };

typedef struct view {
  uint32_t clock[ACTORS];
  uint32_t oldest[PLACES];
} view_t;

static struct {
  struct {
    void *address;
    int writer;
    uint32_t count;
    uint64_t values[STORES];
    view_t views[STORES];
  } places[PLACES];
  uint32_t place_count;
  char *data;
  size_t data_bytes, cell_bytes;
  struct {
    int writer;
    uint32_t written, read[ACTORS];
  } cells[CELLS];
  view_t views[ACTORS];
  view_t released[ACTORS], loaded[ACTORS]; /* at the last release fence; by relaxed loads */
  uint32_t consistent[PLACES];             /* the last sequentially consistent store to each place */
  int victim, deaths;                      /* the thread that is killed at any one of its steps, so often */
  jmp_buf successor;
  int actor; /* whose turn it is */
  int is_alive[ACTORS];
  uint32_t chosen[CHOICES], choices[CHOICES], depth, known; /* of a depth-first search over all choices */
  uint64_t runs;
  void (*bodies[ACTORS])(void);
  ucontext_t contexts[ACTORS];
  char stacks[ACTORS][64 << 10];
} model;

static uint32_t model_choose(uint32_t count) {
  if (count < 2) return 0;
  CHECK(model.depth < CHOICES);
  if (model.depth == model.known) {
    model.choices[model.known] = count;
    model.chosen[model.known++] = 0;
  }
  CHECK(model.choices[model.depth] == count); /* else the code under test is not deterministic */
  return model.chosen[model.depth++];
}

/* Kill the running thread, or not, if it is the victim; its successor goes on at model.successor. */
static void model_kill(void) {
  if (model.actor != model.victim || !model.deaths || !model_choose(2)) return;
  model.deaths--;
  longjmp(model.successor, 1);
}

static void model_hand_over(int from, int to) {
  model.actor = to;
  CHECK(swapcontext(&model.contexts[from], &model.contexts[to]) == 0);
}

/* Before each step of a thread on a shared place: let the other one go first, or not. */
static view_t *model_step(void) {
  const int self = model.actor, other = LEFT + RIGHT - self;
  if (self != MAIN) {
    if (model.is_alive[other] && model_choose(2)) model_hand_over(self, other);
    CHECK(model.actor == self);
    model_kill();
  }
  model.views[self].clock[self]++;
  return &model.views[self];
}

static void view_join(view_t *to, const view_t *from) {
  for (int i = 0; i < ACTORS; i++) {
    if (to->clock[i] < from->clock[i]) to->clock[i] = from->clock[i];
  }
  for (int i = 0; i < PLACES; i++) {
    if (to->oldest[i] < from->oldest[i]) to->oldest[i] = from->oldest[i];
  }
}

static int model_find(const void *address) {
  for (uint32_t i = 0; i < model.place_count; i++) {
    if (model.places[i].address == address) return (int)i;
  }
  return -1;
}

static void model_append(int place, uint64_t value, view_t view) {
  const uint32_t last = model.places[place].count++;
  CHECK(last < STORES);
  model.places[place].values[last] = value;
  model.places[place].views[last] = view;
  model.places[place].views[last].oldest[place] = last;
  model.views[model.actor].oldest[place] = last;
}

static inline uint64_t model_load(const void *address, uint64_t direct, int order) {
  const int place = model_find(address);
  if (place < 0 || model.places[place].writer == model.actor) return direct; /* its own: no order of steps matters */
  view_t *const view = model_step();
  const uint32_t oldest = view->oldest[place];
  const uint32_t read = oldest + model_choose(model.places[place].count - oldest);
  view->oldest[place] = read;
  view_join(order & ACQUIRE ? view : &model.loaded[model.actor], &model.places[place].views[read]);
  return model.places[place].values[read];
}

static inline uint64_t model_load_consistent(const void *address) {
  const int place = model_find(address);
  CHECK(place >= 0);
  view_t *const view = model_step();
  const uint32_t last = model.consistent[place];
  const uint32_t oldest = view->oldest[place] > last ? view->oldest[place] : last;
  const uint32_t read = oldest + model_choose(model.places[place].count - oldest);
  view->oldest[place] = read;
  view_join(view, &model.places[place].views[read]);
  return model.places[place].values[read];
}

static inline int model_store(const void *address, uint64_t value, int order) {
  const int place = model_find(address);
  if (place < 0) return 0;
  const int writer = model.places[place].writer;
  CHECK(writer == BOTH || writer == model.actor || model.actor == MAIN);
  view_t *const view = model_step();
  model_append(place, value, order & RELEASE ? *view : model.released[model.actor]);
  return 1;
}

static inline uint64_t model_exchange(const void *address, uint64_t value, int order) {
  const int place = model_find(address);
  CHECK(place >= 0 && model.places[place].writer == BOTH);
  view_t *const view = model_step();
  const uint32_t last = model.places[place].count - 1;
  view_t carried = model.places[place].views[last];
  if (order & ACQUIRE) view_join(view, &carried);
  if (order & RELEASE) view_join(&carried, view);
  model_append(place, value, carried);
  return model.places[place].values[last];
}

/* A fence is not a step: what it orders are the accesses before and after it, and those are. */
static inline void model_fence(int order) {
  view_t *const view = &model.views[model.actor];
  if (order == __ATOMIC_RELEASE) {
    model.released[model.actor] = *view;
  } else {
    CHECK(order == __ATOMIC_ACQUIRE);
    view_join(view, &model.loaded[model.actor]);
  }
}

static void model_access(const char *address, size_t bytes, int is_write) {
  if (!model.data || address < model.data || address >= model.data + model.data_bytes) return;
  view_t *const view = &model.views[model.actor];
  const size_t first = (size_t)(address - model.data) / model.cell_bytes;
  CHECK((size_t)(address - model.data) + bytes <= model.data_bytes);
  for (size_t i = first; i < first + bytes / model.cell_bytes; i++) {
    CHECK(view->clock[model.cells[i].writer] >= model.cells[i].written); /* no race with the last write */
    if (!is_write) {
      model.cells[i].read[model.actor] = view->clock[model.actor];
      continue;
    }
    for (int t = 0; t < ACTORS; t++) CHECK(view->clock[t] >= model.cells[i].read[t]); /* none with a read */
    model.cells[i].writer = model.actor;
    model.cells[i].written = view->clock[model.actor];
  }
}

/* A relaxed store of a word of the data, which must not race with a copy by the other thread. */
static inline void model_word(void *address, size_t bytes) {
  if (!model.data || bytes < model.cell_bytes) return;
  model.views[model.actor].clock[model.actor]++;
  model_access(address, bytes, 1);
}

static inline void model_copy(void *to, const void *from, size_t bytes) {
  if (model.actor == model.victim && model.deaths && model_choose(2)) {
    model.deaths = 0; /* killed in the middle of the copy */
    model_copy(to, from, bytes / 2);
    longjmp(model.successor, 1);
  }
  model.views[model.actor].clock[model.actor]++;
  model_access(from, bytes, 0);
  model_access(to, bytes, 1);
  memmove(to, from, bytes);
}

#define rt_load_relaxed(p) ((__typeof__(*(p)))model_load((p), (uint64_t)*(p), RELAXED))
#define rt_load_acquire(p) ((__typeof__(*(p)))model_load((p), (uint64_t)*(p), ACQUIRE))
#define rt_store_relaxed(p, v) (model_word((p), sizeof *(p)), model_store((p), (uint64_t)(v), RELAXED), *(p) = (v))
#define rt_store_release(p, v) (model_store((p), (uint64_t)(v), RELEASE), *(p) = (v))
#define rt_add_relaxed(p, v) (*(p) += (v))
#define rt_add_release(p, v) rt_store_release((p), *(p) + (v))
#define __atomic_thread_fence(order) model_fence(order)
#define rt_exchange_acq_rel(p, v) model_exchange_into((p), (v), ACQUIRE | RELEASE)
#define rt_exchange_acquire(p, v) model_exchange_into((p), (v), ACQUIRE)
#define rt_exchange_release(p, v) model_exchange_into((p), (v), RELEASE)
#define rt_add32_relaxed(p, v) (*(p) += (v))
#define rt_load_seq_cst(p) model_load_consistent(p)
#define rt_exchange_seq_cst(p, v) model_exchange_consistent((p), (v))
#define rt_compare_exchange_seq_cst(p, expected, v) model_replace_consistent((p), (expected), (v))
#define rt_compare_exchange_acq_rel(p, expected, v) model_replace((p), (expected), (v), ACQUIRE | RELEASE)
#define rt_compare_exchange_acquire(p, expected, v) model_replace((p), (expected), (v), ACQUIRE)
#define rt_compare_exchange_release(p, expected, v) model_replace((p), (expected), (v), RELEASE)
#define rt_cpu_relax() ((void)0)
#define rt_has_bits_relaxed(p, bits) ((rt_load_relaxed(p) & (bits)) != 0)
#define memcpy model_copy

static inline uint32_t model_exchange_into(uint32_t *p, uint32_t value, int order) {
  const uint32_t was = (uint32_t)model_exchange(p, value, order);
  *p = value;
  return was;
}

/* A compare-and-exchange succeeds iff the last store of the list is expected; if not, it may read any other that this
 * thread may still see. */
static inline int model_replace(uint64_t *p, uint64_t *expected, uint64_t value, int order) {
  const int place = model_find(p);
  CHECK(place >= 0 && model.places[place].writer == BOTH);
  view_t *const view = model_step();
  const uint32_t count = model.places[place].count;
  if (model.places[place].values[count - 1] == *expected) {
    const view_t carried = model.places[place].views[count - 1];
    view_t next = carried;
    if (order & ACQUIRE) view_join(view, &carried);
    if (order & RELEASE) view_join(&next, view);
    model_append(place, value, next);
    *p = value;
    return 1;
  }
  uint32_t others = 0, candidates[STORES];
  for (uint32_t i = view->oldest[place]; i < count; i++) {
    if (model.places[place].values[i] != *expected) candidates[others++] = i;
  }
  const uint32_t read = candidates[model_choose(others)];
  view->oldest[place] = read;
  *expected = model.places[place].values[read];
  return 0;
}

static inline uint64_t model_exchange_consistent(uint64_t *p, uint64_t value) {
  const uint64_t was = model_exchange(p, value, ACQUIRE | RELEASE);
  *p = value;
  model.consistent[model_find(p)] = model.places[model_find(p)].count - 1;
  return was;
}

static inline int model_replace_consistent(uint64_t *p, uint64_t *expected, uint64_t value) {
  const int place = model_find(p);
  view_t *const view = &model.views[model.actor];
  if (view->oldest[place] < model.consistent[place]) view->oldest[place] = model.consistent[place];
  const int is_replaced = model_replace(p, expected, value, ACQUIRE | RELEASE);
  if (is_replaced) {
    model.consistent[place] = model.places[place].count - 1;
  } else {
    view_join(view, &model.places[place].views[view->oldest[place]]);
  }
  return is_replaced;
}

/* Name an atomic place that both threads use, before they begin, with the value that it has, and who writes to it:
 * LEFT, RIGHT, or BOTH, by exchanges: of plain stores by both not every order is tried. */
static inline void model_share(void *address, uint64_t value, int writer) {
  const uint32_t place = model.place_count++;
  CHECK(place < PLACES);
  model.places[place].address = address;
  model.places[place].writer = writer;
  model.places[place].count = 0;
  model_append((int)place, value, model.views[MAIN]);
}

/* Name the plain data that both threads use: so many cells of so many bytes. */
static inline void model_data(void *address, size_t cell_bytes, size_t cells) {
  CHECK(cells <= CELLS);
  model.data = address;
  model.cell_bytes = cell_bytes;
  model.data_bytes = cell_bytes * cells;
}

static void model_thread(void) {
  const int self = model.actor, other = LEFT + RIGHT - self;
  model.bodies[self]();
  model.is_alive[self] = 0;
  model_hand_over(self, model.is_alive[other] ? other : MAIN);
}

static void model_prepare(int actor) {
  ucontext_t *const context = &model.contexts[actor];
  CHECK(getcontext(context) == 0);
  context->uc_stack.ss_sp = model.stacks[actor];
  context->uc_stack.ss_size = sizeof model.stacks[actor];
  makecontext(context, model_thread, 0);
}

/* Run `before`, then `left` and `right` at once, then `after`, in every way there is. Returns how many there are. */
static uint64_t model_explore(void (*before)(void), void (*left)(void), void (*right)(void), void (*after)(void)) {
  model.runs = 0;
  model.known = 0;
  model.bodies[LEFT] = left;
  model.bodies[RIGHT] = right;
  for (;;) {
    model.place_count = model.depth = 0;
    memset(model.views, 0, sizeof model.views);
    memset(model.released, 0, sizeof model.released);
    memset(model.loaded, 0, sizeof model.loaded);
    memset(model.consistent, 0, sizeof model.consistent);
    model.victim = MAIN;
    model.deaths = 0;
    memset(model.cells, 0, sizeof model.cells);
    model.data = NULL;
    model.actor = MAIN;
    before();
    model.views[MAIN].clock[MAIN]++;
    model.views[LEFT] = model.views[RIGHT] = model.views[MAIN];
    model.is_alive[LEFT] = model.is_alive[RIGHT] = 1;
    model_prepare(LEFT);
    model_prepare(RIGHT);
    model_hand_over(MAIN, model_choose(2) ? RIGHT : LEFT);
    view_join(&model.views[MAIN], &model.views[LEFT]);
    view_join(&model.views[MAIN], &model.views[RIGHT]);
    after();
    model.runs++;
    while (model.known && model.chosen[model.known - 1] + 1 == model.choices[model.known - 1]) model.known--;
    if (!model.known) return model.runs;
    model.chosen[model.known - 1]++;
  }
}

#endif
