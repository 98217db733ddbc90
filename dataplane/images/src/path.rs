//! Image paths. Only the hash matters: MAAS puts os, architecture and release behind it for people to read.

/// The SHA-256 of `/images/<64 hex digits>` and `/images/<64 hex digits>/...`.
pub fn image_hash(path: &str) -> Option<[u8; 32]> {
    let rest = path
        .trim_start_matches('/')
        .strip_prefix("images/")?
        .trim_start_matches('/');
    let name = rest.split('/').next()?.as_bytes();
    if name.len() != 64 {
        return None;
    }
    let mut hash = [0; 32];
    for (octet, pair) in hash.iter_mut().zip(name.chunks_exact(2)) {
        *octet = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
    }
    Some(hash)
}

fn hex_digit(letter: u8) -> Option<u8> {
    char::from(letter).to_digit(16).map(|digit| digit as u8) // below 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes() {
        let hex = "00ff".repeat(16);
        let mut want = [0; 32];
        want.iter_mut()
            .skip(1)
            .step_by(2)
            .for_each(|octet| *octet = 0xff);
        for path in [
            format!("/images/{hex}"),
            format!("/images/{hex}/ubuntu/amd64/generic/noble/stable/boot-kernel"),
            format!("//images//{}/x", hex.to_uppercase()),
        ] {
            assert_eq!(image_hash(&path), Some(want), "{path}");
        }
        for path in [
            "/images/bootx64.efi".to_string(),
            format!("/images/{}", &hex[1..]),
            format!("/images/{hex}0"),
            format!("/images/g{}", &hex[1..]),
            format!("/other/{hex}"),
        ] {
            assert_eq!(image_hash(&path), None, "{path}");
        }
    }
}
