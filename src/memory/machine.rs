//! What the machine says of memory: how much there is, by the control group and the host, and how
//! much this process has. Linux; elsewhere nothing is known and nothing is refused.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Of the memory there is, the share used unless the configuration says otherwise: one part in so
/// many. The kernel's buffers of our sockets and the cache of our files need the rest.
const DEFAULT_PART: u64 = 2;
/// A control group without a limit says a number about as large as this or larger.
const UNLIMITED_OCTETS: u64 = 1 << 60;

/// Reads how much memory this process has.
#[derive(Debug)]
pub struct Resident {
    statm: Option<File>,
    page_octets: u64,
}

impl Resident {
    /// Opens what is read.
    pub fn open() -> Resident {
        Resident { statm: File::open("/proc/self/statm").ok(), page_octets: rustix::param::page_size() as u64 }
    }

    /// Returns the octets of memory that no file stands behind; 0 where nobody knows.
    pub fn octets(&self) -> u64 {
        let mut text = [0; 128];
        let read = self.statm.as_ref().and_then(|statm| statm.read_at(&mut text, 0).ok()).unwrap_or(0);
        anonymous_pages(&String::from_utf8_lossy(&text[..read])).unwrap_or(0) * self.page_octets
    }
}

/// Returns the resident pages of `/proc/self/statm` without those of files.
fn anonymous_pages(statm: &str) -> Option<u64> {
    let mut numbers = statm.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
    let (resident, shared) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(resident.saturating_sub(shared))
}

/// Returns the limit for an agent that was told none: half of what its control group allows, or of
/// what the host has. All there could be where nobody knows.
pub fn default_limit() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let groups = limit_of_groups(Path::new("/sys/fs/cgroup"), &read("/proc/self/cgroup"));
    let host = total_of_host(&read("/proc/meminfo"));
    groups.into_iter().chain(host).min().map_or(u64::MAX, |octets| octets / DEFAULT_PART)
}

fn total_of_host(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Returns the tightest limit of the control groups that `/proc/self/cgroup` names and of those
/// around them, of both versions.
fn limit_of_groups(root: &Path, own: &str) -> Option<u64> {
    let limits = own.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let (base, files): (PathBuf, &[&str]) = match controllers {
            "" => (root.to_owned(), &["memory.max", "memory.high"]),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (root.join("memory"), &["memory.limit_in_bytes"])
            }
            _ => return None,
        };
        let group = base.join(path.trim_start_matches('/'));
        let around = group.ancestors().take_while(|group| group.starts_with(&base));
        around.flat_map(|group| files.iter().filter_map(|file| limit(&group.join(file)))).min()
    });
    limits.min()
}

fn limit(file: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    text.trim().parse().ok().filter(|octets| *octets < UNLIMITED_OCTETS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_less_than_the_limit() {
        let octets = Resident::open().octets();
        assert!(octets > 100_000 && octets < default_limit(), "{octets} of {}", default_limit());
        assert_eq!(anonymous_pages("4000 900 300 1 0 2 0"), Some(600));
        assert_eq!(anonymous_pages("4000 x"), None);
        assert_eq!(total_of_host("MemTotal:       24576 kB\nMemFree: 1 kB\n"), Some(24 << 20));
    }

    #[test]
    fn the_tightest_group_around_counts() {
        let root = tempfile::tempdir().expect("scratch");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("below the root")).expect("made");
            std::fs::write(path, text).expect("written");
        };
        let limit = |own| limit_of_groups(root.path(), own);
        assert_eq!(limit("0::/a/b\n"), None);
        write("a/memory.max", "1000\n");
        write("a/b/memory.max", "max\n");
        assert_eq!(limit("0::/a/b\n"), Some(1000));
        write("a/b/memory.high", "700\n");
        assert_eq!(limit("0::/a/b\n"), Some(700));
        write("memory/x/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit("12:pids:/x\n4:cpuset,memory:/x\n"), None);
        write("memory/x/memory.limit_in_bytes", "500\n");
        assert_eq!(limit("12:pids:/x\n4:cpuset,memory:/x\n0::/a/b\n"), Some(500));
        // In a container the path may be that of the host: what is mounted is the group itself.
        write("memory/memory.limit_in_bytes", "300\n");
        assert_eq!(limit("4:memory:/docker/0123\n"), Some(300));
    }
}
