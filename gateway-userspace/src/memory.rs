//! How much memory this process has, against what it may have: near the bound nothing new is begun, so that the kernel does
//! not end it and what is under way comes to its end.
//!
//! Where the bound is that of the process's own control group, what is charged to the group counts, too, if it is more:
//! buffers of sockets, maps, and whatever else runs in it. What a group above it is charged is others' as well, who would
//! take away from this process what it may serve.
//!
//! Looked at twice a second, off the data path; workers read one word of it. There are two steps: at the bound whoever can be
//! told is answered that there is too much to do, and nobody else is let in; a twentieth above it, nobody is.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use crate::{drain::Tasks, metrics::names::Families, net::sys};

/// How often it is looked at. New connections take some kilobytes each, those of TLS some tens: even ten thousand of them in
/// a second are a fraction of what is between the bound and what there is.
const LOOK: Duration = Duration::from_millis(500);

/// Looks between two at which the allocator is asked for what it keeps, while there is too little.
const GIVE_BACK_LOOKS: u32 = 10;

/// Bytes that are read of a file of a control group; those of `memory.stat` have a few thousand.
const STAT_BYTES: u64 = 16 * 1_024;

/// How near the bound is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Level {
    /// There is enough.
    Enough,
    /// The bound is passed: requests are refused, and connections of clients that cannot be told why.
    Scarce,
    /// So is a twentieth more: every connection is refused.
    Gone,
}

/// The memory of this process.
#[derive(Debug)]
pub struct Memory {
    /// The bound; none where nobody says how much there is.
    most_bytes: Option<u64>,
    /// Whose bound it is a part of, where it is that of the process's own group.
    group: Option<Group>,
    level: AtomicU8,
    families: Families,
}

impl Memory {
    /// With a bound in bytes; without one, nine tenths of what the process may use.
    pub fn new(most_bytes: Option<u64>, families: Families) -> Self {
        let (most_bytes, group) = match most_bytes {
            Some(_) => (most_bytes, None),
            None => node().map_or((None, None), |node| {
                let (usable, group) = usable(node, Path::new("/sys/fs/cgroup"), &own_groups());
                (Some(usable / 10 * 9), group)
            }),
        };
        families.memory.bound.set(signed(most_bytes.unwrap_or(0)));
        Self { most_bytes, group, level: AtomicU8::new(number(Level::Enough)), families }
    }

    /// The same, looked at now, so that nothing is begun before, and from now on by a task of the runtime that the caller is
    /// in.
    pub fn watched(most_bytes: Option<u64>, families: &Families, tasks: &Tasks) -> Arc<Self> {
        let memory = Arc::new(Self::new(most_bytes, families.clone()));
        if let Some(most) = memory.most_bytes {
            memory.look(memory.used(), most);
        }
        let watched = Arc::clone(&memory);
        drop(tasks.spawn("memory", async move { watched.watch().await }));
        memory
    }

    /// How near the bound is, or was at the last look.
    pub fn level(&self) -> Level {
        match self.level.load(Ordering::Relaxed) {
            0 => Level::Enough,
            1 => Level::Scarce,
            _ => Level::Gone,
        }
    }

    /// Looks at it, for ever.
    pub async fn watch(&self) {
        let mut ticks = tokio::time::interval(LOOK);
        let mut giving = GiveBack::default();
        loop {
            ticks.tick().await;
            let Some(most) = self.most_bytes else { return };
            let mut used = self.used();
            if giving.is_due(self.level(), used > most) {
                sys::give_back();
                used = self.used();
            }
            self.look(used, most);
        }
    }

    /// The worse of what the process has and what its group is charged: the bound is the same for both.
    fn used(&self) -> u64 {
        let resident = resident().unwrap_or(0);
        self.families.memory.resident.set(signed(resident));
        resident.max(self.group.as_ref().and_then(Group::charged).unwrap_or(0))
    }

    fn look(&self, used: u64, most: u64) {
        let before = self.level();
        let now = next(before, used, most);
        self.level.store(number(now), Ordering::Relaxed);
        if (before == Level::Enough) != (now == Level::Enough) {
            let (used_mib, most_mib) = (used >> 20, most >> 20);
            if now == Level::Enough {
                tracing::info!(used_mib, most_mib, "there is enough memory again");
            } else {
                tracing::warn!(used_mib, most_mib, "memory is scarce: requests and connections are refused");
            }
        }
    }
}

/// When the allocator is asked for what it keeps. What was freed may still be held: then it counts, and would for as long as
/// nothing is begun.
#[derive(Debug, Default)]
struct GiveBack {
    n_looks: u32,
}

impl GiveBack {
    /// Until there is enough again, not only above the bound: a step is left well below it, and what is held may lie between.
    const fn is_due(&mut self, level: Level, is_above: bool) -> bool {
        if matches!(level, Level::Enough) && !is_above {
            self.n_looks = 0;
            return false;
        }
        let is_due = self.n_looks.is_multiple_of(GIVE_BACK_LOOKS);
        self.n_looks = self.n_looks.wrapping_add(1);
        is_due
    }
}

/// Each step is left only well below where it was entered, so that it does not flicker.
fn next(before: Level, used: u64, most: u64) -> Level {
    let (much_more, nearly) = (most.saturating_add(most / 20), most / 10 * 9);
    if used > much_more || (before == Level::Gone && used > most) {
        Level::Gone
    } else if used > most || (before != Level::Enough && used > nearly) {
        Level::Scarce
    } else {
        Level::Enough
    }
}

const fn number(level: Level) -> u8 {
    match level {
        Level::Enough => 0,
        Level::Scarce => 1,
        Level::Gone => 2,
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Bytes of this process that are in memory.
fn resident() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// Bytes of the node.
fn node() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

fn own_groups() -> String {
    fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

/// Bytes that the process may use: of its control group and those above it, where one of them has a bound, else of the node.
/// And the group whose bound it is, if that is the process's own.
fn usable(node: u64, root: &Path, groups: &str) -> (u64, Option<Group>) {
    match of_groups(groups, root) {
        Some((bound, group)) if bound < node => (bound, Some(group).filter(|group| group.is_own)),
        Some(_) | None => (node, None),
    }
}

/// A control group with a bound on its memory.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Group {
    folder: PathBuf,
    /// Whether the process is in this very group, not in one below it.
    is_own: bool,
    /// The version of its files.
    version: Version,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Version {
    First,
    Second,
}

impl Version {
    const fn bound(self) -> &'static str {
        match self {
            Self::First => "memory.limit_in_bytes",
            Self::Second => "memory.max",
        }
    }

    /// What is charged, and the lines of `memory.stat` for pages of files, which the kernel takes back before it ends anybody
    /// (those of the access log, for one); each with the groups below.
    const fn charged(self) -> (&'static str, [&'static str; 2]) {
        match self {
            Self::First => ("memory.usage_in_bytes", ["total_inactive_file", "total_active_file"]),
            Self::Second => ("memory.current", ["inactive_file", "active_file"]),
        }
    }
}

impl Group {
    fn read(&self, name: &str) -> Option<String> {
        let mut text = String::new();
        fs::File::open(self.folder.join(name)).ok()?.take(STAT_BYTES).read_to_string(&mut text).ok()?;
        Some(text)
    }

    fn bound(&self) -> Option<u64> {
        self.read(self.version.bound())?.trim().parse().ok()
    }

    /// Bytes that the group has, and that nobody would give back for the asking.
    fn charged(&self) -> Option<u64> {
        let (current, of_files) = self.version.charged();
        let charged: u64 = self.read(current)?.trim().parse().ok()?;
        let stat = self.read("memory.stat").unwrap_or_default();
        let lines = stat.lines().filter_map(|line| line.split_once(' '));
        let files = lines.filter(|(name, _)| of_files.contains(name));
        let files = files.filter_map(|(_, value)| value.trim().parse::<u64>().ok());
        Some(charged.saturating_sub(files.fold(0, u64::saturating_add)))
    }
}

/// The least bound on memory of the groups that these lines name (cgroups(7)), in a file system that is mounted at `root`.
fn of_groups(lines: &str, root: &Path) -> Option<(u64, Group)> {
    let groups = lines.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (mount, version) = match controllers {
            "" => (root.to_owned(), Version::Second),
            _ if controllers.split(',').any(|name| name == "memory") => (root.join("memory"), Version::First),
            _ => return Vec::new(),
        };
        // In a namespace of its own a process may see a path from outside: what it is mounted at is its group then.
        let path = PathBuf::from(path.trim_start_matches('/'));
        let folders = path.ancestors().map(|path| mount.join(path)).filter(|folder| folder.is_dir());
        folders.enumerate().map(|(n_above, folder)| Group { folder, is_own: n_above == 0, version }).collect()
    });
    groups.filter_map(|group| Some((group.bound()?, group))).min_by_key(|(bound, _)| *bound)
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_has_its_bound_and_is_left_below_it() {
        let mut level = Level::Enough;
        for (used, expected) in [
            (1_000, Level::Enough),
            (1_001, Level::Scarce),
            (1_050, Level::Scarce),
            (1_051, Level::Gone),
            (1_001, Level::Gone),
            (1_000, Level::Scarce),
            (901, Level::Scarce),
            (900, Level::Enough),
            (1_000, Level::Enough),
            (2_000, Level::Gone),
            (0, Level::Enough),
        ] {
            level = next(level, used, 1_000);
            assert_eq!(level, expected, "{used}");
        }
    }

    #[test]
    fn the_allocator_is_asked_until_there_is_enough_again() {
        let mut giving = GiveBack::default();
        let mut asked =
            |level, is_above, n_looks| (0..n_looks).filter(|_| giving.is_due(level, is_above)).count();
        assert_eq!(asked(Level::Enough, false, 100), 0);
        assert_eq!(asked(Level::Enough, true, 1), 1, "at once");
        assert_eq!(asked(Level::Scarce, true, GIVE_BACK_LOOKS - 1), 0, "and seldom");
        assert_eq!(asked(Level::Scarce, false, 2 * GIVE_BACK_LOOKS), 2, "below the bound, too");
        assert_eq!(asked(Level::Gone, false, GIVE_BACK_LOOKS), 1);
        assert_eq!(asked(Level::Scarce, false, 5), 1);
        assert_eq!(asked(Level::Enough, false, 1), 0);
        assert_eq!(asked(Level::Enough, true, 1), 1, "another time");
    }

    #[tokio::test]
    async fn a_process_that_is_too_large_is_seen_at_once_and_counted() {
        let families = Families::default();
        let small = Memory::new(Some(1_024), families.clone());
        assert_eq!(small.level(), Level::Enough);
        drop(tokio::time::timeout(LOOK / 2, small.watch()).await);
        assert_eq!(small.level(), Level::Gone);
        assert!(families.memory.resident.get() > 1 << 20 && families.memory.bound.get() == 1_024);
        let usual = Memory::new(None, families.clone());
        drop(tokio::time::timeout(LOOK / 2, usual.watch()).await);
        assert_eq!(usual.level(), Level::Enough);
        assert!(families.memory.resident.get() < families.memory.bound.get());
    }

    #[test]
    fn the_least_bound_of_a_group_and_those_above_it_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let of = |lines: &str| of_groups(lines, root.path()).map(|(bound, _)| bound);
        assert_eq!(of("0::/a/b\n"), None);
        write("a/b/memory.max", "max\n");
        assert_eq!(of("0::/a/b\n"), None);
        write("a/memory.max", "3000\n");
        assert_eq!(of("0::/a/b\n"), Some(3_000));
        write("a/b/memory.max", "2000\n");
        assert_eq!(of("0::/a/b\n"), Some(2_000));
        assert_eq!(of("0::/a\n"), Some(3_000));
        write("memory.max", "1000\n");
        assert_eq!(of("0::/elsewhere/that/is/not/here\n"), Some(1_000));
        // The first version, beside the second one.
        write("memory/c/memory.limit_in_bytes", "500\n");
        assert_eq!(of("12:cpu,cpuacct:/c\n4:memory:/c\n0::/\n"), Some(500));
        assert_eq!(of("12:cpu:/c\n"), None);
        assert_eq!(kibibytes("VmPeak:\t 9 kB\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12_288));
    }

    #[test]
    fn what_is_charged_to_the_group_counts_where_the_bound_is_its_own() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let most = 1 << 40;
        write("a/memory.max", &format!("{most}\n"));
        write("a/b/memory.max", "max\n");
        assert_eq!(usable(u64::MAX, root.path(), "0::/a/b\n"), (most, None), "others are in it, too");
        let (bound, group) = usable(u64::MAX, root.path(), "0::/a\n");
        let group = group.unwrap();
        assert_eq!((bound, group.folder.as_path()), (most, root.path().join("a").as_path()));
        assert_eq!(usable(most, root.path(), "0::/a\n"), (most, None), "the node has no more");
        assert_eq!(group.charged(), None);
        write("a/memory.current", &format!("{}\n", most + 1_000));
        assert_eq!(group.charged(), Some(most + 1_000));
        write("a/memory.stat", "anon 1\ninactive_anon 7\ninactive_file 491\nactive_file 9\n");
        assert_eq!(group.charged(), Some(most + 500));
        // The process itself is far from it.
        let mut memory = Memory::new(Some(most), Families::default());
        memory.look(memory.used(), most);
        assert_eq!(memory.level(), Level::Enough);
        memory.group = Some(group);
        memory.look(memory.used(), most);
        assert_eq!(memory.level(), Level::Scarce);
        assert!(memory.families.memory.resident.get() < 1 << 39, "what is told is that of the process");

        write("memory/c/memory.limit_in_bytes", "3000\n");
        write("memory/c/memory.usage_in_bytes", "2000\n");
        write("memory/c/memory.stat", "inactive_file 1\ntotal_inactive_file 700\n");
        let (bound, group) = of_groups("4:memory:/c\n", root.path()).unwrap();
        assert_eq!((bound, group.charged()), (3_000, Some(1_300)));
    }
}
