#!/bin/bash
# chassis.sh MC get|check|set NAME [VALUE]...: a BMC calls it for the chassis. It starts and ends the model machine.
#
# Off is a power cut: the switch port goes first, then every process, so that the network hears no last word. State is
# in the script's own folder: host (the machine's namespace and its switch port), pid, boot.
dir=$(cd "$(dirname "$0")" && pwd)
log=$dir/chassis.log
exec 9>"$dir/lock"
flock 9
shift
echo "$(date +%T.%3N) $*" >>"$log"
read -r namespace port <"$dir/host"

running() {
	local pid stat
	pid=$(cat "$dir/pid" 2>/dev/null) || return 1
	stat=$(cat "/proc/$pid/stat" 2>/dev/null) || return 1
	# Ended, and perhaps not yet waited for by whoever adopted it.
	case $stat in *"(model-machine) Z "*) return 1 ;; *"(model-machine) "*) return 0 ;; esac
	return 1
}

start() {
	local i
	running && return
	echo default >"$dir/boot"
	ip -n "$namespace" address flush dev boot
	ip link set "$port" up
	ip -n "$namespace" link set boot up
	# The BMC waits for the end of our stdout, and the lock must not live on in the machine.
	ip netns exec "$namespace" setsid "$dir/../model-machine" "$dir" </dev/null >>"$dir/console.log" 2>&1 9>&- &
	echo $! >"$dir/pid"
	for ((i = 0; i < 200; i++)); do
		running && return
		sleep 0.01
	done
	echo "$(date +%T.%3N) the machine did not start" >>"$log"
}

stop() {
	running || return
	ip link set "$port" down
	kill -KILL $(ip netns pids "$namespace") 2>/dev/null
	rm -f "$dir/pid"
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
