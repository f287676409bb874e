"""Run the loop for two seconds and print what happened."""

from first_loop import Sine

stats = Sine("1kHz", strict=False).run(duration="2s")
print(stats)
