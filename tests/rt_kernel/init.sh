#!/bin/busybox sh
# The only program of the small system: mounts what a machine has, runs the examination, and switches the machine off.
/bin/busybox mkdir -p /proc /sys /dev /tmp /sys/fs/cgroup
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mkdir -p /dev/shm
/bin/busybox mount -t tmpfs shm /dev/shm
/bin/busybox mount -t tmpfs tmp /tmp
/bin/busybox mount -t debugfs debug /sys/kernel/debug
/bin/busybox mount -t cgroup2 cgroup /sys/fs/cgroup
. /environment
"$PYTHON" -P /inside.py
echo "==exit $?=="
/bin/busybox poweroff -f
