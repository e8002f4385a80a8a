//! Which mailboxes of a domain exist, and under which name. Whatever a stranger writes into
//! RCPT, no directory outside the Maildir template is ever looked at: see [`UserName`].

use std::path::Path;

use postroad_smtp::LocalPart;
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::config::{Accept, Local, LocalDelivery, Recipients, UserName};

/// Looks at directories; a seam for tests.
pub trait Directories: Send + Sync {
    /// Returns whether there is a directory.
    ///
    /// # Errors
    /// It cannot be told now.
    fn exists(&self, path: &Path) -> std::io::Result<bool>;
}

/// The file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDirectories;

impl Directories for OsDirectories {
    fn exists(&self, path: &Path) -> std::io::Result<bool> {
        match aside(|| std::fs::metadata(path)) {
            Ok(found) => Ok(found.is_dir()),
            Err(fault) if matches!(fault.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                Ok(false)
            }
            Err(fault) => Err(fault),
        }
    }
}

/// Looks at a file system that may hang, as one over a network does: other sessions go on meanwhile.
fn aside<T>(look: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(look),
        _ => look(),
    }
}

/// Returns the mailbox that a local-part of a local domain means: the name as written when it
/// exists, else the one before the `+`; `None` when neither exists.
///
/// # Errors
/// A directory cannot be looked at now.
pub fn find(local: &Local, local_part: &LocalPart, directories: &dyn Directories) -> std::io::Result<Option<UserName>> {
    let Some(name) = UserName::new(local_part) else { return Ok(None) };
    if has(local, &name, directories)? {
        return Ok(Some(name));
    }
    match name.without_tag() {
        Some(user) if has(local, &user, directories)? => Ok(Some(user)),
        _ => Ok(None),
    }
}

/// Returns the mailbox that mail for a local-part of a local domain goes into; `None` when there is
/// none. Asked at RCPT and again at delivery, so that what was accepted is also delivered.
///
/// Every domain has a postmaster (RFC 5321 §4.5.1), and so has this host where the mail was
/// redirected to the mailbox named for it (`for_postmaster`): those exist without a directory, and
/// delivery makes it.
///
/// # Errors
/// A directory cannot be looked at now.
pub fn resolve(
    local: &Local,
    local_part: &LocalPart,
    for_postmaster: bool,
    directories: &dyn Directories,
) -> std::io::Result<Option<UserName>> {
    if local.recipients == Recipients::Any && may_lead_on(local_part) {
        return Ok(None);
    }
    let exists_anyway = |name: &UserName| for_postmaster || name.as_str() == "postmaster";
    Ok(find(local, local_part, directories)?.or_else(|| UserName::new(local_part).filter(exists_anyway)))
}

/// Returns whether mail for a local-part is taken for a domain that this host passes on. Every domain has a
/// postmaster.
pub fn is_accepted(accept: &Accept, local_part: &LocalPart) -> bool {
    let Accept::Listed(names) = accept else { return !may_lead_on(local_part) };
    let is_one = |name: &UserName| name.as_str() == "postmaster" || is_listed(names, name);
    UserName::new(local_part).is_some_and(|name| is_one(&name) || name.without_tag().is_some_and(|user| is_one(&user)))
}

/// The server that decides about any name might read more into such a one than we do.
fn may_lead_on(local_part: &LocalPart) -> bool {
    local_part.unquoted().contains(['@', '%', '!', '|'])
}

fn is_listed(names: &[String], name: &UserName) -> bool {
    names.binary_search_by(|known| known.as_str().cmp(name.as_str())).is_ok()
}

fn has(local: &Local, name: &UserName, directories: &dyn Directories) -> std::io::Result<bool> {
    match (&local.recipients, &local.delivery) {
        (Recipients::Any, _) => Ok(true),
        (Recipients::Listed(names), _) => Ok(is_listed(names, name)),
        (Recipients::Directories, LocalDelivery::Maildir(template)) => directories.exists(&template.directory(name)),
        (Recipients::Directories, LocalDelivery::Lmtp(_)) => Ok(false),
    }
}
