/* The request of a swap in every interleaving of the control thread and the loop's: it is either taken or withdrawn, and
 * what one side has written before it asks or answers is what the other side finds. */
#include "model.h"
#include "rtloop/swap.h"

enum { TURNS = 2, WORDS = 2 };

static rt_swap_t swap;
static _Alignas(64) uint64_t request[WORDS]; /* what the control thread fills in, and the answer is written over */
static uint64_t asked, answered, withdrawn, taken;
static uint64_t first_answer;

static void before(void) {
  memset(&swap, 0, sizeof swap);
  memset(request, 0, sizeof request);
  model_share(&swap.state, RT_SWAP_NONE, BOTH);
  model_data(request, 8, WORDS);
  asked = answered = withdrawn = taken = first_answer = 0;
}

static void control(void) {
  for (uint64_t round = 1; round <= TURNS; round++) {
    const uint64_t said[WORDS] = {round, round};
    memcpy(request, said, sizeof request); /* the loop's thread has given up what it had before */
    asked++;
    rt_swap_ask(&swap);
    const uint64_t state = rt_swap_state(&swap);
    if (state <= RT_SWAP_TAKEN && rt_swap_withdraw(&swap)) {
      withdrawn++;
      continue;
    }
    if (rt_swap_state(&swap) < RT_SWAP_DONE) return; /* take_over() runs: nothing may be touched */
    uint64_t found[WORDS];
    memcpy(found, request, sizeof found);
    CHECK(found[0] == 100 + round && found[1] == 100 + round);
    answered++;
  }
}

static void loop(void) {
  for (int look = 0; look < TURNS; look++) {
    if (!rt_swap_take(&swap)) continue;
    uint64_t found[WORDS];
    memcpy(found, request, sizeof found);
    CHECK(found[0] == found[1] && found[0] >= 1 && found[0] <= TURNS);
    const uint64_t said[WORDS] = {100 + found[0], 100 + found[0]};
    memcpy(request, said, sizeof request);
    taken++;
    rt_swap_answer(&swap, RT_SWAP_DONE);
  }
}

static void after(void) {
  CHECK(taken + withdrawn <= asked && answered <= taken); /* never both */
  CHECK(asked - withdrawn - taken <= 1);
}

int main(void) {
  const uint64_t runs = model_explore(before, control, loop, after);
  CHECK(runs > 50);
  printf("%llu executions\n", (unsigned long long)runs);
  return CHECK_DONE();
}
