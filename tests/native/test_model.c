/* The checker itself, on small programs with known outcomes under C11's memory model. */
#include "model.h"

#include <sys/wait.h>
#include <unistd.h>

static uint32_t x, y, z;
static uint32_t r1, r2;
static int may[4]; /* by r1 + 2 * r2: whether some execution ends so */

static void before(void) {
  x = y = z = r1 = r2 = 0;
  model_share(&x, 0, BOTH);
  model_share(&y, 0, BOTH);
  model_share(&z, 0, BOTH);
}

static void note(void) {
  CHECK(r1 < 2 && r2 < 2);
  may[r1 + 2 * r2] = 1;
}

static uint64_t explore(void (*left)(void), void (*right)(void)) {
  memset(may, 0, sizeof may);
  return model_explore(before, left, right, note);
}

/* Each side stores and then loads what the other one stores: both may miss it, because nothing here is sequentially
 * consistent. Interleaving alone never shows that. */
static void store_x_load_y(void) { rt_store_release(&x, 1u), r1 = rt_load_acquire(&y); }
static void store_y_load_x(void) { rt_store_release(&y, 1u), r2 = rt_load_acquire(&x); }

/* A message: r1 tells that it is there, r2 what it is. */
static void send_released(void) { rt_store_relaxed(&x, 1u), rt_store_release(&y, 1u); }
static void send_relaxed(void) { rt_store_relaxed(&x, 1u), rt_store_relaxed(&y, 1u); }
static void receive_acquired(void) { r1 = rt_load_acquire(&y), r2 = rt_load_relaxed(&x); }
static void receive_relaxed(void) { r1 = rt_load_relaxed(&y), r2 = rt_load_relaxed(&x); }

/* A message announced through an exchange: what is acquired is passed on. */
static void send_through_exchange(void) {
  rt_store_relaxed(&x, 1u);
  (void)rt_exchange_release(&y, 1u);
}
static void receive_through_exchange(void) {
  r1 = rt_exchange_acquire(&y, 0u);
  r2 = rt_load_relaxed(&x);
}
static void receive_without_acquire(void) {
  r1 = rt_exchange_release(&y, 0u);
  r2 = rt_load_relaxed(&x);
}

/* One place never goes back, however relaxed: r1 is the first load. */
static void store_once(void) { rt_store_relaxed(&x, 1u); }
static void load_twice(void) { r1 = rt_load_relaxed(&x), r2 = rt_load_relaxed(&x); }

/* One of two exchanges comes first. */
static void exchange_left(void) { r1 = rt_exchange_acq_rel(&z, 1u); }
static void exchange_right(void) { r2 = rt_exchange_acq_rel(&z, 1u); }

/* A message with plain data in it, and a reply that returns the data. */
static uint64_t plain;

static void before_plain(void) {
  before();
  plain = 0;
  model_data(&plain, sizeof plain, 1);
}

static void write_plain(uint64_t value) { memcpy(&plain, &value, sizeof value); }
static void read_plain(void) {
  uint64_t value;
  memcpy(&value, &plain, sizeof value);
}

static void send_plain(void) { write_plain(1), rt_store_release(&y, 1u); }
static void send_plain_relaxed(void) { write_plain(1), rt_store_relaxed(&y, 1u); }
static void receive_plain(void) {
  if (rt_load_acquire(&y)) read_plain();
}
static void reply(void) { read_plain(), rt_store_release(&y, 1u); }
static void reply_relaxed(void) { read_plain(), rt_store_relaxed(&y, 1u); }
static void reuse(void) {
  if (rt_load_acquire(&y)) write_plain(2);
}

/* Test whether a race on the plain data is found, which ends the process. */
static int is_race_found(void (*left)(void), void (*right)(void)) {
  int status = 0;
  fflush(NULL);
  const pid_t child = fork();
  if (child == 0) {
    CHECK(freopen("/dev/null", "w", stderr));
    model_explore(before_plain, left, right, note);
    _exit(0);
  }
  CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status));
  return WEXITSTATUS(status);
}

int main(void) {
  CHECK(explore(store_x_load_y, store_y_load_x) >= 6);
  CHECK(may[0] && may[1] && may[2] && may[3]);

  enum { STALE = 1 }; /* told that it is there, and not seen */
  explore(send_released, receive_acquired);
  CHECK(may[0] && !may[STALE] && may[2] && may[3]);
  explore(send_relaxed, receive_acquired);
  CHECK(may[0] && may[STALE] && may[2] && may[3]);
  explore(send_released, receive_relaxed);
  CHECK(may[0] && may[STALE] && may[2] && may[3]);
  explore(send_through_exchange, receive_through_exchange);
  CHECK(may[0] && !may[STALE] && may[2] && may[3]);
  explore(send_through_exchange, receive_without_acquire);
  CHECK(may[0] && may[STALE] && may[2] && may[3]);

  explore(store_once, load_twice);
  CHECK(may[0] && !may[1] && may[2] && may[3]);

  explore(exchange_left, exchange_right);
  CHECK(!may[0] && may[1] && may[2] && !may[3]);

  CHECK(!is_race_found(send_plain, receive_plain) && is_race_found(send_plain_relaxed, receive_plain));
  CHECK(!is_race_found(reply, reuse) && is_race_found(reply_relaxed, reuse));
  return CHECK_DONE();
}
