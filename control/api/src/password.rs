//! Passwords of accounts: argon2id, in PHC strings.

use argon2::Argon2;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};

/// Longest password that is looked at: hashing a megabyte is work for nothing.
pub const PASSWORD_BYTES_MAX: usize = 1024;

/// Why a password has no hash.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    #[error("the password is empty")]
    Empty,
    #[error("the password is longer than {PASSWORD_BYTES_MAX} octets")]
    TooLong,
    #[error("hashing the password: {0}")]
    Hash(argon2::password_hash::Error),
}

/// A PHC string with a new salt. Takes tens of milliseconds: not on an async thread.
pub fn hash(password: &str) -> Result<String, PasswordError> {
    if password.is_empty() {
        return Err(PasswordError::Empty);
    }
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(PasswordError::TooLong);
    }
    let salt: [u8; 16] = rand::random();
    let salt = SaltString::encode_b64(&salt).map_err(PasswordError::Hash)?;
    let hash = Argon2::default()
        .hash_password(password.as_bytes(), &salt)
        .map_err(PasswordError::Hash)?;
    Ok(hash.to_string())
}

/// Whether the password is the one. A stored text that is no PHC string matches nothing.
pub fn verify(password: &str, hash: &str) -> bool {
    if password.len() > PASSWORD_BYTES_MAX {
        return false;
    }
    PasswordHash::new(hash).is_ok_and(|hash| {
        Argon2::default()
            .verify_password(password.as_bytes(), &hash)
            .is_ok()
    })
}

/// Takes as long as `verify` does: for usernames that do not exist.
pub fn pretend(password: &str) {
    let salt = SaltString::from_b64("c2FsdHNhbHRzYWx0c2FsdA");
    if let Ok(salt) = salt
        && password.len() <= PASSWORD_BYTES_MAX
    {
        Argon2::default()
            .hash_password(password.as_bytes(), &salt)
            .ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_password_matches() {
        let stored = hash("hush").unwrap();
        assert!(stored.starts_with("$argon2id$"));
        assert_ne!(stored, hash("hush").unwrap(), "salted");
        assert!(verify("hush", &stored));
        assert!(!verify("hush ", &stored));
        assert!(!verify("", &stored));
        assert!(!verify("hush", "!"));
        assert!(!verify("hush", ""));
        assert!(matches!(hash(""), Err(PasswordError::Empty)));
        assert!(matches!(
            hash(&"x".repeat(1025)),
            Err(PasswordError::TooLong)
        ));
    }
}
