//! Secrets of CRAM-MD5 (RFC 2195): in the clear in a file, since the server has to compute with them.
//!
//! Only customers who fetch mail have one, and only where the admin wants it: RFC 2645 has no other
//! mechanism that every customer knows. Whoever can use a password of `[users]` needs none.

use std::path::Path;

use argon2::password_hash::rand_core::{OsRng, RngCore};
use hmac::{Hmac, Mac};
use md5::Md5;
use postroad_smtp::sasl::CramResponse;

/// Returns what the challenges of one session are made of: 128 bits that nobody can foresee.
pub fn challenge_seed() -> String {
    let mut octets = [0; 16];
    OsRng.fill_bytes(&mut octets);
    format!("{:032x}", u128::from_be_bytes(octets))
}

/// Returns whether the response was made with the secret in the first line of the file. A user without
/// a secret takes as long as one with another. The file is read each time, so that it can be changed
/// without a restart.
pub fn is_right(file: Option<&Path>, response: &CramResponse) -> bool {
    let text = file.map(std::fs::read_to_string);
    if let (Some(Err(fault)), Some(path)) = (&text, file) {
        tracing::warn!(path = %path.display(), %fault, "the secret_file of a [[turn]] cannot be read");
    }
    let text = text.and_then(Result::ok).unwrap_or_default();
    let secret = text.lines().next().unwrap_or_default();
    let is_same = digest(secret, &response.challenge).verify_slice(&response.digest).is_ok();
    !secret.is_empty() && is_same
}

fn digest(secret: &str, challenge: &str) -> Hmac<Md5> {
    let mut mac = Hmac::<Md5>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(challenge.as_bytes());
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc_is_right_and_nothing_else() {
        let directory = tempfile::tempdir().expect("scratch");
        let file = directory.path().join("secret");
        let challenge = "<1896.697170952@postoffice.reston.mci.net>";
        let digest = 0xb913_a602_c7ed_a7a4_95b4_e6e7_334d_3890_u128.to_be_bytes();
        let response = CramResponse { user: "tim".into(), challenge: challenge.into(), digest };
        for (secret, want) in [("tanstaaftanstaaf\nmore\n", true), ("tanstaaf\n", false), ("", false)] {
            std::fs::write(&file, secret).expect("written");
            assert_eq!(is_right(Some(&file), &response), want, "{secret:?}");
        }
        assert!(!is_right(None, &response) && !is_right(Some(directory.path()), &response));
        // An empty secret is nobody's, though its digest can be computed.
        let digest = super::digest("", challenge).finalize().into_bytes().into();
        assert!(!is_right(None, &CramResponse { digest, ..response }));
    }
}
