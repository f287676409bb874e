// Compares a push and a pop of 8 and of 64 bytes in rtloop's ring and in boost's queue for one producer and consumer.
//
//   peers single ROUNDS ITEMS          prints "NAME NS" for each contestant, ROUNDS times: ns of a push and a pop in turn
//   peers threads ROUNDS ITEMS A B     prints the same between a producer on CPU A and a consumer on CPU B: ns an item
//
// All have room for 1024 items, and know an item's size at compile time. One of boost's knows the capacity, too.
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <atomic>
#include <boost/lockfree/spsc_queue.hpp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <thread>

extern "C" {
void *ours_make(size_t item_bytes);
void *ours_make_latest(size_t value_bytes);
void ours_pairs_8(void *ring, long count);
void ours_produce_8(void *ring, long count);
void ours_consume_8(void *ring, long count);
void ours_pairs_64(void *ring, long count);
void ours_produce_64(void *ring, long count);
void ours_consume_64(void *ring, long count);
void ours_latest(void *latest, long count);
}

namespace {

struct Item {
  uint64_t words[8];
};

inline uint64_t &first(uint64_t &item) { return item; }
inline uint64_t &first(Item &item) { return item.words[0]; }
// Forces an item into memory as a whole: the compiler can neither assemble it in registers nor omit unread parts.
template <class T> inline void whole(T &item) { __asm__ volatile("" : "+m"(item)::"memory"); }
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  __asm__ volatile("isb" ::: "memory");
#endif
}

template <class T, class Queue> struct Boost {
  Queue queue;

  void pairs(long count) {
    T in{}, out;
    for (long i = 0; i < count; i++) {
      first(in) = uint64_t(i);
      whole(in);
      if (!queue.push(in)) abort();
      if (!queue.pop(out)) abort();
      whole(out);
      if (first(out) != uint64_t(i)) abort();
    }
  }
  void produce(long count) {
    T in{};
    for (long i = 0; i < count; i++) {
      first(in) = uint64_t(i);
      whole(in);
      while (!queue.push(in)) relax();
    }
  }
  void consume(long count) {
    T out;
    for (long i = 0; i < count; i++) {
      while (!queue.pop(out)) relax();
      whole(out);
      if (first(out) != uint64_t(i)) abort();
    }
  }
};

using namespace boost::lockfree;
template <class T> using Constant = Boost<T, spsc_queue<T, capacity<1024>>>;
// Its capacity is chosen at run time, as that of rtloop's ring is.
template <class T> using Chosen = Boost<T, spsc_queue<T>>;

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) * 1e9 + double(t.tv_nsec);
}

double time_of(const std::function<void()> &work, long count) {
  const double begin = now();
  work();
  return (now() - begin) / double(count);
}

void pin(int cpu, int other = -1) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  if (other >= 0) CPU_SET(other, &set);
  if (pthread_setaffinity_np(pthread_self(), sizeof set, &set)) abort();
}

double time_of_two(const std::function<void()> &produce, const std::function<void()> &consume, long count, int a, int b) {
  std::atomic<int> ready{0};
  const auto meet = [&ready] {
    for (ready++; ready < 2;) relax();
  };
  pin(a, b);  // initial affinity of the new thread, so that it can run beside the spinning one
  std::thread producer([&] {
    pin(a);
    meet();
    produce();
  });
  pin(b);
  meet();
  const double ns = time_of(consume, count);
  producer.join();
  return ns;
}

}  // namespace

int main(int argc, char **argv) {
  if (argc < 4) return 2;
  const std::string mode = argv[1];
  const long rounds = atol(argv[2]), count = atol(argv[3]);
  // Raise the priority if that is permitted, so that other work on the machine disturbs no contestant.
  const sched_param priority{1};
  sched_setscheduler(0, SCHED_FIFO, &priority);
  void *const ring8 = ours_make(8), *const ring64 = ours_make(64), *const latest = ours_make_latest(64);
  const auto boost8 = std::make_unique<Constant<uint64_t>>();
  const auto boost64 = std::make_unique<Constant<Item>>();
  Chosen<uint64_t> chosen8{spsc_queue<uint64_t>(1024)};
  Chosen<Item> chosen64{spsc_queue<Item>(1024)};
  for (long round = 0; round < rounds; round++) {
    if (mode == "single") {
      printf("ring-8 %.4f\n", time_of([&] { ours_pairs_8(ring8, count); }, count));
      printf("boost-8 %.4f\n", time_of([&] { boost8->pairs(count); }, count));
      printf("chosen-8 %.4f\n", time_of([&] { chosen8.pairs(count); }, count));
      printf("ring-64 %.4f\n", time_of([&] { ours_pairs_64(ring64, count); }, count));
      printf("boost-64 %.4f\n", time_of([&] { boost64->pairs(count); }, count));
      printf("chosen-64 %.4f\n", time_of([&] { chosen64.pairs(count); }, count));
      printf("latest-64 %.4f\n", time_of([&] { ours_latest(latest, count); }, count));
    } else {
      const int a = argc > 5 ? atoi(argv[4]) : 0, b = argc > 5 ? atoi(argv[5]) : 1;
      printf("ring-8 %.4f\n", time_of_two([&] { ours_produce_8(ring8, count); },
                                          [&] { ours_consume_8(ring8, count); }, count, a, b));
      printf("boost-8 %.4f\n", time_of_two([&] { boost8->produce(count); }, [&] { boost8->consume(count); }, count, a, b));
      printf("ring-64 %.4f\n", time_of_two([&] { ours_produce_64(ring64, count); },
                                           [&] { ours_consume_64(ring64, count); }, count, a, b));
      printf("boost-64 %.4f\n",
             time_of_two([&] { boost64->produce(count); }, [&] { boost64->consume(count); }, count, a, b));
    }
    fflush(stdout);
  }
  return 0;
}
