//! Has the linker put functions together that run together: `link/together.ld` names them, decision 23 says why.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=link/together.ld");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|set| set == value);
    // mold reads no such scripts.
    let flags = ["CARGO_ENCODED_RUSTFLAGS", "RUSTC_LINKER"].map(|name| env::var(name).unwrap_or_default());
    if !is("CARGO_CFG_TARGET_OS", "linux") || !is("PROFILE", "release") || flags.iter().any(|set| set.contains("mold"))
    {
        return;
    }
    let directory = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let script = Path::new(&directory).join("link/together.ld");
    println!("cargo::rustc-link-arg-bin=postroad=-Wl,-T,{}", script.display());
}
