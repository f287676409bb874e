"""Let the drive's encoder fall silent after half a second, and check that the motor still comes to rest."""

from watchdog import Brake, Drive, Motor

from rtloop import LoopGroup, WatchdogError

motor = Motor()
drive = Drive("1kHz", motor=motor, silent_at=500, name="drive", strict=False)
brake = Brake("500Hz", motor=motor, name="brake", strict=False)
group = LoopGroup([drive, brake], name="servo", on_failure="hook", watchdog=50)

try:
    group.run("10s")
except WatchdogError as error:
    print(f"{error}\n")
else:
    raise SystemExit("the encoder answered for ten seconds")

for stats in group.stats.values():
    print(stats)
for grant in group.grants["watchdog"]:
    print("watchdog:", grant)
voltage, speed = motor.state
print(f"\nthe motor has {voltage:.1f} V and turns at {speed:.2f} rad/s; drive: {drive.state}, brake: {brake.state}")
if voltage or speed > 0.1 or (drive.state, brake.state) != ("failed", "stopped"):
    raise SystemExit("the motor did not come to rest")
