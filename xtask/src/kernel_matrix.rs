//! `cargo xtask kernel-matrix`: boots other kernels under QEMU's software emulation and runs the kernel object in them,
//! because every kernel's verifier is another judge. A kernel takes about three seconds to boot.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build_ebpf, process,
    setup::{self, Purpose},
    test::Tally,
    verifier::Record,
    workspace::Workspace,
};

/// The kernels, oldest first: one that is too old, then the oldest and the newest that Debian supports beside the
/// machine's own.
const KERNELS: [Kernel; 3] = [
    Kernel {
        version: "5.10",
        suite: "bullseye",
        package: r"^linux-image-5\.10\..*-cloud-amd64$",
        part: Part::Refusal,
    },
    Kernel {
        version: "6.1",
        suite: "bookworm",
        package: r"^linux-image-6\.1\..*-cloud-amd64$",
        part: Part::Everything,
    },
    Kernel {
        version: "6.12",
        suite: "trixie",
        package: r"^linux-image-6\.12\..*-cloud-amd64$",
        part: Part::Everything,
    },
];

/// What runs on a kernel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Part {
    /// The agent, which has to say what the kernel lacks and to serve without it.
    Refusal,
    /// The programs, attached and with packets.
    Everything,
}

/// Modules that the hooks and the suites need, each behind those that it needs itself; each is built into some kernels.
const MODULES: [&str; 19] = [
    "veth",
    "sch_ingress",
    "cls_bpf",
    "llc",
    "stp",
    "garp",
    "mrp",
    "8021q",
    "bridge",
    "tls",
    "bonding",
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];

/// The machine's network: two cards on one wire.
const CARDS: [&str; 8] = [
    "-netdev",
    "hubport,id=a,hubid=0",
    "-device",
    "virtio-net-pci,netdev=a",
    "-netdev",
    "hubport,id=b,hubid=0",
    "-device",
    "virtio-net-pci,netdev=b",
];

/// Printed by the machine when it is done, with the exit code of what it ran.
const END: &str = "sluice-kernel-matrix exit";

/// Printed by the machine when its first process runs: from here on, what goes wrong is ours.
const START: &str = "sluice-kernel-matrix start";

/// QEMU's software emulation now and then loses a processor flag while Linux 6.12 looks for devices (4 of 100 boots
/// with QEMU 7.2), so a machine that dies before its first process runs is started again.
const N_BOOTS: u32 = 5;

/// A machine boots in 3 s and the suites take two to five minutes; this is for one that hangs.
const LIMIT_S: &str = "1200";

/// One kernel of the matrix.
#[derive(Clone, Copy, Debug)]
struct Kernel {
    version: &'static str,
    /// Debian's release that has it.
    suite: &'static str,
    /// What its package is called, as a regular expression; builds without drivers for real hardware are small.
    package: &'static str,
    part: Part,
}

/// Runs the matrix alone: these kernels, or all.
pub(crate) fn run(workspace: &Workspace, versions: &[String]) -> Result<()> {
    let known = KERNELS.map(|kernel| kernel.version);
    if let Some(version) = versions.iter().find(|version| !known.contains(&version.as_str())) {
        bail!("no kernel {version} here; there are {}", known.join(", "));
    }
    build_ebpf::run(workspace, false)?;
    let mut tally = Tally::default();
    all(workspace, versions, &mut tally)?;
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 {
        bail!("{} failed", tally.failed);
    }
    Ok(())
}

/// Runs an object that is built on these kernels, or on every one, and counts the results.
pub(crate) fn all(workspace: &Workspace, versions: &[String], tally: &mut Tally) -> Result<()> {
    if env::consts::ARCH != "x86_64" {
        println!("kernel matrix: skipped: its kernels are for x86-64, this machine is {}", env::consts::ARCH);
        return Ok(());
    }
    setup::install(Purpose::Kernels)?;
    let programs = Programs::build(workspace)?;
    let mut record = Record::read(workspace);
    let is_meant = |kernel: &Kernel| versions.is_empty() || versions.iter().any(|v| v == kernel.version);
    for kernel in KERNELS.into_iter().filter(is_meant) {
        let image = fetch(workspace, kernel)?;
        boot(workspace, kernel, &image, &programs, tally, &mut record)
            .with_context(|| format!("Linux {}", kernel.version))?;
    }
    record.close(tally)
}

/// What runs inside, as it is called there.
struct Programs {
    everything: Vec<(&'static str, PathBuf)>,
    refusal: Vec<(&'static str, PathBuf)>,
}

impl Programs {
    /// Builds the agent, the programs that try it out, and the packet suite as the test runner made it.
    fn build(workspace: &Workspace) -> Result<Self> {
        let mut agent = process::cargo();
        agent.current_dir(&workspace.root).args(["build", "--locked", "--quiet"]);
        process::run(agent.args(["--package", "gateway-userspace", "--bin", "sluice"]))?;
        let [suite, node] = suites(workspace)?;
        let built = |name| workspace.binary("debug", name);
        Ok(Self {
            everything: vec![
                ("smoke", built("sluice-kernel-smoke")),
                ("suite", suite),
                ("node", node),
                ("sluice", built("sluice")),
                ("sluice-demo", built("sluice-demo")),
                ("ip", tool("ip")?),
                ("ethtool", tool("ethtool")?),
            ],
            refusal: vec![("refusal", built("sluice-kernel-refusal")), ("sluice", built("sluice"))],
        })
    }

    fn of(&self, part: Part) -> &[(&'static str, PathBuf)] {
        match part {
            Part::Refusal => &self.refusal,
            Part::Everything => &self.everything,
        }
    }
}

/// A program of this machine.
fn tool(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("no {name} on this machine"))
}

/// Builds what the tests crate has for the machines; returns the suites of packets and of nodes.
fn suites(workspace: &Workspace) -> Result<[PathBuf; 2]> {
    let mut command = process::cargo();
    command.current_dir(&workspace.root).args(["test", "--no-run", "--locked", "--quiet"]).args([
        "--package",
        "gateway-tests",
        "--bin",
        "sluice-kernel-smoke",
        "--bin",
        "sluice-kernel-refusal",
        "--bin",
        "sluice-demo",
        "--test",
        "kernel",
        "--test",
        "node",
        "--message-format",
        "json-render-diagnostics",
    ]);
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("building what runs inside the machines failed");
    }
    let lines = String::from_utf8_lossy(&output.stdout);
    let executable = |name: &str| {
        let of_line = |line: &str| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            let is_ours = message.get("target")?.get("name")?.as_str()? == name;
            message.get("executable")?.as_str().filter(|_| is_ours).map(PathBuf::from)
        };
        lines.lines().find_map(of_line).with_context(|| format!("cargo built no suite {name}"))
    };
    Ok([executable("kernel")?, executable("node")?])
}

/// The folder with a kernel and its modules; taken from Debian once.
fn fetch(workspace: &Workspace, kernel: Kernel) -> Result<PathBuf> {
    let dir = workspace.target.join("kernels").join(kernel.version);
    let complete = dir.join("complete");
    if complete.exists() {
        return Ok(dir);
    }
    eprintln!(
        "xtask: taking Linux {} from Debian {} into {} (once)",
        kernel.version,
        kernel.suite,
        dir.display()
    );
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    let lists = dir.join("lists");
    fs::create_dir_all(lists.join("partial")).with_context(|| format!("cannot make {}", lists.display()))?;
    let sources = dir.join("sources.list");
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let line = format!("deb [signed-by={keyring}] {} {} main\n", process::debian_mirror(), kernel.suite);
    fs::write(&sources, line).with_context(|| format!("cannot write {}", sources.display()))?;
    // A package manager with lists of its own: the machine's own sources stay as they are.
    let apt = |program: &str| {
        let mut command = Command::new(program);
        let paths = [("Dir::Etc::sourcelist", &sources), ("Dir::State::lists", &lists)];
        for (option, path) in paths {
            command.args(["-o", &format!("{option}={}", path.display())]);
        }
        command.args(["-o", "Dir::Etc::sourceparts=-", "-o", "APT::Sandbox::User=root"]);
        command.args(["-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="]).current_dir(&dir);
        command
    };
    process::run(apt("apt-get").args(["update", "-qq"]))?;
    let found = process::output(apt("apt-cache").args(["search", "--names-only", kernel.package]))
        .context("cannot search Debian's packages")?;
    let names = found.lines().filter_map(|line| line.split(' ').next());
    let package = names.max_by_key(|name| numbers(name));
    let package = package.with_context(|| format!("Debian {} has no {}", kernel.suite, kernel.package))?;
    process::run(apt("apt-get").args(["download", "-qq", package]))?;
    let deb =
        find(&dir, &|name| name.starts_with("linux-image")).context("the package was not downloaded")?;
    process::run(Command::new("dpkg").arg("-x").arg(&deb).arg(&dir))?;
    for left in [&deb, &sources] {
        fs::remove_file(left).with_context(|| format!("cannot remove {}", left.display()))?;
    }
    fs::write(&complete, package).with_context(|| format!("cannot write {}", complete.display()))?;
    Ok(dir)
}

/// The numbers in a name, so that 6.12.100 comes after 6.12.9.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// Boots one kernel with everything in its first file system, and counts what it prints.
fn boot(
    workspace: &Workspace,
    kernel: Kernel,
    image: &Path,
    programs: &Programs,
    tally: &mut Tally,
    record: &mut Record,
) -> Result<()> {
    let root = workspace.target.join("kernels").join(format!("{}-root", kernel.version));
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot empty {}", root.display()))?;
    }
    fill(workspace, &root, image, (kernel.part, programs))?;
    let archive = root.with_extension("cpio");
    pack(&root, &archive)?;
    let vmlinuz = find(&image.join("boot"), &|name| name.starts_with("vmlinuz"))
        .context("the package has no kernel")?;
    let before = (tally.passed, tally.failed);
    let mut outcome = Outcome::NeverUp;
    for _ in 0..N_BOOTS {
        outcome = watch(kernel, machine(&vmlinuz, &archive), tally, record)?;
        if outcome != Outcome::NeverUp {
            break;
        }
        println!("[{}] the emulated machine died before its first process ran; once more", kernel.version);
    }
    match outcome {
        Outcome::Ended(code) if code == "0" => {}
        Outcome::Ended(_) if tally.failed > before.1 => {}
        Outcome::Ended(code) => bail!("what ran inside ended with {code} and named no failure"),
        Outcome::NeverUp => bail!("the machine did not come up in {N_BOOTS} attempts"),
        Outcome::Broken => bail!("the machine did not come to its end in {LIMIT_S} s"),
    }
    println!(
        "Linux {}: {} passed, {} failed",
        kernel.version,
        tally.passed - before.0,
        tally.failed - before.1
    );
    Ok(())
}

/// How a machine ended.
#[derive(Debug, Eq, PartialEq)]
enum Outcome {
    /// Its first process never ran.
    NeverUp,
    /// It died, or was ended at the limit, while ours ran.
    Broken,
    /// It came to its end, with this exit code.
    Ended(String),
}

/// The processor that QEMU emulates. Without `cmpxchg16b`: an interrupt in the middle of it now and then leaves its
/// operand in the flags (seen with QEMU 7.2: a double fault behind that instruction in the kernel's allocator).
const PROCESSOR: &str = "max,-cx16";

/// The machine that boots a kernel; its console is its output.
fn machine(vmlinuz: &Path, archive: &Path) -> Command {
    let mut machine = Command::new("timeout");
    machine
        .args([LIMIT_S, "qemu-system-x86_64", "-accel", "tcg", "-cpu", PROCESSOR, "-m", "1024", "-smp", "2"])
        .args(["-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot"])
        .args(CARDS)
        .arg("-kernel")
        .arg(vmlinuz)
        .arg("-initrd")
        .arg(archive)
        .args(["-append", "console=ttyS0 quiet panic=-1 rdinit=/init"]);
    machine
}

/// Runs a machine, shows its console and counts the results.
fn watch(kernel: Kernel, mut machine: Command, tally: &mut Tally, record: &mut Record) -> Result<Outcome> {
    let mut child =
        machine.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start QEMU")?;
    let console = child.stdout.take().context("the machine has no console")?;
    let mut outcome = Outcome::NeverUp;
    for line in BufReader::new(console).split(b'\n') {
        let line = String::from_utf8_lossy(&line.context("cannot read the console")?).trim_end().to_owned();
        if line.ends_with(START) {
            outcome = Outcome::Broken;
        } else if let Some(code) = line.strip_prefix(END) {
            outcome = Outcome::Ended(code.trim().to_owned());
        } else {
            println!("[{}] {line}", kernel.version);
            tally.count(&line);
            tally.count_program(&line);
            record.note(kernel.version, &line);
        }
    }
    child.wait().context("cannot wait for the machine")?;
    Ok(outcome)
}

/// Makes the machine's first file system.
fn fill(workspace: &Workspace, root: &Path, image: &Path, (part, programs): (Part, &Programs)) -> Result<()> {
    for dir in ["bin", "proc", "sys", "dev", "run", "tmp", "modules"] {
        let dir = root.join(dir);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    copy(Path::new("/bin/busybox"), &root.join("bin/busybox"))?;
    for applet in ["sh", "mount", "umount", "sysctl"] {
        symlink("busybox", root.join("bin").join(applet)).context("cannot link a part of busybox")?;
    }
    copy(&workspace.object(build_ebpf::OBJECT), &root.join("object"))?;
    for (name, program) in programs.of(part) {
        for library in libraries(program)? {
            copy(&library, &root.join(library.strip_prefix("/").unwrap_or(&library)))?;
        }
        // Debug information is nine tenths of it, and the machine has little memory.
        process::run(Command::new("strip").arg("-o").arg(root.join("bin").join(name)).arg(program))?;
    }
    for (number, module) in MODULES.iter().enumerate() {
        let Some(file) = find(image, &|name| name.split(".ko").next() == Some(*module)) else {
            continue;
        };
        // They are loaded by the order of their names.
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let copied = root.join("modules").join(format!("{number:02}-{name}"));
        copy(&file, &copied)?;
        if copied.extension().is_some_and(|extension| extension == "xz") {
            process::run(Command::new("xz").arg("-d").arg(&copied))?;
        }
    }
    let init = root.join("init");
    let script = INIT.replace("START", START).replace("END", END).replace("RUN", commands(part));
    fs::write(&init, script).with_context(|| format!("cannot write {}", init.display()))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))
        .context("cannot make the first program executable")
}

/// What the first process runs.
const fn commands(part: Part) -> &'static str {
    match part {
        Part::Refusal => "/bin/refusal /bin/sluice || code=1",
        Part::Everything => {
            "/bin/smoke /object v0 || code=1\nexport SLUICE_TESTS=all SLUICE_BPF_OBJECT=/object SLUICE_MACHINE=emulated\n\
             /bin/suite || code=1\n/bin/node links:: --test-threads=1 || code=1"
        }
    }
}

/// The first process: a link to attach to, then the programs. `busybox` alone, so that nothing else must be copied.
const INIT: &str = r#"#!/bin/sh
echo "START"
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox mount -t bpf bpf /sys/fs/bpf
busybox mount -t cgroup2 cgroup2 /sys/fs/cgroup
busybox mount -t tmpfs tmp /tmp
busybox uname -r
for module in /modules/*.ko; do busybox insmod "$module"; done
busybox ip link set lo up
busybox ip link add v0 type veth peer name v1
busybox ip link set v0 up
code=0
RUN
echo "END $code"
busybox poweroff -f
"#;

/// The shared libraries of a program, the loader among them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed =
        process::output(Command::new("ldd").arg(program)).context("cannot list a program's libraries")?;
    let words = listed.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(words.map(PathBuf::from).collect())
}

/// Packs a folder the way the kernel unpacks it.
fn pack(root: &Path, archive: &Path) -> Result<()> {
    let output = fs::File::create(archive).with_context(|| format!("cannot write {}", archive.display()))?;
    let mut command = Command::new("cpio");
    command.args(["-o", "-H", "newc", "--quiet"]).current_dir(root).stdin(Stdio::piped()).stdout(output);
    let mut child = command.spawn().context("cannot start cpio")?;
    let mut names = child.stdin.take().context("cpio takes no names")?;
    let mut left = vec![root.to_path_buf()];
    while let Some(path) = left.pop() {
        let name = path.strip_prefix(root).context("a file outside its root")?;
        if name.components().next().is_some() {
            writeln!(names, "{}", name.display()).context("cannot tell cpio a name")?;
        }
        if path.is_dir() && !path.is_symlink() {
            for entry in fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))? {
                left.push(entry?.path());
            }
        }
    }
    drop(names);
    let status = child.wait().context("cannot wait for cpio")?;
    if !status.success() {
        bail!("cpio failed: {status}");
    }
    Ok(())
}

/// The first file below `dir` whose name is right.
fn find(dir: &Path, is_right: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?;
    entries.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            return find(&path, is_right);
        }
        is_right(&entry.file_name().to_string_lossy()).then_some(path)
    })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_chosen_by_number() {
        let names = ["linux-image-6.12.9+deb13-cloud-amd64", "linux-image-6.12.100+deb13-cloud-amd64"];
        assert_eq!(names.into_iter().max_by_key(|name| numbers(name)), Some(names[1]));
    }
}
