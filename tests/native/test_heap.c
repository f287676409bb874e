/* The heap: glibc's malloc is recognised and tuned; that of a sanitizer, which is in front of it, is neither. */
#include <stdio.h>
#include <string.h>

#include "check.h"
#include "rtloop/heap.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IS_OTHER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define IS_OTHER 1
#endif
#endif
#ifndef IS_OTHER
#define IS_OTHER 0
#endif

int main(void) {
#ifdef BROKEN_ANSWER
  CHECK(rt_heap_is_glibc() == IS_OTHER);
#else
  CHECK(rt_heap_is_glibc() == !IS_OTHER);
#endif
  const char *const owner = rt_heap_owner("malloc");
  CHECK(owner != NULL && (strstr(owner, "libc.so") != NULL) == !IS_OTHER);
  CHECK(rt_heap_owner("no_such_function") == NULL);
  CHECK(rt_heap_glibc_function("malloc") != NULL && rt_heap_glibc_function("no_such_function") == NULL);
  CHECK(rt_heap_tune() == (IS_OTHER ? -EOPNOTSUPP : 0));
  puts("heap: ok");
  return 0;
}
