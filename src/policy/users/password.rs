//! Password hashes: argon2id in the PHC string form. Slow on purpose; callers keep it off the
//! threads that serve sessions.

use argon2::password_hash::rand_core::OsRng;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Argon2, Params};

/// The longest password, in octets: what fits an AUTH line with room to spare.
pub const PASSWORD_OCTETS_MAX: usize = 4096;

/// The most memory a hash of the users file may ask for, in KiB.
const MEMORY_KIB_MAX: u32 = 1 << 20;

/// The most passes a hash of the users file may ask for.
const PASSES_MAX: u32 = 100;

/// The hash of a password that nobody knows, with the parameters of [`hash`].
pub(super) const DECOY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Returns the hash of a password with a fresh salt (19 MiB, 2 passes: the OWASP recommendation).
///
/// # Errors
/// The password is empty or too long.
pub fn hash(password: &str) -> Result<String, String> {
    if password.is_empty() {
        return Err("the password is empty".to_owned());
    }
    if password.len() > PASSWORD_OCTETS_MAX || password.contains(['\0', '\n', '\r']) {
        return Err(format!("the password is longer than {PASSWORD_OCTETS_MAX} octets, or has a line end in it"));
    }
    let salt = SaltString::generate(&mut OsRng);
    let hash = Argon2::default().hash_password(password.as_bytes(), &salt);
    hash.map(|hash| hash.to_string()).map_err(|fault| format!("the password cannot be hashed: {fault}"))
}

/// Returns whether the password belongs to the hash.
pub fn verify(hash: &str, password: &str) -> bool {
    let Ok(hash) = PasswordHash::new(hash) else { return false };
    password.len() <= PASSWORD_OCTETS_MAX && Argon2::default().verify_password(password.as_bytes(), &hash).is_ok()
}

/// Checks that a text is a hash that [`verify`] can work with.
///
/// # Errors
/// What is wrong with it, without quoting it.
pub fn check_hash(text: &str) -> Result<(), String> {
    let hash = PasswordHash::new(text).ok().filter(|hash| hash.algorithm.as_str() == "argon2id" && hash.hash.is_some());
    let Some(hash) = hash else {
        return Err("is no argon2id hash; set it with `postroad user add`".to_owned());
    };
    match Params::try_from(&hash) {
        Ok(params) if params.m_cost() <= MEMORY_KIB_MAX && params.t_cost() <= PASSES_MAX => Ok(()),
        _ => Err("asks for unreasonable memory or time; set it with `postroad user add`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_password_fits() {
        let hash = hash("päss word").expect("hashed");
        assert_eq!(check_hash(&hash), Ok(()));
        assert!(verify(&hash, "päss word"));
        for wrong in ["", "päss", "päss word ", "PÄSS WORD"] {
            assert!(!verify(&hash, wrong), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_no_hash_is_refused() {
        assert_eq!(check_hash(DECOY), Ok(()));
        for text in
            ["", "secret", "*", "!", "$1$abc$def", "$argon2i$v=19$m=19456,t=2,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA"]
        {
            assert!(check_hash(text).is_err() && !verify(text, text), "{text}");
        }
        assert!(check_hash(&DECOY.replace("m=19456", "m=4000000")).is_err());
    }
}
