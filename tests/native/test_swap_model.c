/* The request of a swap in every interleaving of the control thread and the loop's: it is either taken or withdrawn, and
 * what one side has written before it asks or answers is what the other side finds. The last request is for a step on
 * trial, which fails: as long as the trial lasts, both steps are the loop's. */
#include "model.h"
#include "rtloop/swap.h"

enum { TURNS = 2, WORDS = 2 };

static rt_swap_t swap;
static _Alignas(64) uint64_t request[WORDS + 1]; /* what the control thread fills in, and the answer is written over */
static uint64_t *const incident = &request[WORDS]; /* why the loop has gone back */
static uint64_t asked, answered, withdrawn, taken, reverted;

static void before(void) {
  memset(&swap, 0, sizeof swap);
  memset(request, 0, sizeof request);
  model_share(&swap.state, RT_SWAP_NONE, BOTH);
  model_data(request, 8, WORDS + 1);
  asked = answered = withdrawn = taken = reverted = 0;
}

static void control(void) {
  for (uint64_t round = 1; round <= TURNS; round++) {
    const uint64_t said[WORDS] = {round, round};
    memcpy(request, said, sizeof said); /* the loop's thread has given up what it had before */
    asked++;
    rt_swap_ask(&swap);
    const uint64_t state = rt_swap_state(&swap);
    if (state <= RT_SWAP_TAKEN && rt_swap_withdraw(&swap)) {
      withdrawn++;
      continue;
    }
    uint64_t now = rt_swap_state(&swap);
    if (now == RT_SWAP_ON_TRIAL) now = rt_swap_state(&swap);
#ifdef BROKEN_TRIAL /* takes the new step for the only one */
    if (now < RT_SWAP_DONE) return;
#else
    if (now < RT_SWAP_DONE || now == RT_SWAP_ON_TRIAL) return; /* take_over() or a step runs: nothing may be touched */
#endif
    uint64_t found[WORDS];
    memcpy(found, request, sizeof found);
    CHECK(found[0] == 100 + round && found[1] == 100 + round);
    if (now == RT_SWAP_REVERTED) {
      uint64_t why[1];
      memcpy(why, incident, sizeof why);
      CHECK(round == TURNS && why[0] == 200 + round);
    }
    answered++;
    const uint64_t freed[WORDS] = {999, 999};
    memcpy(request, freed, sizeof freed); /* the step that is not in place */
  }
}

static void loop(void) {
  for (int look = 0; look < TURNS; look++) {
    if (!rt_swap_take(&swap)) continue;
    uint64_t found[WORDS];
    memcpy(found, request, sizeof found);
    CHECK(found[0] == found[1] && found[0] >= 1 && found[0] <= TURNS);
    const uint64_t said[WORDS] = {100 + found[0], 100 + found[0]};
    memcpy(request, said, sizeof said);
    taken++;
    if (found[0] < TURNS) {
      rt_swap_answer(&swap, RT_SWAP_DONE);
      continue;
    }
    rt_swap_answer(&swap, RT_SWAP_ON_TRIAL);
    uint64_t kept[WORDS]; /* a step of the loop, with what the request has named */
    memcpy(kept, request, sizeof kept);
    CHECK(kept[0] == 100 + found[0] && kept[1] == kept[0]);
    const uint64_t why[1] = {200 + found[0]};
    memcpy(incident, why, sizeof why);
    reverted++;
    rt_swap_answer(&swap, RT_SWAP_REVERTED);
  }
}

static void after(void) {
  CHECK(taken + withdrawn <= asked && answered <= taken && reverted <= 1); /* never both */
  CHECK(asked - withdrawn - taken <= 1);
}

int main(void) {
  const uint64_t runs = model_explore(before, control, loop, after);
  CHECK(runs > 50);
  printf("%llu executions\n", (unsigned long long)runs);
  return CHECK_DONE();
}
