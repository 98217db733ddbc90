#!/bin/bash
# chassis.sh MC get|check|set NAME [VALUE]...: ipmi_sim calls it for the chassis. It starts and ends QEMU.
#
# Answers at once and says the same to a repeated request: IPMI clients send again when an answer is late.
# State is in the script's own folder: qemu.args (one argument a line), pid, dying, boot.
dir=$(cd "$(dirname "$0")" && pwd)
log=$dir/chassis.log
exec 9>"$dir/lock"
flock 9
shift
echo "$(date +%T.%3N) $*" >>"$log"

is_qemu() { [ -n "$1" ] && [ "$(cat "/proc/$1/comm" 2>/dev/null)" = qemu-system-x86 ]; }
running() { is_qemu "$(cat "$dir/pid" 2>/dev/null)"; }

start() {
	running && return
	local dying i nic=2 disk=1 args
	# A killed emulator takes a second or two to give its memory and its tap back.
	dying=$(cat "$dir/dying" 2>/dev/null)
	for ((i = 0; i < 250; i++)); do
		is_qemu "$dying" || break
		sleep 0.02
	done
	rm -f "$dir/dying"
	[ "$(cat "$dir/boot" 2>/dev/null)" = pxe ] && nic=1 disk=2
	# The boot device holds for one boot, as on real BMCs.
	echo default >"$dir/boot"
	mapfile -t args < <(sed "s/@NIC@/$nic/; s/@DISK@/$disk/" "$dir/qemu.args")
	# ipmi_sim waits for the end of our stdout, and the lock must not live on in QEMU.
	if ! qemu-system-x86_64 "${args[@]}" -daemonize -pidfile "$dir/pid" </dev/null >>"$log" 2>&1 9>&-; then
		echo "$(date +%T.%3N) QEMU did not start" >>"$log"
	fi
}

stop() {
	running || return
	mv "$dir/pid" "$dir/dying"
	kill -KILL "$(cat "$dir/dying")"
}

operation=$1
shift
case $operation in
get | check)
	for name in "$@"; do
		case $name in
		power) if running; then echo power:1; else echo power:0; fi ;;
		boot) echo "boot:$(cat "$dir/boot" 2>/dev/null || echo default)" ;;
		*) echo "$name:0" ;;
		esac
	done
	;;
set)
	while [ $# -gt 0 ]; do
		case $1 in
		power) if [ "$2" = 1 ]; then start; else stop; fi ;;
		reset) running && stop && start ;;
		boot) echo "$2" >"$dir/boot" ;;
		shutdown) stop ;;
		esac
		shift 2
	done
	;;
esac
exit 0
