/* The margin of spin="auto", with simulated wake-ups: its growth, its decay and its bound. */
#include "rtloop/spin.h"

#include "check.h"

enum { PERIOD = 1000000, BUDGET_PERCENT = 25, BUDGET_NS = PERIOD / 100 * BUDGET_PERCENT + 1, WINDOW = 200 };

/* The header's rule: a quarter more than what was seen, and the floor. */
static int64_t margin_for(int64_t lateness) { return lateness + lateness / 4 + RT_SPIN_FLOOR_NS; }

static void learn(rt_spin_t *s, int64_t lateness, int times) {
  for (int i = 0; i < times; i++) rt_spin_learn(s, lateness);
}

static rt_spin_t calm(void) {
  rt_spin_t s;
  rt_spin_auto(&s, PERIOD, BUDGET_PERCENT);
  learn(&s, 1000, 2 * WINDOW);
  return s;
}

static void begins_with_the_budget_and_comes_down(void) {
  rt_spin_t s;
  rt_spin_auto(&s, PERIOD, BUDGET_PERCENT);
  CHECK(s.is_auto && s.margin == BUDGET_NS);
  learn(&s, 1000, WINDOW - 1);
  CHECK(s.margin == BUDGET_NS); /* one window has to be seen first */
  learn(&s, 1000, 1);
  CHECK(s.margin == margin_for(1000));
}

static void grows_with_the_lateness(void) {
  rt_spin_t s = calm();
  CHECK(s.margin == margin_for(1000));
  learn(&s, 20000, 1);
  CHECK(s.margin == margin_for(1000)); /* one hiccup costs nothing */
  learn(&s, 20000, 1);
  CHECK(s.margin == margin_for(20000)); /* two are a load, at once */
  learn(&s, 30000, 1);
  learn(&s, 40000, 1);
  CHECK(s.margin == margin_for(30000)); /* the second-worst */
}

static void shrinks_when_the_load_goes(void) {
  rt_spin_t s = calm();
  learn(&s, 60000, WINDOW);
  CHECK(s.margin == margin_for(60000));
  learn(&s, 1000, WINDOW - 1);
  CHECK(s.margin == margin_for(60000)); /* remembered for a window */
  learn(&s, 1000, 1);
  CHECK(s.margin == margin_for(1000));
}

static void follows_a_changing_load(void) {
  rt_spin_t s = calm();
  for (int i = 0; i < 20; i++) {
    const int64_t lateness = i % 2 ? 3000 : 50000;
    learn(&s, lateness, 2 * WINDOW);
    CHECK(s.margin == margin_for(lateness));
  }
}

static void stays_within_the_budget(void) {
  uint64_t seed = 7;
  for (int percent = 1; percent <= 50; percent++) {
    rt_spin_t s;
    rt_spin_auto(&s, PERIOD, percent);
    for (int i = 0; i < 5 * WINDOW; i++) {
      rt_spin_learn(&s, (int64_t)(check_random(&seed) % (3 * PERIOD)));
      CHECK(s.margin > 0 && s.margin <= PERIOD / 100 * percent + 1);
    }
  }
}

static void windows_last_about_a_fifth_of_a_second(void) {
  static const int64_t cases[][2] = {{PERIOD, 200}, {10000, 20000}, {100, 1000000}, {RT_SPIN_WINDOW_NS * 5, 32}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    rt_spin_t s;
    rt_spin_auto(&s, cases[i][0], BUDGET_PERCENT);
    CHECK(s.window == cases[i][1]);
  }
}

static void a_fixed_margin_is_just_that(void) {
  rt_spin_t s;
  rt_spin_fixed(&s, 12345);
  CHECK(s.margin == 12345 && !s.is_auto);
}

int main(void) {
  begins_with_the_budget_and_comes_down();
  grows_with_the_lateness();
  shrinks_when_the_load_goes();
  follows_a_changing_load();
  stays_within_the_budget();
  windows_last_about_a_fifth_of_a_second();
  a_fixed_margin_is_just_that();
  return CHECK_DONE();
}
