/* The heap: find out whose malloc serves the process, and tune glibc's.
 *
 * A preloaded or linked library may replace malloc, and glibc's mallopt(3) then still succeeds without effect. Nothing
 * here is for a step.
 */
#ifndef RTLOOP_HEAP_H
#define RTLOOP_HEAP_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <stddef.h>
#include <stdlib.h>

#define RT_HEAP_TRIM_THRESHOLD (-1) /* M_TRIM_THRESHOLD and M_MMAP_MAX of glibc, which other C libraries lack */
#define RT_HEAP_MMAP_MAX (-4)
#define RT_HEAP_TRIAL_BYTES ((size_t)1 << 20)
#define RT_HEAP_TRIALS 8

/* `struct mallinfo` of glibc. Its fields wrap around at 4 GiB, so only differences mean something. */
typedef struct rt_heap_info {
  unsigned arena, ordblks, smblks, hblks, hblkhd, usmblks, fsmblks, uordblks, fordblks, keepcost;
} rt_heap_info_t;

/* Find a function of glibc, no matter which library stands in front of it. NULL iff the C library is another one, or
 * lacks it. Any thread; takes the loader's lock. */
static inline void *rt_heap_glibc_function(const char *name) {
  void *const libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
  if (libc == NULL) return NULL;
  void *const found = dlsym(libc, "gnu_get_libc_version") ? dlsym(libc, name) : NULL;
  dlclose(libc); /* it stays loaded: everything uses it */
  return found;
}

#ifdef __GLIBC__
/* Find a function in the libraries, in the order in which the loader searches them. For a program that is not
 * position-independent and uses the function itself, such as Debian's python3: there every search answers with the
 * program's own jump to the function. NULL if no library has it. Any thread; takes the loader's lock. */
static inline void *rt_heap_library_function(const char *name) {
  struct link_map *map = NULL;
  void *const program = dlopen(NULL, RTLD_LAZY);
  if (program == NULL) return NULL;
  if (dlinfo(program, RTLD_DI_LINKMAP, &map)) map = NULL;
  void *found = NULL;
  for (map = map ? map->l_next : NULL; map != NULL && found == NULL; map = map->l_next) {
    Dl_info about;
    void *const library = dlopen(map->l_name, RTLD_LAZY | RTLD_NOLOAD);
    if (library == NULL) continue; /* the vdso */
    found = dlsym(library, name);
    if (found != NULL && (!dladdr(found, &about) || about.dli_fbase != (void *)map->l_addr)) found = NULL;
    dlclose(library); /* it stays loaded: the map is that of the program's own libraries */
  }
  dlclose(program);
  return found;
}
#endif

/* Return the library or the program that a function really is in, as the process calls it: its path, or NULL. The
 * pointer stays valid as long as that is loaded. Any thread; takes the loader's lock. */
static inline const char *rt_heap_owner(const char *function) {
  Dl_info found, guards;
  const void *address = dlsym(RTLD_DEFAULT, function);
#ifdef __GLIBC__
  ElfW(Sym) *symbol = NULL;
  if (address != NULL && dladdr1(address, &found, (void **)&symbol, RTLD_DL_SYMENT) && symbol != NULL &&
      symbol->st_shndx == SHN_UNDEF) {
    address = rt_heap_library_function(function);
  }
#endif
  if (address == NULL || !dladdr(address, &found)) return NULL;
  void *(*next)(const char *);
  void *const guard = dlsym(RTLD_DEFAULT, "rtloop_guard_next");
  if (guard != NULL && dladdr(guard, &guards) && guards.dli_fbase == found.dli_fbase) {
    __builtin_memcpy(&next, &guard, sizeof next); /* the guards' library hands its calls on */
    const void *const behind = next(function);
    if (behind == NULL || !dladdr(behind, &found)) return NULL;
  }
  return found.dli_fname;
}

/* Test whether glibc serves malloc(). It does if malloc() is in its file. A library in front of it may hand the calls
 * on: then allocate a block, and look at what glibc says is in use before and after. Returns 1, 0, or -ENOMEM. Other
 * threads that allocate meanwhile cause repetitions. Any thread; takes the loader's lock, and for the second test
 * allocates, may enter the kernel, and holds glibc's locks while it counts all free blocks. */
static inline int rt_heap_is_glibc(void) {
  rt_heap_info_t (*info)(void);
  void *const function = rt_heap_glibc_function("mallinfo");
  if (function == NULL) return 0;
  Dl_info glibc;
  if (dladdr(function, &glibc) && rt_heap_owner("malloc") == glibc.dli_fname) return 1; /* a file has one such string */
  __builtin_memcpy(&info, &function, sizeof info);
  for (size_t i = 0; i < RT_HEAP_TRIALS; i++) {
    const size_t bytes = RT_HEAP_TRIAL_BYTES + i * 4096;
    const rt_heap_info_t before = info();
    void *volatile block = malloc(bytes); /* volatile, or the compiler would remove both calls */
    if (block == NULL) return -ENOMEM;
    const rt_heap_info_t after = info();
    free(block);
    const unsigned grown = after.uordblks + after.hblkhd - before.uordblks - before.hblkhd;
    if (grown >= bytes && grown < bytes + 65536) return 1;
  }
  return 0;
}

/* Keep glibc from returning memory to the kernel and from mapping large blocks, for the rest of the process's life.
 * Returns 0, or -EOPNOTSUPP iff another malloc serves the process or glibc refuses. Any thread; see rt_heap_is_glibc.
 */
static inline int rt_heap_tune(void) {
  int (*tune)(int, int);
  void *const function = rt_heap_glibc_function("mallopt");
  if (function == NULL || rt_heap_is_glibc() != 1) return -EOPNOTSUPP;
  __builtin_memcpy(&tune, &function, sizeof tune);
  return tune(RT_HEAP_TRIM_THRESHOLD, -1) == 1 && tune(RT_HEAP_MMAP_MAX, 0) == 1 ? 0 : -EOPNOTSUPP;
}

#endif
