//! Who this rack is: its key and certificate and the authority it trusts, in one file that only the owner reads.
//!
//! One file, replaced as a whole: after a crash key and certificate always fit together.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// In the state folder.
const FILE: &str = "identity.pem";
const FILE_BYTES_MAX: u64 = 65_536;
const TOKEN_LINE: &str = "token-sha256: ";
const RACK_URI: &str = "muster:rack:";

/// What a rack proves itself with. Not `Debug`: it holds the private key.
pub struct Identity {
    rack: String,
    not_after: SystemTime,
    key: PrivateKeyDer<'static>,
    certificate: CertificateDer<'static>,
    authority: CertificateDer<'static>,
    /// SHA-256 of the token text that enrolled this rack, hex: a token is not tried twice.
    token_hash: String,
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is damaged ({what}): remove it and enrol this rack with a new token", path.display())]
    Damaged { path: PathBuf, what: &'static str },
}

impl Identity {
    /// From parts as the region gave them. `None`: the certificate is not a rack's, or not for this key.
    pub fn new(
        key: PrivateKeyDer<'static>,
        certificate: CertificateDer<'static>,
        authority: CertificateDer<'static>,
        token_hash: String,
    ) -> Option<Identity> {
        let (rack, not_after) = read_certificate(&certificate)?;
        // rustls compares the two once more at each use; here a wrong pair must not replace a right one.
        let signer = rustls::crypto::ring::sign::any_supported_type(&key).ok()?;
        let pair = rustls::sign::CertifiedKey::new(vec![certificate.clone()], signer);
        pair.keys_match().ok()?;
        Some(Identity {
            rack,
            not_after,
            key,
            certificate,
            authority,
            token_hash,
        })
    }

    /// This rack's system_id, as its certificate says.
    pub fn rack(&self) -> &str {
        &self.rack
    }

    /// How long the certificate still holds; zero once it has ended.
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }

    pub fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    pub fn token_hash(&self) -> &str {
        &self.token_hash
    }

    /// Certificate and key for a TLS handshake.
    pub fn chain(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (vec![self.certificate.clone()], self.key.clone_key())
    }

    /// The same rack with a renewed certificate.
    pub fn renewed(
        &self,
        key: PrivateKeyDer<'static>,
        certificate: CertificateDer<'static>,
    ) -> Option<Identity> {
        let new = Identity::new(
            key,
            certificate,
            self.authority.clone(),
            self.token_hash.clone(),
        )?;
        (new.rack == self.rack).then_some(new)
    }

    /// `None`: this rack has not been enrolled.
    pub fn load(folder: &Path) -> Result<Option<Identity>, IdentityError> {
        let path = folder.join(FILE);
        let io = |source| IdentityError::Io {
            path: path.clone(),
            source,
        };
        let damaged = |what| IdentityError::Damaged {
            path: path.clone(),
            what,
        };
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
            Ok(metadata) if metadata.len() > FILE_BYTES_MAX => return Err(damaged("its size")),
            Ok(_) => {}
        }
        let text = fs::read(&path).map_err(io)?;
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| damaged("its key"))?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            .map_err(|_| damaged("its certificates"))?;
        let [certificate, authority] = certificates
            .try_into()
            .map_err(|_| damaged("its certificates"))?;
        let token_hash = text
            .split(|octet| *octet == b'\n')
            .find_map(|line| line.strip_prefix(TOKEN_LINE.as_bytes()))
            .map(|hash| String::from_utf8_lossy(hash).trim().to_owned())
            .unwrap_or_default();
        Identity::new(key, certificate, authority, token_hash)
            .map(Some)
            .ok_or_else(|| damaged("its certificate"))
    }

    /// Replaces the file, durably.
    pub fn save(&self, folder: &Path) -> Result<(), IdentityError> {
        let (path, new) = (folder.join(FILE), folder.join("identity.pem.new"));
        let text = [
            format!("{TOKEN_LINE}{}\n", self.token_hash),
            pem("PRIVATE KEY", self.key.secret_der()),
            pem("CERTIFICATE", &self.certificate),
            pem("CERTIFICATE", &self.authority),
        ]
        .concat();
        let write = || -> io::Result<()> {
            fs::create_dir_all(folder)?;
            // A left-over may have other permissions.
            fs::remove_file(&new).or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })?;
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(folder)?.sync_all()
        };
        write().map_err(|source| IdentityError::Io {
            path: path.clone(),
            source,
        })
    }
}

/// RFC 7468 §2: 64 characters a line.
fn pem(label: &str, der: &[u8]) -> String {
    let base64 = STANDARD.encode(der);
    let lines: Vec<&str> = base64
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).expect("base64 is ASCII"))
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

/// Rack id and end of a rack certificate.
fn read_certificate(der: &CertificateDer<'_>) -> Option<(String, SystemTime)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let rack = names
        .value
        .general_names
        .iter()
        .find_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(RACK_URI),
            _ => None,
        })?;
    let end = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    Some((rack.to_owned(), UNIX_EPOCH + Duration::from_secs(end)))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    pub(crate) fn certificate(key: &KeyPair, rack: &str) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        let uri = format!("{RACK_URI}{rack}").try_into().unwrap();
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.self_signed(key).unwrap().der().clone()
    }

    fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(key.serialize_der().into())
    }

    #[test]
    fn an_identity_survives_the_disk_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Identity::load(folder.path()).unwrap().is_none());
        let key = KeyPair::generate().unwrap();
        let der = certificate(&key, "abc123");
        let made = Identity::new(private(&key), der.clone(), der, "feed".into()).unwrap();
        made.save(folder.path()).unwrap();
        made.save(folder.path()).unwrap();
        let read = Identity::load(folder.path()).unwrap().unwrap();
        assert_eq!((read.rack(), read.token_hash()), ("abc123", "feed"));
        assert_eq!(read.chain().0, made.chain().0);
        let mode = fs::metadata(folder.path().join(FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn wrong_pairs_and_damaged_files_are_refused() {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let der = certificate(&key, "abc123");
        let wrong = Identity::new(private(&other), der.clone(), der.clone(), String::new());
        assert!(wrong.is_none());
        let good = Identity::new(private(&key), der.clone(), der, String::new()).unwrap();
        assert!(
            good.renewed(private(&other), certificate(&other, "abc123"))
                .is_some()
        );
        assert!(
            good.renewed(private(&other), certificate(&other, "zzz999"))
                .is_none()
        );
        let folder = tempfile::tempdir().unwrap();
        good.save(folder.path()).unwrap();
        let path = folder.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap();
        for damaged in [
            String::new(),
            text[..text.len() / 2].into(),
            text.replace("PRIVATE", "P"),
        ] {
            fs::write(&path, damaged).unwrap();
            assert!(matches!(
                Identity::load(folder.path()),
                Err(IdentityError::Damaged { .. })
            ));
        }
    }
}
