//! How many files and connections the agent may have open at a time (`RLIMIT_NOFILE`).
//!
//! Most hosts start programs with a soft limit of 1024, which old programs need, and a far higher
//! hard limit that whoever wants more may take.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

/// Raises the soft limit to the hard limit.
pub fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => debug!(?maximum, "raised the limit of open files"),
        Err(error) => warn!(%error, ?current, "the limit of open files stays; raise it with LimitNOFILE="),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        // Enough for the tests beside this one.
        let low = Rlimit { current: Some(maximum.unwrap_or(1024).min(1024)), maximum };
        setrlimit(Resource::Nofile, low).expect("lower is always allowed");
        raise_limit();
        assert_eq!(getrlimit(Resource::Nofile).current, maximum);
    }
}
