/* Guards: violations kept or only counted, samples of page faults in their ring, system calls on a real thread. */
#include "check.h"
#include "rtloop/guard_faults.h"
#include "rtloop/guard_signal.h"
#include "rtloop/stack.h"

static rt_guard_t guard;
static rt_telemetry_t telemetry;
static struct {
  struct perf_event_mmap_page page;
  uint64_t data[64];
} ring;

static void begin_anew(void) {
  memset(&guard, 0, sizeof guard);
  guard.warmup = 10;
  guard.code[0] = (rt_code_t){1000, 2000, 0};
  guard.code[1] = (rt_code_t){3000, 4000, 1};
  guard.ranges = 2;
}

/* One noisy kind with many places fills its own quota only; the others are counted, each of its kind. */
static void keeps_places_of_each_kind_and_counts_all(void) {
  begin_anew();
  for (uint64_t i = 0; i < RT_GUARD_PLACES + 10; i++) {
    guard.cycle = i;
    for (int twice = 0; twice < 2; twice++) rt_guard_record(&guard, RT_GUARD_SYSCALL, 0, i, 1, 3000, NULL, 0);
  }
  guard.cycle = 99;
  rt_guard_record(&guard, RT_GUARD_ALLOCATION, 3, 0, 1, 3000, NULL, 0);
  CHECK(guard.counts[RT_GUARD_SYSCALL] == 2 * (RT_GUARD_PLACES + 10));
  CHECK(guard.places[RT_GUARD_SYSCALL] == RT_GUARD_PLACES && guard.unkept[RT_GUARD_SYSCALL] == 20);
  CHECK(guard.places[RT_GUARD_ALLOCATION] == 1 && guard.unkept[RT_GUARD_ALLOCATION] == 0);
  const rt_violation_t *last = &guard.violations[RT_GUARD_SYSCALL][RT_GUARD_PLACES - 1];
  CHECK(last->cycle == RT_GUARD_PLACES - 1 && last->count == 2 && last->order == RT_GUARD_PLACES - 1);
  CHECK(guard.violations[RT_GUARD_ALLOCATION][0].order == RT_GUARD_PLACES);
  guard.cycle = 100; /* a kept place is found again when its kind has no room left */
  rt_guard_record(&guard, RT_GUARD_SYSCALL, 0, 5, 1, 3000, NULL, 0);
  CHECK(guard.violations[RT_GUARD_SYSCALL][5].count == 3 && guard.unkept[RT_GUARD_SYSCALL] == 20);
  CHECK(guard.violations[RT_GUARD_SYSCALL][5].cycle == 5 && guard.violations[RT_GUARD_SYSCALL][5].last_cycle == 100);
  const uint32_t sequence = rt_seqlock_read_begin(&guard.lock);
  rt_guard_reset(&guard);
  CHECK(!rt_seqlock_read_valid(&guard.lock, sequence));
  CHECK(guard.places[RT_GUARD_SYSCALL] == 0 && guard.unkept[RT_GUARD_SYSCALL] == 0);
  rt_guard_record(&guard, RT_GUARD_SYSCALL, 0, 77, 1, 3000, NULL, 0);
  CHECK(guard.places[RT_GUARD_SYSCALL] == 1 && guard.violations[RT_GUARD_SYSCALL][0].detail == 77);
}

/* What makes a place: the address if it is in the user's code, else the user's addresses on the stack. */
static void tells_places_by_the_users_code(void) {
  begin_anew();
  uint64_t words[] = {1, 1500, 7, 3100, 3200, 9};
  const size_t count = sizeof words / sizeof *words;
  rt_guard_record(&guard, RT_GUARD_ALLOCATION, 0, 100, 1, 1000, words, count);
  words[0] = 2, words[2] = 8; /* data */
  rt_guard_record(&guard, RT_GUARD_ALLOCATION, 0, 10, 1, 1000, words, count);
  rt_guard_record(&guard, RT_GUARD_ALLOCATION, 0, 50, 1, 1000, words + 1, count - 1); /* the stack is less deep */
  words[1] = 1600; /* another address in what the user's code called: left from another call, or another way */
  rt_guard_record(&guard, RT_GUARD_ALLOCATION, 0, 50, 1, 1000, words, count);
  const rt_violation_t *v = guard.violations[RT_GUARD_ALLOCATION];
  CHECK(guard.places[RT_GUARD_ALLOCATION] == 1 && v->count == 4);
  CHECK(v->detail == 100 && v->least == 10 && v->most == 100);
  rt_guard_record(&guard, RT_GUARD_ALLOCATION, 1, 50, 1, 1000, words, count); /* another function */
  words[3] = 3101;                                                            /* another call */
  rt_guard_record(&guard, RT_GUARD_ALLOCATION, 0, 50, 1, 1000, words, count);
  rt_guard_record(&guard, RT_GUARD_ALLOCATION, 0, 50, 1, 1001, words, count);
  CHECK(guard.places[RT_GUARD_ALLOCATION] == 4);
  rt_guard_record(&guard, RT_GUARD_ALLOCATION, 0, 50, 1, 3500, words, count);
  rt_guard_record(&guard, RT_GUARD_ALLOCATION, 0, 50, 1, 3500, words + 1, count - 1); /* the address is the place */
  CHECK(guard.places[RT_GUARD_ALLOCATION] == 5 && guard.violations[RT_GUARD_ALLOCATION][4].count == 2);
  CHECK(guard.counts[RT_GUARD_ALLOCATION] == 9 && guard.unkept[RT_GUARD_ALLOCATION] == 0);
}

static void picks_addresses_of_code_from_the_stack(void) {
  begin_anew();
  const uint64_t few[] = {1, 1500, 999, 2000, 3999, 4000, UINT64_MAX};
  rt_guard_record(&guard, RT_GUARD_MINOR, 0, 0, 1, 1000, few, sizeof few / sizeof *few);
  const uint64_t *frames = guard.violations[RT_GUARD_MINOR][0].frames;
  CHECK(frames[0] == 1000 && frames[1] == 1500 && frames[2] == 3999 && frames[3] == 0);
  uint64_t many[100];
  for (size_t i = 0; i < 100; i++) many[i] = i == 90 ? 3500 : 1500;
  rt_guard_record(&guard, RT_GUARD_MINOR, 0, 0, 1, 1000, many, 100);
  CHECK(guard.violations[RT_GUARD_MINOR][1].frames[RT_GUARD_FRAMES - 2] == 1500);
  CHECK(guard.violations[RT_GUARD_MINOR][1].frames[RT_GUARD_FRAMES - 1] == 3500); /* the last place is the user's */
}

/* A sample as the kernel writes it: header, id, ip, address, registers' ABI, sp, size of the stack, stack, used. */
static void sample(uint64_t id, uint64_t ip, uint64_t address) {
  const uint64_t words[] = {0, id, ip, address, PERF_SAMPLE_REGS_ABI_64, 9000, 16, 3100, 1, 16};
  const uint64_t count = sizeof words / sizeof *words;
  for (uint64_t i = 0; i < count; i++) {
    const uint64_t header = PERF_RECORD_SAMPLE | (count * 8) << 48;
    ring.data[(ring.page.data_head / 8 + i) % 64] = i ? words[i] : header;
  }
  ring.page.data_head += count * 8;
}

static void takes_samples_out_of_the_ring(void) {
  begin_anew();
  memset(&ring, 0, sizeof ring);
  ring.page.data_offset = (uint64_t)((char *)ring.data - (char *)&ring);
  ring.page.data_size = sizeof ring.data;
  guard.ring = &ring.page;
  guard.faults = RT_GUARD_FAULTS_BY_SAMPLE;
  guard.major_id = 5;
  guard.stack_end = 9016;
  uint64_t minor = 0, major = 0;
  for (uint64_t cycle = 10; cycle < 50; cycle++) { /* the ring wraps around in many places */
    sample(4, 3000, 0xbad);                        /* before the step, so it does not count */
    rt_guard_begin(&guard, cycle);
    sample(4, 3001, 0x1000);
    if (cycle % 2) sample(5, 3002, 0x2000);
    rt_guard_end(&guard);
    CHECK(rt_guard_check(&guard, cycle, &telemetry));
    CHECK(ring.page.data_tail == ring.page.data_head);
    minor += 1;
    major += cycle % 2;
  }
  CHECK(telemetry.banks[0].counters.guard[RT_GUARD_MINOR] >= minor); /* as many as there were, and the thread's own */
  CHECK(telemetry.banks[0].counters.guard[RT_GUARD_MAJOR] == major);
  for (uint32_t kind = RT_GUARD_MINOR; kind <= RT_GUARD_MAJOR; kind++) {
    const rt_violation_t *v = guard.violations[kind];
    CHECK(guard.places[kind] == 1 && v->count == (kind == RT_GUARD_MAJOR ? major : minor));
    CHECK(v->cycle == (kind == RT_GUARD_MAJOR ? 11 : 10) && v->last_cycle == 49 && v->last_time >= v->time);
    CHECK(v->detail == (kind == RT_GUARD_MAJOR ? 0x2000 : 0x1000));
    CHECK(v->frames[0] == (kind == RT_GUARD_MAJOR ? 3002 : 3001) && v->frames[1] == 3100 && v->frames[2] == 0);
  }
  /* Whatever else faulted in these steps has no sample here. */
  CHECK(telemetry.banks[0].counters.guard[RT_GUARD_MINOR] == minor + guard.unkept[RT_GUARD_MINOR]);
}

static rt_stack_t stack;
static int is_available;
extern const char __executable_start, etext; /* of the linker: the code of this program */

/* The set-up of a loop's thread. */
static void set_up(void) {
  const rt_thread_request_t request = {.name = "guarded"};
  static rt_thread_report_t report;
  rt_thread_setup(&request, &stack, &report);
  rt_guard_setup(&guard, stack.base);
  is_available = guard.syscalls_rc == 0;
}

static void *on_a_thread(void *unused) {
  (void)unused;
  set_up();
  if (!is_available) return NULL;
  guard.stack_end = (uint64_t)(uintptr_t)__builtin_frame_address(0) + 16; /* the calls are made here */
  guard.faults = RT_GUARD_FAULTS_NONE;
  const pid_t parent = getppid();
  rt_guard_begin(&guard, 9);
  (void)getppid(); /* of the warm-up */
  rt_guard_end(&guard);
  CHECK(guard.counts[RT_GUARD_SYSCALL] == 0);
  rt_guard_begin(&guard, 10);
  const pid_t first = getppid(), second = getppid();
  errno = 0;
  const int rc = close(-1);
  const int error = errno;
  rt_guard_end(&guard);
  CHECK(first == parent && second == parent && rc == -1 && error == EBADF);
  CHECK(guard.counts[RT_GUARD_SYSCALL] == 3 && guard.places[RT_GUARD_SYSCALL] == 3);
  const rt_violation_t *v = guard.violations[RT_GUARD_SYSCALL];
  CHECK(v[0].detail == SYS_getppid && v[1].detail == SYS_getppid && v[2].detail == SYS_close); /* two of one call */
  CHECK(v[0].cycle == 10 && v[0].frames[0] != 0);
  (void)getppid();
  CHECK(guard.counts[RT_GUARD_SYSCALL] == 3); /* after the step */
  guard.allowed[SYS_getppid / 64] |= UINT64_C(1) << (SYS_getppid % 64);
  rt_guard_begin(&guard, 11);
  const pid_t third = getppid();
  rt_guard_end(&guard);
  CHECK(third == parent && guard.counts[RT_GUARD_SYSCALL] == 3);
  rt_guard_stop(&guard);
  return NULL;
}

static int former_calls;

static void former(int number) {
  (void)number;
  former_calls += 1;
}

static void sees_system_calls(void) {
  begin_anew();
  guard.code[0] = (rt_code_t){(uint64_t)(uintptr_t)&__executable_start, (uint64_t)(uintptr_t)&etext, 1};
  guard.ranges = 1;
  CHECK(rt_stack_map(&stack, 256u << 10) == 0);
  rt_stack_paint(&stack);
  const struct sigaction before = {.sa_handler = former};
  CHECK(sigaction(SIGSYS, &before, NULL) == 0);
  const uintptr_t low = (uintptr_t)stack.mapping;
  CHECK(rt_guard_register(&guard, low, low + stack.mapping_bytes) == 0);
  pthread_t thread;
  CHECK(rt_thread_create(&thread, &stack, on_a_thread, NULL) == 0);
  pthread_join(thread, NULL);
  CHECK(raise(SIGSYS) == 0 && former_calls == 1);
  rt_guard_unregister(&guard);
  struct sigaction after;
  CHECK(sigaction(SIGSYS, NULL, &after) == 0 && after.sa_handler == former);
  rt_guard_close_faults(&guard);
  rt_stack_unmap(&stack);
  if (!is_available) printf("no Syscall User Dispatch here\n");
}

static int is_spinning;

static void calling_former(int number) {
  former(number);
  (void)getppid();
  __atomic_store_n(&is_spinning, 0, __ATOMIC_RELEASE);
}

static void *interrupted_in_step(void *unused) {
  (void)unused;
  set_up();
  if (!is_available) {
    __atomic_store_n(&is_spinning, -1, __ATOMIC_RELEASE);
    return NULL;
  }
  guard.faults = RT_GUARD_FAULTS_NONE;
  rt_guard_begin(&guard, 10);
  __atomic_store_n(&is_spinning, 1, __ATOMIC_RELEASE);
  while (__atomic_load_n(&is_spinning, __ATOMIC_ACQUIRE)) rt_cpu_relax();
  CHECK(guard.counts[RT_GUARD_SYSCALL] == 0); /* the calls of a foreign handler are not the step's */
  (void)getppid();
  rt_guard_end(&guard);
  CHECK(guard.counts[RT_GUARD_SYSCALL] == 1); /* the step is still watched */
  rt_guard_stop(&guard);
  return NULL;
}

static void does_not_put_down_a_former_handler_to_the_step(void) {
  begin_anew();
  former_calls = is_spinning = 0;
  CHECK(rt_stack_map(&stack, 256u << 10) == 0);
  rt_stack_paint(&stack);
  const struct sigaction before = {.sa_handler = calling_former};
  CHECK(sigaction(SIGSYS, &before, NULL) == 0);
  const uintptr_t low = (uintptr_t)stack.mapping;
  CHECK(rt_guard_register(&guard, low, low + stack.mapping_bytes) == 0);
  pthread_t thread;
  CHECK(rt_thread_create(&thread, &stack, interrupted_in_step, NULL) == 0);
  while (!__atomic_load_n(&is_spinning, __ATOMIC_ACQUIRE)) sched_yield();
  if (__atomic_load_n(&is_spinning, __ATOMIC_ACQUIRE) > 0) CHECK(pthread_kill(thread, SIGSYS) == 0);
  pthread_join(thread, NULL);
  CHECK(!is_available || former_calls == 1);
  rt_guard_unregister(&guard);
  rt_guard_close_faults(&guard);
  rt_stack_unmap(&stack);
}

#if defined(__x86_64__)
static long getppid_on(char *other_stack) {
  long result = SYS_getppid;
  __asm__ __volatile__("mov %%rsp, %%rbx; mov %1, %%rsp; syscall; mov %%rbx, %%rsp"
                       : "+a"(result)
                       : "r"(other_stack)
                       : "rbx", "rcx", "r11", "memory");
  return result;
}

static void *on_another_stack(void *other_stack) {
  set_up();
  if (!is_available) return NULL;
  guard.faults = RT_GUARD_FAULTS_NONE;
  const long parent = getppid();
  rt_guard_begin(&guard, 10);
  const long seen = getppid_on((char *)other_stack);
  rt_guard_end(&guard);
  CHECK(seen == parent && guard.counts[RT_GUARD_SYSCALL] == 1 && guard.places[RT_GUARD_SYSCALL] == 1);
  const uint64_t *frames = guard.violations[RT_GUARD_SYSCALL][0].frames;
  CHECK(frames[0] != 0 && frames[1] == 0);
  rt_guard_stop(&guard);
  return NULL;
}

/* A fiber's stack may end anywhere: nothing above its end is read. */
static void does_not_read_beyond_a_stack_of_the_steps_own(void) {
  begin_anew();
  CHECK(rt_stack_map(&stack, 256u << 10) == 0);
  rt_stack_paint(&stack);
  char *other = mmap(NULL, 1u << 16, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(other != (char *)MAP_FAILED && mprotect(other, 1u << 15, PROT_READ | PROT_WRITE) == 0);
  const uintptr_t low = (uintptr_t)stack.mapping;
  CHECK(rt_guard_register(&guard, low, low + stack.mapping_bytes) == 0);
  pthread_t thread;
  CHECK(rt_thread_create(&thread, &stack, on_another_stack, other + (1u << 15)) == 0);
  pthread_join(thread, NULL);
  rt_guard_unregister(&guard);
  rt_guard_close_faults(&guard);
  munmap(other, 1u << 16);
  rt_stack_unmap(&stack);
}
#else
static void does_not_read_beyond_a_stack_of_the_steps_own(void) {}
#endif

static void *refused(void *unused) {
  (void)unused;
  set_up();
  rt_guard_stop(&guard);
  return NULL;
}

/* A guard that is not in the handler's table must not test itself, because its own call would end the process. */
static void one_loop_too_many_is_not_guarded(void) {
  static rt_guard_t others[RT_GUARD_LOOPS];
  begin_anew();
  former_calls = 0;
  CHECK(rt_stack_map(&stack, 256u << 10) == 0);
  rt_stack_paint(&stack);
  const struct sigaction before = {.sa_handler = former};
  CHECK(sigaction(SIGSYS, &before, NULL) == 0);
  for (uintptr_t i = 0; i < RT_GUARD_LOOPS; i++) CHECK(rt_guard_register(&others[i], 1, 2) == 0);
  const uintptr_t low = (uintptr_t)stack.mapping;
  CHECK(rt_guard_register(&guard, low, low + stack.mapping_bytes) == -EAGAIN);
  pthread_t thread;
  CHECK(rt_thread_create(&thread, &stack, refused, NULL) == 0);
  pthread_join(thread, NULL);
  CHECK(guard.syscalls_rc == -EAGAIN && former_calls == 0);
  for (uintptr_t i = 0; i < RT_GUARD_LOOPS; i++) rt_guard_unregister(&others[i]);
  struct sigaction after;
  CHECK(sigaction(SIGSYS, NULL, &after) == 0 && after.sa_handler == former);
  rt_guard_close_faults(&guard);
  rt_stack_unmap(&stack);
}

/* A program without a standard input opens its first file as 0. */
static void closes_a_file_of_number_0(void) {
  begin_anew();
  const int kept = dup(0);
  (void)close(0);
  if (rt_guard_open_faults(&guard) == 0) {
    CHECK(guard.perf_fd[0] == 0);
    rt_guard_close_faults(&guard);
    CHECK(close(0) == -1 && errno == EBADF);
  }
  if (kept >= 0) CHECK(dup2(kept, 0) == 0 && close(kept) == 0);
}

int main(void) {
  keeps_places_of_each_kind_and_counts_all();
  tells_places_by_the_users_code();
  picks_addresses_of_code_from_the_stack();
  takes_samples_out_of_the_ring();
  sees_system_calls();
  does_not_put_down_a_former_handler_to_the_step();
  does_not_read_beyond_a_stack_of_the_steps_own();
  one_loop_too_many_is_not_guarded();
  closes_a_file_of_number_0();
  return CHECK_DONE();
}
