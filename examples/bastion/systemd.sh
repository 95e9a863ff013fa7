#!/bin/sh
# systemd.sh DIR makes a machine's files: those of this one, or those in $LOWER, over which everything
# that is written stays in DIR.
# systemd.sh DIR boot CGROUP boots it: systemd becomes process 1 in namespaces of its own.
set -eu
dir=$1
root=$dir/root
if [ $# = 1 ]; then
	mount -t tmpfs tmpfs "$dir"
	mkdir "$dir/upper" "$dir/work" "$root" "$dir/cgroup"
	mount -t cgroup2 cgroup2 "$dir/cgroup"
	mount -t overlay overlay -o "lowerdir=${LOWER:-/},upperdir=$dir/upper,workdir=$dir/work" "$root"
	mount -t proc proc "$root/proc" # for what is run while the machine is off
	mount --bind /dev "$root/dev"
	# Nothing starts but what systemd itself needs.
	rm -rf "$root"/etc/systemd/system/* "$root"/lib/systemd/system/multi-user.target.wants/* \
		"$root"/lib/systemd/system/timers.target.wants/* "$root"/lib/systemd/system/graphical.target.wants/* \
		"$root"/etc/spa "$root"/var/lib/spa "$root"/etc/nftables.conf
	ln -s /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
	for unit in systemd-udevd.service systemd-udev-trigger.service systemd-networkd.service systemd-resolved.service \
		systemd-timesyncd.service systemd-binfmt.service systemd-update-utmp.service systemd-firstboot.service \
		systemd-random-seed.service systemd-machine-id-commit.service systemd-sysctl.service systemd-modules-load.service \
		systemd-remount-fs.service sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
		sys-fs-fuse-connections.mount dev-hugepages.mount dev-mqueue.mount modprobe@.service; do
		ln -s /dev/null "$root/etc/systemd/system/$unit"
	done
	echo 0123456789abcdef0123456789abcdef > "$root/etc/machine-id"
	echo ready
	exec sleep infinity
fi
if [ "$2" = boot ]; then
	mkdir -p "$3"
	echo $$ > "$3/cgroup.procs"
	exec unshare -mpuiC --fork --kill-child --propagation private "$0" "$dir" init
fi
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
	: > "$root/dev/$device"
	mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx" # PrivateDevices looks for it
: > "$root/dev/console"
mkdir "$root/run/before"
cd "$root"
pivot_root . run/before
umount -l /run/before
rmdir /run/before
exec env -i container=lab PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
	/lib/systemd/systemd --log-target=journal --show-status=0
