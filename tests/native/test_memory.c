/* Detection of locked memory on this kernel, on one that accepts MADV_COLD for any memory, and on one that lacks it. */
#include <errno.h>
#include <sys/mman.h>

#include "check.h"

static enum { AS_HERE, ACCEPTS, REFUSES } cold;
static int may_lock = 1;

static int planted_madvise(void *address, size_t bytes, int advice) {
  if (advice != MADV_COLD || cold == AS_HERE) return madvise(address, bytes, advice);
  if (cold == ACCEPTS) return 0;
  errno = EINVAL;
  return -1;
}

static int planted_mlock(const void *address, size_t bytes) {
  if (may_lock) return mlock(address, bytes);
  errno = EPERM;
  return -1;
}

#define madvise planted_madvise
#define mlock planted_mlock
#include "rtloop/memory.h"

/* Check rt_memory_future_lock() on each kind of kernel; `expected` is the result on this one. */
static void check_future(int expected) {
  cold = AS_HERE;
  CHECK(rt_memory_future_lock() == expected);
  for (cold = ACCEPTS; cold <= REFUSES; cold++) {
    /* A page that is present at once is locked, whatever MADV_COLD says. */
    CHECK(rt_memory_future_lock() == (expected == RT_FUTURE_LOCKED ? RT_FUTURE_LOCKED : -ENOTSUP));
  }
}

int main(void) {
  for (may_lock = 0; may_lock <= 1; may_lock++) {
    cold = AS_HERE;
    CHECK(rt_memory_can_tell_locked() == 1);
    cold = REFUSES;
    CHECK(rt_memory_can_tell_locked() == 0);
  }
  cold = ACCEPTS;
  CHECK(rt_memory_can_tell_locked() == 0);
  check_future(RT_FUTURE_NOT_LOCKED);
  CHECK(!mlockall(MCL_FUTURE | MCL_ONFAULT));
  check_future(RT_FUTURE_LOCKED_ONFAULT);
  CHECK(!mlockall(MCL_FUTURE));
  check_future(RT_FUTURE_LOCKED);
  CHECK(!munlockall());
  return CHECK_DONE();
}
