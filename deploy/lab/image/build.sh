#!/bin/bash
# build.sh OUTDIR: builds the lab's ephemeral Linux, from Debian packages only: OUTDIR/{vmlinuz,initrd,squashfs}.
#
# It is Debian 12 with what MAAS's own ephemeral images have and Debian lacks: root=squash:http://URL (overlay/).
# Needs root (mmdebstrap mounts), mmdebstrap, squashfs-tools and zstd. Packages come from the host's own mirror.
# What is left out, and why, is in README.md beside this file.
set -euo pipefail
umask 022
out=$1
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
chmod 755 "$work"

# The host's own sources when they are of the right release (a mirror near by), else Debian's.
sources=()
for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
	if [ -s "$file" ] && grep -q bookworm "$file"; then sources=("$file"); break; fi
done
if [ ${#sources[@]} -eq 0 ]; then
	sources=('deb http://deb.debian.org/debian bookworm main' 'deb http://deb.debian.org/debian-security bookworm-security main')
fi
proxy=()
eval "$(apt-config shell host_proxy Acquire::http::Proxy)"
if [ -n "${host_proxy:-}" ]; then proxy=(--aptopt="Acquire::http::Proxy \"$host_proxy\""); fi

packages=(
	linux-image-cloud-amd64 initramfs-tools busybox-static zstd kmod udev
	systemd systemd-sysv dbus netbase iproute2 ifupdown isc-dhcp-client
	cloud-init overlayroot cloud-initramfs-dyn-netconf ca-certificates
	python3 python3-oauthlib python3-yaml lshw dmidecode
)
# Timers and services that a machine which lives for a minute has no use for.
masked=(
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
	getty@tty1.service serial-getty@ttyS0.service systemd-pstore.service systemd-binfmt.service
	ifupdown-pre.service cloud-config.service cloud-init-hotplugd.socket systemd-journal-flush.service
	systemd-random-seed.service systemd-update-utmp.service systemd-update-utmp-runlevel.service
	systemd-logind.service
)

# The overlay goes in before linux-image is configured, so its own postinst builds the final initrd.
mmdebstrap --quiet --variant=minbase --format=directory "${proxy[@]}" \
	--aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
	--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
	--dpkgopt='path-exclude=/usr/share/doc/*' \
	--essential-hook="copy-in \"$here/overlay/etc\" /" \
	--include="$(IFS=,; echo "${packages[*]}")" \
	bookworm "$work/root" "${sources[@]}"

root=$work/root
echo ephemeral >"$root/etc/hostname"
: >"$root/etc/machine-id"
# overlayroot finds the root file system by this line, as in Ubuntu's images.
printf 'LABEL=cloudimg-rootfs / ext4 defaults 0 1\n' >"$root/etc/fstab"
for unit in "${masked[@]}"; do ln -sf /dev/null "$root/etc/systemd/system/$unit"; done

kernel=$(ls "$root/lib/modules")
cp "$root/boot/vmlinuz-$kernel" "$out/vmlinuz"
cp "$root/boot/initrd.img-$kernel" "$out/initrd"
chmod 644 "$out/vmlinuz" "$out/initrd"

rm -rf "$root"/boot/* "$root"/usr/share/{lintian,bash-completion,zoneinfo,info,pixmaps} "$root"/var/cache/* \
	"$root"/var/lib/apt/lists
# cloud-init checks its configuration against a schema when it finds jsonschema, and requests prefers chardet when it
# finds it: a fifth of the start-up time of each of three stages, for nothing.
rm -rf "$root"/usr/lib/python3/dist-packages/{jsonschema,pyrsistent,attr,attrs,chardet,pkg_resources}
keep='/(squashfs|overlayfs|virtio|loop|net/ipv6|ipmi|efivarfs|fat|nls|failover|net_failover|rng-core|configfs|fuse|autofs|crc|ext4|jbd2|mbcache|qemu_fw_cfg|dm-mod|8021q|bonding|bridge|stp|llc|garp|mrp)'
(cd "$root/lib/modules/$kernel/kernel" && find . -name '*.ko' | grep -vE "$keep" | xargs rm -f)
chroot "$root" depmod "$kernel"
# Without these marks systemd rebuilds ld.so's cache, the hardware database and more at each boot: /usr looks newer.
touch -r "$root/usr" "$root/etc/.updated" "$root/var/.updated"
mksquashfs "$root" "$out/squashfs" -noappend -quiet -no-progress -comp zstd -Xcompression-level 3
chmod 644 "$out/squashfs"
