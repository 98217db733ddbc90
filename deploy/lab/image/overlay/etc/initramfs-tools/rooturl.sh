# Sourced by the initrd's /init as /scripts/rooturl: mountroot() for root=squash:http://URL, which Ubuntu's
# cloud-initramfs-rooturl provides and Debian has no package for.
mount_top() { :; }
mount_premount() { :; }
mount_bottom() { :; }
mountroot() {
	# MAAS says ip=...:BOOTIF:dhcp. Debian's configure_networking would wait 180 s for a device of that name;
	# without it, it takes the device that BOOTIF= names.
	case "$IP" in *:BOOTIF*) IP="${IP%%:BOOTIF*}:${IP#*:BOOTIF}"; export IP ;; esac
	for m in virtio_pci virtio_net loop squashfs overlay; do modprobe -q $m; done
	# Links first: ipconfig's first DISCOVER is lost before carrier, which costs a round of 2 s. And
	# configure_networking's "udevadm settle" costs up to 10 s under emulation and nothing here needs it.
	for d in /sys/class/net/*; do d=${d##*/}; [ "$d" = lo ] || ip link set dev "$d" up; done
	n=0
	while [ $n -lt 20 ] && ! grep -q 1 /sys/class/net/e*/carrier 2>/dev/null; do n=$((n + 1)); sleep 0.05; done
	wait_for_udev() { :; }
	configure_networking
	url="${ROOT#squash:}"
	mkdir -p /run/rooturl
	mount -t tmpfs -o size=90% tmpfs /run/rooturl
	log_begin_msg "rooturl: fetching $url"
	n=0
	until wget -q -O /run/rooturl/root.squashfs "$url"; do
		n=$((n + 1))
		[ $n -gt 10 ] && panic "rooturl: cannot fetch $url"
		sleep 1
	done
	log_end_msg
	mount -t squashfs -o ro,loop /run/rooturl/root.squashfs "${rootmnt}" || panic "rooturl: mount failed"
	echo "rooturl: root mounted at uptime $(cut -d' ' -f1 /proc/uptime)"
}
