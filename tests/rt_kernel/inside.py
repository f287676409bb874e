"""What runs inside of the machine with the PREEMPT_RT kernel: the doctor, twice, and a short loop."""

import json
import subprocess
import sys

import rtloop

print("==page==", flush=True)
subprocess.run([sys.executable, "-P", "-m", "rtloop", "doctor"], check=False)
print("==doctor==", flush=True)
done = subprocess.run([sys.executable, "-P", "-m", "rtloop", "doctor", "--json"], stdout=subprocess.PIPE, text=True)
print(json.dumps(json.loads(done.stdout)))
print("==loop==", flush=True)
loop = rtloop.RTLoop("10ms", name="inside")
stats = loop.run(duration="1s")
print(json.dumps(stats.to_dict()))
print("==machine==", flush=True)
subprocess.run([sys.executable, "-P", "/capture.py"], check=False)
print("==end==", flush=True)
