//! Lines of a users file, with hashes as cheap as they may be.

use argon2::password_hash::{PasswordHasher, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};

/// Returns the line of a user; `addresses` as in the file: who it may send as.
pub fn line(name: &str, password: &str, addresses: &str) -> String {
    let salt = SaltString::encode_b64(b"salt of a test").expect("a salt of fitting length");
    let params = Params::new(64, 1, 1, None).expect("parameters in range");
    let hash = Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password(password.as_bytes(), &salt)
        .expect("a password can be hashed");
    format!("{name}:{hash}:{addresses}\n")
}
