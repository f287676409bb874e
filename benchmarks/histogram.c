/* Print the nanoseconds to record a duration in one of four histograms, as a cycle does, for each of ROUNDS rounds. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <rtloop/histogram.h>

static double now_ns(void) {
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

enum { HISTOGRAMS = 4, VALUES = 4096 };

int main(int argc, char **argv) {
  const int rounds = argc > 1 ? atoi(argv[1]) : 9;
  const int operations = argc > 2 ? atoi(argv[2]) : 4000000;
  static rt_histogram_t histograms[HISTOGRAMS];
  static int64_t values[VALUES];
  uint64_t seed = 88172645463325252u; /* xorshift64: Marsaglia, Xorshift RNGs, 2003 */
  for (int i = 0; i < HISTOGRAMS; i++) rt_histogram_clear(&histograms[i]);
  for (int i = 0; i < VALUES; i++) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    values[i] = 1000 + (int64_t)(seed % 9000);
  }
  for (int round = 0; round < rounds; round++) {
    const double begin = now_ns();
    for (int i = 0; i < operations; i++) rt_histogram_record(&histograms[i % HISTOGRAMS], values[i % VALUES]);
    printf("%.4f\n", (now_ns() - begin) / operations);
  }
  return histograms[0].counts[0] > 0; /* none is 0 */
}
