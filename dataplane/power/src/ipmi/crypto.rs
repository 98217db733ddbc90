//! RMCP+ cipher suites 17 and 3: authentication codes, session keys, and sealed payloads. Pure.
//!
//! IPMI v2.0 §13.28 (algorithms), §13.31 (RAKP and key material), §13.32 (K1, K2), §13.29 (AES-CBC-128).
//! Both suites authenticate, protect and encrypt; the weaker ones of the standard are not implemented, so
//! no BMC can talk us down to them.

use aes::cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit, block_padding::NoPadding};
use hmac::{Hmac, Mac};
use sha1::Sha1;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::wire::WireError;

/// A cipher suite by its hash (IPMI v2.0 table 22-20, id 17 from the 2013 errata).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Suite {
    /// 3: RAKP-HMAC-SHA1, HMAC-SHA1-96, AES-CBC-128.
    Sha1,
    /// 17: RAKP-HMAC-SHA256, HMAC-SHA256-128, AES-CBC-128.
    Sha256,
}

impl Suite {
    pub fn from_id(id: u8) -> Option<Self> {
        match id {
            3 => Some(Self::Sha1),
            17 => Some(Self::Sha256),
            _ => None,
        }
    }

    pub fn id(self) -> u8 {
        match self {
            Self::Sha1 => 3,
            Self::Sha256 => 17,
        }
    }

    /// Authentication, integrity and confidentiality algorithm numbers (tables 13-17 to 13-19).
    pub fn algorithms(self) -> [u8; 3] {
        match self {
            Self::Sha1 => [0x01, 0x01, 0x01],
            Self::Sha256 => [0x03, 0x04, 0x01],
        }
    }

    /// Octets of a RAKP 2 or 3 authentication code.
    pub fn digest_bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    /// Octets of a packet's AuthCode and of RAKP 4's integrity check value.
    pub fn code_bytes(self) -> usize {
        match self {
            Self::Sha1 => 12,
            Self::Sha256 => 16,
        }
    }
}

/// HMAC output: 20 or 32 octets. Zeroed on drop, no Debug; compared in constant time only.
#[derive(Clone)]
pub struct Digest {
    octets: Zeroizing<[u8; 32]>,
    bytes: usize,
}

impl Digest {
    pub fn octets(&self) -> &[u8] {
        &self.octets[..self.bytes]
    }

    /// Whether `code` is this digest, or its first `bytes` octets. Constant time in the content.
    pub fn matches(&self, code: &[u8], bytes: usize) -> bool {
        code.len() == bytes
            && self
                .octets()
                .get(..bytes)
                .is_some_and(|own| bool::from(own.ct_eq(code)))
    }
}

pub fn hmac(suite: Suite, key: &[u8], parts: &[&[u8]]) -> Digest {
    let mut octets = Zeroizing::new([0; 32]);
    match suite {
        Suite::Sha1 => {
            let mut mac = Hmac::<Sha1>::new_from_slice(key).expect("HMAC takes keys of any length");
            parts.iter().for_each(|part| mac.update(part));
            octets[..20].copy_from_slice(&mac.finalize().into_bytes());
        }
        Suite::Sha256 => {
            let mut mac =
                Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
            parts.iter().for_each(|part| mac.update(part));
            octets.copy_from_slice(&mac.finalize().into_bytes());
        }
    }
    Digest {
        octets,
        bytes: suite.digest_bytes(),
    }
}

/// Everything the RAKP codes are made of. `console` is us (SID_M, R_M), `system` the BMC (SID_C, R_C).
#[derive(Clone, Debug)]
pub struct Exchange<'a> {
    pub suite: Suite,
    pub console_id: u32,
    pub system_id: u32,
    pub console_random: [u8; 16],
    pub system_random: [u8; 16],
    pub system_guid: [u8; 16],
    /// Requested privilege and the name-only lookup bit, as sent in RAKP 1.
    pub role: u8,
    pub user: &'a [u8],
}

impl Exchange<'_> {
    fn role_and_length(&self) -> [u8; 2] {
        // Names are at most 16 octets, checked where they are parsed.
        [self.role, self.user.len() as u8]
    }

    /// RAKP 2: what the BMC proves with the user's password (§13.21).
    pub fn rakp2_code(&self, password: &[u8]) -> Digest {
        let parts: &[&[u8]] = &[
            &self.console_id.to_le_bytes(),
            &self.system_id.to_le_bytes(),
            &self.console_random,
            &self.system_random,
            &self.system_guid,
            &self.role_and_length(),
            self.user,
        ];
        hmac(self.suite, password, parts)
    }

    /// RAKP 3: what we prove with it (§13.22).
    pub fn rakp3_code(&self, password: &[u8]) -> Digest {
        let parts: &[&[u8]] = &[
            &self.system_random,
            &self.console_id.to_le_bytes(),
            &self.role_and_length(),
            self.user,
        ];
        hmac(self.suite, password, parts)
    }

    /// Session keys from K_g, or from the password where the BMC has none (§13.31, §13.32).
    pub fn keys(&self, k_g: &[u8]) -> SessionKeys {
        let parts: &[&[u8]] = &[
            &self.console_random,
            &self.system_random,
            &self.role_and_length(),
            self.user,
        ];
        let sik = hmac(self.suite, k_g, parts);
        let k1 = hmac(self.suite, sik.octets(), &[&[0x01; 20]]);
        let k2 = hmac(self.suite, sik.octets(), &[&[0x02; 20]]);
        let mut aes = Zeroizing::new([0; 16]);
        aes.copy_from_slice(&k2.octets()[..16]);
        SessionKeys {
            suite: self.suite,
            sik,
            k1,
            aes,
        }
    }

    /// RAKP 4: the BMC proves K_g (§13.23); [`Suite::code_bytes`] of it are sent.
    pub fn rakp4_code(&self, keys: &SessionKeys) -> Digest {
        let parts: &[&[u8]] = &[
            &self.console_random,
            &self.system_id.to_le_bytes(),
            &self.system_guid,
        ];
        hmac(self.suite, keys.sik.octets(), parts)
    }
}

/// Keys of one session. Zeroed on drop, no Debug.
pub struct SessionKeys {
    suite: Suite,
    sik: Digest,
    k1: Digest,
    aes: Zeroizing<[u8; 16]>,
}

impl SessionKeys {
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// The AuthCode over `signed` (§13.28.4).
    pub(super) fn code(&self, signed: &[u8]) -> Digest {
        hmac(self.suite, self.k1.octets(), &[signed])
    }

    /// IV, then the encrypted payload with its pad 1, 2, 3, .. and pad length (table 13-20).
    pub(super) fn encrypt(&self, iv: [u8; 16], payload: &[u8]) -> Vec<u8> {
        let pad = (16 - (payload.len() + 1) % 16) % 16;
        let mut octets = Vec::with_capacity(16 + payload.len() + pad + 1);
        octets.extend(iv);
        octets.extend(payload);
        octets.extend(1..=pad as u8); // pad is below 16
        octets.push(pad as u8);
        let length = octets.len() - 16;
        cbc::Encryptor::<aes::Aes128>::new((&*self.aes).into(), (&iv).into())
            .encrypt_padded_mut::<NoPadding>(&mut octets[16..], length)
            .expect("padded to whole blocks just above");
        octets
    }

    pub(super) fn decrypt(&self, octets: &[u8]) -> Result<Vec<u8>, WireError> {
        let (iv, blocks) = octets
            .split_first_chunk::<16>()
            .ok_or(WireError::Truncated)?;
        let mut plain = blocks.to_vec();
        cbc::Decryptor::<aes::Aes128>::new((&*self.aes).into(), iv.into())
            .decrypt_padded_mut::<NoPadding>(&mut plain)
            .map_err(|_| WireError::Pad)?;
        let pad = usize::from(plain.pop().ok_or(WireError::Truncated)?);
        let length = plain.len().checked_sub(pad).ok_or(WireError::Pad)?;
        let counts = plain[length..]
            .iter()
            .zip(1u8..)
            .all(|(octet, count)| *octet == count);
        // Some BMCs pad with what was in memory: the integrity code has vouched for the packet, so only
        // the length matters. But a pad longer than a block is no pad.
        if pad >= 16 && !counts {
            return Err(WireError::Pad);
        }
        plain.truncate(length);
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn hmac_vectors_of_rfc_2202_and_rfc_4231() {
        let cases = [
            (
                Suite::Sha1,
                vec![0x0b; 20],
                "Hi There",
                "b617318655057264e28bc0b6fb378c8ef146be00",
            ),
            (
                Suite::Sha1,
                b"Jefe".to_vec(),
                "what do ya want for nothing?",
                "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79",
            ),
            (
                Suite::Sha256,
                vec![0x0b; 20],
                "Hi There",
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            ),
        ];
        for (suite, key, data, want) in cases {
            assert_eq!(
                hmac(suite, &key, &[data.as_bytes()]).octets(),
                hex(want),
                "{suite:?}"
            );
        }
    }

    /// Zero-padding a key to 20 octets, as the standard words it, changes nothing in HMAC.
    #[test]
    fn short_passwords_need_no_padding() {
        let padded = *b"secret\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        for suite in [Suite::Sha1, Suite::Sha256] {
            let short = hmac(suite, b"secret", &[b"x"]);
            assert!(short.matches(hmac(suite, &padded, &[b"x"]).octets(), suite.digest_bytes()));
        }
    }

    #[test]
    fn digests_match_only_themselves() {
        let digest = hmac(Suite::Sha256, b"k", &[b"a", b"b"]);
        assert!(digest.matches(hmac(Suite::Sha256, b"k", &[b"ab"]).octets(), 32));
        assert!(digest.matches(&digest.octets()[..16], 16));
        assert!(!digest.matches(&digest.octets()[..16], 32));
        assert!(!digest.matches(&[], 32));
        assert!(!digest.matches(&[0; 64], 64));
        let mut other = digest.octets().to_vec();
        other[31] ^= 1;
        assert!(!digest.matches(&other, 32));
    }

    #[test]
    fn payloads_of_every_length_survive() {
        let exchange = Exchange {
            suite: Suite::Sha256,
            console_id: 1,
            system_id: 2,
            console_random: [3; 16],
            system_random: [4; 16],
            system_guid: [5; 16],
            role: 0x14,
            user: b"maas",
        };
        let keys = exchange.keys(b"secret");
        for length in 0..70 {
            let payload: Vec<u8> = (0..length).collect();
            let sealed = keys.encrypt([7; 16], &payload);
            assert_eq!(sealed.len() % 16, 0);
            assert_eq!(keys.decrypt(&sealed), Ok(payload));
        }
        for length in 0..70 {
            let _ = keys.decrypt(&vec![0xa5; length]);
        }
    }
}
