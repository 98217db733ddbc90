//! Who asks, as far as a limit may know: by what the network or a certificate says, never by what the asker says.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// The holder of a share.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// A host that connected to us.
    Host(IpAddr),
    /// A machine whose rack passed its request on.
    Behind { rack: Arc<str>, address: IpAddr },
    /// A rack by its certificate.
    Rack(Arc<str>),
    /// A machine by its token.
    Machine(Arc<str>),
    /// An account by its key.
    Account(i32),
}

impl Source {
    /// Of an IPv6 host its /64: whoever has one address of a network has them all.
    pub fn host(address: IpAddr) -> Self {
        Source::Host(match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = u128::from(address) & !u128::from(u64::MAX);
                IpAddr::V6(Ipv6Addr::from(network))
            }
            address => address,
        })
    }

    pub fn behind(rack: &str, address: IpAddr) -> Self {
        Source::Behind {
            rack: rack.into(),
            address: address.to_canonical(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_its_address_or_its_network() {
        let host = |text: &str| Source::host(text.parse().unwrap());
        assert_eq!(host("10.0.0.1"), host("::ffff:10.0.0.1"));
        assert_ne!(host("10.0.0.1"), host("10.0.0.2"));
        assert_eq!(host("2001:db8::1"), host("2001:db8::ffff:1"));
        assert_ne!(host("2001:db8::1"), host("2001:db8:0:1::1"));
        let address = "10.0.0.1".parse().unwrap();
        assert_ne!(host("10.0.0.1"), Source::behind("aaaaaa", address));
        assert_ne!(
            Source::behind("bbbbbb", address),
            Source::behind("aaaaaa", address)
        );
    }
}
