// Compares pairs of alloc and free of 256 bytes in rtloop's pools and their peers: one process, one core, alternating.
//
//   peers pairs ROUNDS PAIRS         prints "NAME NS" for each contestant, ROUNDS times: nanoseconds per pair
//   peers batches ROUNDS PAIRS SIZE  prints the same for SIZE allocs and then SIZE frees, at most 64
//   peers tail OPERATIONS            prints "NAME P50 P99 P9999 MAX" for each: ns of a pair, the heap in fragments
//
// The malloc is the C library's, or that of LD_PRELOAD.
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <boost/lockfree/stack.hpp>
#include <boost/pool/pool.hpp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

extern "C" {
void *ours_make(unsigned kind, size_t block_bytes, size_t count);
void ours_pairs(void *pool, long pairs);
void ours_batches(void *pool, long pairs, int size);
void *ours_alloc(void *pool);
void ours_free(void *pool, void *block);
int ours_check(void *pool);
}

namespace {

constexpr size_t BLOCK = 256, COUNT = 1024, MOST = 64;

// Hide from the compiler that a block is freed at once, and from the next alloc what the last free has written. Without
// the second, boost::pool's alloc is optimized away.
inline void opaque(void *&p) { __asm__ volatile("" : "+r"(p)::"memory"); }
inline void barrier() { __asm__ volatile("" ::: "memory"); }

struct Ours {
  void *pool;
  explicit Ours(unsigned kind) : pool(ours_make(kind, BLOCK, COUNT)) {}
  ~Ours() {
    if (ours_check(pool)) abort();
  }
  void *alloc() { return ours_alloc(pool); }
  void free(void *p) { ours_free(pool, p); }
  void pairs(long n, int) { ours_pairs(pool, n); }
  void batches(long n, int size) { ours_batches(pool, n, size); }
};

template <class Self> struct Pairs {
  void pairs(long n, int) {
    Self *self = static_cast<Self *>(this);
    for (long i = 0; i < n; i++) {
      void *p = self->alloc();
      opaque(p);
      self->free(p);
      barrier();
    }
  }
  void batches(long n, int size) {
    Self *self = static_cast<Self *>(this);
    void *blocks[MOST];
    for (long i = 0; i < n; i += size) {
      for (int k = 0; k < size; k++) {
        blocks[k] = self->alloc();
        opaque(blocks[k]);
      }
      for (int k = 0; k < size; k++) {
        self->free(blocks[k]);
        barrier();
      }
    }
  }
};

struct Malloc : Pairs<Malloc> {
  void *alloc() { return ::malloc(BLOCK); }
  void free(void *p) { ::free(p); }
};

struct BoostPool : Pairs<BoostPool> {
  boost::pool<> pool{BLOCK, COUNT};
  void *alloc() { return pool.malloc(); }
  void free(void *p) { pool.free(p); }
};

// The usual lock-free pool: a stack of the indices of the free blocks.
struct BoostStack : Pairs<BoostStack> {
  boost::lockfree::stack<int, boost::lockfree::fixed_sized<true>> stack{COUNT};
  char *blocks = static_cast<char *>(aligned_alloc(64, BLOCK *COUNT));
  BoostStack() {
    for (size_t i = 0; i < COUNT; i++) stack.push(static_cast<int>(i));
  }
  void *alloc() {
    int i;
    return stack.pop(i) ? blocks + static_cast<size_t>(i) * BLOCK : nullptr;
  }
  void free(void *p) { stack.push(static_cast<int>((static_cast<char *>(p) - blocks) / BLOCK)); }
};

// A hand-written pool: a list through the free blocks and a mutex with priority inheritance. It checks no arguments.
struct PiMutex : Pairs<PiMutex> {
  struct Node {
    Node *next;
  };
  pthread_mutex_t lock;
  Node *first = nullptr;
  PiMutex() {
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    if (pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT) || pthread_mutex_init(&lock, &attr)) abort();
    char *blocks = static_cast<char *>(aligned_alloc(64, BLOCK * COUNT));
    for (size_t i = 0; i < COUNT; i++) free(blocks + i * BLOCK);
  }
  void *alloc() {
    pthread_mutex_lock(&lock);
    Node *node = first;
    if (node) first = node->next;
    pthread_mutex_unlock(&lock);
    return node;
  }
  void free(void *p) {
    pthread_mutex_lock(&lock);
    Node *node = static_cast<Node *>(p);
    node->next = first;
    first = node;
    pthread_mutex_unlock(&lock);
  }
};

int64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

template <class C>
void measure_pairs(const char *name, C &contestant, void (C::*run)(long, int), long pairs, int size) {
  (contestant.*run)(pairs / 10, size);
  const int64_t begin = now();
  (contestant.*run)(pairs, size);
  printf("%s %.3f\n", name, static_cast<double>(now() - begin) / static_cast<double>(pairs));
}

uint64_t seed;

uint64_t draw() {
  seed ^= seed << 13;
  seed ^= seed >> 7;
  seed ^= seed << 17;
  return seed;
}

// Between two timed pairs the heap changes: blocks of all sizes, including large ones, come and go. The timed block is
// also held for a while, so that free lists are long and cold.
template <class C> void measure_tail(const char *name, C &contestant, long operations) {
  seed = 88172645463325252u;
  std::vector<void *> heap(4096, nullptr), held(COUNT / 2, nullptr);
  std::vector<int64_t> times(static_cast<size_t>(operations));
  for (auto &time : times) {
    for (int i = 0; i < 4; i++) {
      void *&slot = heap[draw() % heap.size()];
      ::free(slot);
      const size_t size = draw() % 256 ? 16 + draw() % 2048 : 1 << (16 + draw() % 4);
      slot = ::malloc(size);
      memset(slot, 1, size < 4096 ? size : 4096);
    }
    void *&slot = held[draw() % held.size()];
    const int64_t begin = now();
    if (slot) contestant.free(slot);
    slot = contestant.alloc();
    opaque(slot);
    time = now() - begin;
    if (!slot) abort();
    memset(slot, 1, BLOCK);
  }
  for (void *p : heap) ::free(p);
  for (void *p : held) {
    if (p) contestant.free(p);
  }
  std::sort(times.begin(), times.end());
  const auto at = [&](double share) { return static_cast<long>(times[static_cast<size_t>(share * (operations - 1))]); };
  printf("%s %ld %ld %ld %ld\n", name, at(0.5), at(0.99), at(0.9999), at(1));
}

void *idle(void *) {
  pause();
  return nullptr;
}

} // namespace

int main(int argc, char **argv) {
  // The C library omits atomics while a process has one thread, but a process with a real-time loop has several.
  pthread_t thread;
  if (pthread_create(&thread, nullptr, idle, nullptr)) return 1;
  Ours single{1}, shared{2}, mutex{3};
  Malloc heap;
  BoostPool pool;
  BoostStack stack;
  PiMutex by_hand;
  const auto each = [&](auto measure) {
    measure("single", single);
    measure("boost::pool", pool);
    measure("malloc", heap);
    measure("shared", shared);
    measure("boost::lockfree::stack", stack);
    measure("mutex", mutex);
    measure("pi-mutex", by_hand);
  };
  const std::string mode = argc > 1 ? argv[1] : "";
  const int size = mode == "batches" && argc == 5 ? atoi(argv[4]) : 1;
  if ((mode == "pairs" && argc == 4) ||
      (mode == "batches" && argc == 5 && size > 0 && size <= static_cast<int>(MOST))) {
    for (int i = 0; i < atoi(argv[2]); i++) {
      each([&](auto name, auto &c) {
        using C = std::remove_reference_t<decltype(c)>;
        measure_pairs<C>(name, c, mode == "pairs" ? &C::pairs : &C::batches, atol(argv[3]), size);
      });
    }
  } else if (mode == "tail" && argc == 3) {
    each([&](auto name, auto &c) { measure_tail(name, c, atol(argv[2])); });
  } else {
    fprintf(stderr, "usage: %s pairs ROUNDS PAIRS | batches ROUNDS PAIRS SIZE | tail OPERATIONS\n", argv[0]);
    return 2;
  }
}
