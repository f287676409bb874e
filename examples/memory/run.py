"""Run the loop for five seconds; print the memory's grants, and the page faults charged to the loop's thread."""

from memory_loop import Filter

from rtloop import HugeBuffer, Pool, memory

pools = [Pool(256, 64, kind=kind) for kind in ("single", "shared", "mutex")]
samples = HugeBuffer("16M")
for pool in pools:
    print(pool)
for grant in samples.grants:
    print(grant)

loop = Filter("2kHz", pools=pools, samples=samples, strict=False)
stats = loop.run(duration="5s")
print(stats)
print(memory.status())

written = samples.array("f8")[: min(stats.cycles, samples.nbytes // 8)]
print(f"{loop.exhausted} allocations failed, {loop.refused} frees refused; the last sample is at {written[-1]:.4f} s")
for pool in pools:
    pool.check()
