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

/// Whether the password is the one. Without an account, and for a stored text that is no PHC string, nothing is, and
/// finding out takes as long.
pub fn verify(password: &str, stored: Option<&str>) -> bool {
    if password.len() > PASSWORD_BYTES_MAX {
        return false;
    }
    let Some(hash) = stored.and_then(|stored| PasswordHash::new(stored).ok()) else {
        pretend(password);
        return false;
    };
    Argon2::default()
        .verify_password(password.as_bytes(), &hash)
        .is_ok()
}

fn pretend(password: &str) {
    #[cfg(test)]
    tests::PRETENDED.with(|count| count.set(count.get() + 1));
    if let Ok(salt) = SaltString::from_b64("c2FsdHNhbHRzYWx0c2FsdA") {
        Argon2::default()
            .hash_password(password.as_bytes(), &salt)
            .ok();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        pub static PRETENDED: Cell<u32> = const { Cell::new(0) };
    }

    #[test]
    fn an_unknown_name_costs_as_much_as_a_known_one() {
        let hashed = |stored| {
            let before = PRETENDED.get();
            assert!(!verify("guess", stored));
            PRETENDED.get() - before
        };
        assert_eq!(hashed(None), 1);
        assert_eq!(hashed(Some("!")), 1);
        assert_eq!(
            hashed(Some(hash("hush").unwrap().as_str())),
            0,
            "the real one"
        );
    }

    #[test]
    fn only_the_password_matches() {
        let stored = hash("hush").unwrap();
        assert!(stored.starts_with("$argon2id$"));
        assert_ne!(stored, hash("hush").unwrap(), "salted");
        let stored = Some(stored.as_str());
        assert!(verify("hush", stored));
        assert!(!verify("hush ", stored));
        assert!(!verify("", stored));
        assert!(!verify("hush", Some("!")));
        assert!(!verify("hush", Some("")));
        assert!(matches!(hash(""), Err(PasswordError::Empty)));
        assert!(matches!(
            hash(&"x".repeat(1025)),
            Err(PasswordError::TooLong)
        ));
    }
}
