//! Who a client is, and which shard owns it.
//!
//! One boot asks by three or four client ids and must keep one address, so a client is its MAC on its link. Option 61
//! counts where a subnet opts in, and where there is no MAC: IPoIB (RFC 4390), hlen 0, an address of some other length.
//! Who has neither is known by its hardware type and address, whatever they are.

use lease::{CLIENT_ID_BYTES_MAX, Client, ClientKey, VlanId};
use wire::dhcp4::View;
use wire::ethernet::Mac;

use crate::counters::Drop;

/// The client that sent `query`, on the link `vlan`.
pub fn identity(query: &View<'_>, vlan: VlanId, client_id_identity: bool) -> Result<Client, Drop> {
    let key = match (mac(query), client_id(query)) {
        (Some(_), Some(id)) if client_id_identity => ClientKey::ClientId(id.into()),
        (Some(mac), _) => ClientKey::Mac(mac.0),
        (None, Some(id)) => ClientKey::ClientId(id.into()),
        (None, None) => hardware(query).ok_or(Drop::NoIdentity)?,
    };
    Ok(Client { vlan, key })
}

/// The MAC that a client goes by. Zeros and the broadcast address are nobody's; one with the group bit, which no card
/// has, is what somebody has set.
pub(crate) fn mac(query: &View<'_>) -> Option<Mac> {
    query
        .mac()
        .filter(|mac| *mac != Mac::ZERO && *mac != Mac::BROADCAST)
}

/// An empty one names nobody (RFC 2132 §9.14). In parts (RFC 3396) it may be longer than the spool and the link can
/// carry.
fn client_id<'a>(query: &View<'a>) -> Option<&'a [u8]> {
    query
        .client_id()
        .filter(|id| (1..=CLIENT_ID_BYTES_MAX).contains(&id.len()))
}

/// The client id that RFC 2132 §9.14 makes of a hardware address: the type, then the address.
fn hardware(query: &View<'_>) -> Option<ClientKey> {
    let address = query.chaddr();
    let is_mac = query.mac().is_some(); // then it is nobody's
    if is_mac || address.iter().all(|octet| *octet == 0) {
        return None;
    }
    let id: Vec<u8> = std::iter::once(query.htype())
        .chain(address.iter().copied())
        .collect();
    Some(ClientKey::ClientId(id.into()))
}

/// The shard that owns a client. For a MAC it is the formula of the kernel's packet filter, so the packet is
/// already there; a client known by its id may arrive elsewhere and has to be handed over.
pub fn shard_of(key: &ClientKey, shards: u32) -> u32 {
    let hash = match key {
        ClientKey::Mac(mac) => return shard_of_mac(Mac(*mac), shards),
        ClientKey::ClientId(id) | ClientKey::DuidIaid(id) => fnv(id),
    };
    hash % shards.max(1)
}

/// The kernel filter's formula: the last four octets of the MAC as a big-endian number, multiplied, the top octet.
pub fn shard_of_mac(mac: Mac, shards: u32) -> u32 {
    let [_, _, c, d, e, f] = mac.0;
    (u32::from_be_bytes([c, d, e, f]).wrapping_mul(2_654_435_761) >> 24) % shards.max(1)
}

/// FNV-1a, 32 bits: the same in every process and version, which a seeded hash is not.
fn fnv(octets: &[u8]) -> u32 {
    octets.iter().fold(0x811c_9dc5, |hash: u32, octet| {
        (hash ^ u32::from(*octet)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_the_kernel_filters() {
        // 0x0000_0105 and 0xffff_ffff times 2654435761, modulo 2^32: the top octets are 0x4e and 0x61.
        let cases = [
            (Mac([0x52, 0x54, 0, 0, 1, 5]), 4, 0x4e % 4),
            (Mac([0x52, 0x54, 0, 0, 0, 0]), 4, 0),
            (Mac([0x52, 0x54, 0xff, 0xff, 0xff, 0xff]), 256, 0x61),
            (Mac([0x52, 0x54, 0xff, 0xff, 0xff, 0xff]), 0, 0),
        ];
        for (mac, shards, want) in cases {
            assert_eq!(shard_of_mac(mac, shards), want, "{mac} of {shards}");
            assert_eq!(shard_of(&ClientKey::Mac(mac.0), shards), want);
        }
        // The published FNV-1a test vector of "a".
        assert_eq!(fnv(b"a"), 0xe40c_292c);
    }
}
