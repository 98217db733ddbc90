#!/bin/sh
# What a distribution's hook script does for dhclient ($reason) and udhcpc ($1): the address, the route, and, in
# $HOOK_LOG, a line of what came. dhcpcd configures its host itself and only has the line written. No resolv.conf.
#
# HOOK_CHECK=1: asks by ARP whether the address is taken, and fails then: dhclient declines it (dhclient-script(8)).
event=${reason:-$1}
address=${new_ip_address:-$ip} mask=${new_subnet_mask:-$subnet} gateway=${new_routers:-$router}
servers=$(echo ${new_domain_name_servers:-$dns} | tr ' ' ,)
case $event in
BOUND | REBOOT | bound)
	if [ "$HOOK_CHECK" = 1 ] && ! busybox arping -q -D -c 2 -w 2 -I "$interface" "$address"; then
		exit 1
	fi
	;;
esac
case $event in
BOUND | REBOOT | RENEW | REBIND | bound | renew)
	if [ "$HOOK_CONFIGURES" = 1 ]; then
		ip address replace "$address/$mask" dev "$interface"
		[ -n "$gateway" ] && ip route replace default via "${gateway%% *}" dev "$interface"
	fi
	;;
PREINIT | EXPIRE | FAIL | RELEASE | STOP | deconfig | leasefail | nak)
	[ "$HOOK_CONFIGURES" = 1 ] && ip -4 address flush dev "$interface"
	;;
esac
echo "$event address=$address mask=$mask router=$gateway dns=$servers" \
	"lease_secs=${new_dhcp_lease_time:-$lease} server=${new_dhcp_server_identifier:-$serverid}" >>"$HOOK_LOG"
exit 0
