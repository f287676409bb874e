#!/bin/busybox sh
# The first program of the small machine: mounts what a machine has, runs the job, and ends by a reboot (-no-reboot).
/bin/busybox mkdir -p /proc /sys /dev /tmp /var/tmp /run /mnt
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mkdir -p /dev/shm /dev/pts
/bin/busybox mount -t devpts -o ptmxmode=666 devpts /dev/pts
/bin/busybox mount -t tmpfs shm /dev/shm
/bin/busybox mount -t tmpfs tmp /tmp
/bin/busybox mount -o mode=755 -t tmpfs run /run
/bin/busybox mount -t debugfs debug /sys/kernel/debug
/bin/busybox mount -t tracefs trace /sys/kernel/tracing
/bin/busybox mount -t cgroup2 cgroup /sys/fs/cgroup
/bin/busybox --install -s /bin
ip link set lo up
stty -onlcr
. /environment
cd /src
. /job.sh </dev/null
reboot -f
