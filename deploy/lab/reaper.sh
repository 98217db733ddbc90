#!/bin/bash
# reaper.sh DIR: removes the lab whose folder is DIR, once stdin ends.
#
# The program that runs a lab holds the other end of stdin: when it ends, even by SIGKILL, the kernel closes it.
# "keep" on stdin says that the lab is to stay. With </dev/null it removes at once, and twice does no harm.
dir=$1
trap '' HUP INT TERM

pids() { for namespace in "${namespaces[@]}"; do ip netns pids "$namespace" 2>/dev/null; done; }

# Everything that runs on the lab's hosts is the lab's.
end_processes() {
	local signal tenths found pid step
	# TERM is for all but PostgreSQL, which regiond ends itself; QUIT makes one that has lost its regiond let go of
	# its shared memory.
	for step in TERM:80 QUIT:20 KILL:100; do
		signal=${step%:*} tenths=${step#*:}
		found=$(pids)
		[ -z "$found" ] && return
		for pid in $found; do
			[ "$signal" = TERM ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = postgres ] && continue
			kill "-$signal" "$pid" 2>/dev/null
		done
		while [ "$tenths" -gt 0 ]; do
			tenths=$((tenths - 1))
			sleep 0.1
			found=$(pids)
			[ -z "$found" ] && return
			# A BMC may have started its machine just now.
			[ "$signal" = KILL ] && kill -KILL $found 2>/dev/null
		done
	done
}

main() {
	local word
	read -r word
	[ "$word" = keep ] && exit 0
	[ -f "$dir/namespaces" ] || exit 0
	mapfile -t namespaces <"$dir/namespaces"
	end_processes
	for namespace in "${namespaces[@]}"; do
		[ -e "/run/netns/$namespace" ] && ip netns del "$namespace"
	done
	rm -rf "$dir"
	# The folder of all labs goes with the last one.
	rmdir "$(dirname "$dir")" 2>/dev/null
	exit 0
}
main
