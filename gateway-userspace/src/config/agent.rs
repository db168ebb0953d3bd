//! The `agent` part of the file: settings of the process.

use std::{num::NonZeroUsize, path::PathBuf, sync::OnceLock};

use gateway_common::{addr::Port, settings::Tunnel};

use crate::{
    config::{
        AccessField, AccessOutput, AccessSettings, AgentSettings, AnnounceSettings, AttachMode,
        ClientSettings, ClientTimeouts, ConnectSettings, Interfaces, KernelMode, KernelSettings, LogFormat,
        LogLevel, LogSettings, OverloadSettings, ReceiveSettings, SeedSource, TraceSettings,
        files::Files,
        read::{View, Wrong},
        shape,
        text::{self, OuterSource},
    },
    secret::Secret,
};

/// Reads the settings; none when something in them is wrong, which has then been reported.
pub fn read(root: &View<'_>, files: &Files) -> Option<AgentSettings> {
    let agent = root.table_or_defaults("agent")?;
    let workers = if agent.has("workers") {
        agent.integer::<usize>("workers").and_then(|workers| NonZeroUsize::new(workers.value))
    } else {
        Some(cpus())
    };
    // Every part is read before any is asked for, so that a fault in one does not hide those in the next.
    let drain_deadline = agent.duration("drainDeadline");
    let state_folder = if agent.has("stateFolder") {
        agent.text("stateFolder", |path| absolute(path, "/var/lib/sluice")).map(|path| Some(path.value))
    } else {
        Some(None)
    };
    let admin = agent.table_or_defaults("admin").and_then(|admin| admin.text("address", text::socket_addr));
    let log = agent.table_or_defaults("log").and_then(|log| read_log(&log));
    // A log that could not be read is one that was written.
    let access_log = match agent.table("accessLog") {
        Some(view) => read_access_log(&view).map(Some),
        None => Some(None).filter(|_| !agent.has("accessLog")),
    };
    let trace = agent.table_or_defaults("trace").and_then(|trace| read_trace(&trace));
    let overload = agent.table_or_defaults("overload").and_then(|overload| read_overload(&overload));
    let per_client = agent.table_or_defaults("perClient").and_then(|view| read_per_client(&view));
    let client_timeouts =
        agent.table_or_defaults("clientTimeouts").and_then(|view| read_client_timeouts(&view));
    let kernel = agent.table_or_defaults("kernel").and_then(|kernel| read_kernel(&kernel, files));
    Some(AgentSettings {
        workers: workers?,
        drain_deadline: drain_deadline?.value,
        state_folder: state_folder?,
        admin: admin?.value,
        log: log?,
        access_log: access_log?,
        trace: trace?,
        overload: overload?,
        per_client: per_client?,
        client_timeouts: client_timeouts?,
        kernel: kernel?,
    })
}

fn read_overload(overload: &View<'_>) -> Option<OverloadSettings> {
    let requests = overload.integer("requests");
    let delay = overload.duration("delay");
    let memory_bytes = if overload.has("memoryMib") {
        Some(overload.integer::<u64>("memoryMib")?.value * 1_024 * 1_024)
    } else {
        None
    };
    Some(OverloadSettings { requests: requests?.value, delay: delay?.value, memory_bytes })
}

fn read_per_client(view: &View<'_>) -> Option<ClientSettings> {
    let (connections, streams) = (view.integer("connections"), view.integer("streams"));
    Some(ClientSettings { connections: connections?.value, streams: streams?.value })
}

fn read_client_timeouts(view: &View<'_>) -> Option<ClientTimeouts> {
    let (proxy_header, hello) = (view.duration("proxyHeader"), view.duration("hello"));
    let (handshake, head) = (view.duration("handshake"), view.duration("head"));
    let (idle, stall) = (view.duration("idle"), view.duration("stall"));
    let (answer, bytes_per_second) = (view.duration("answer"), view.integer("bytesPerSecond"));
    Some(ClientTimeouts {
        proxy_header: proxy_header?.value,
        hello: hello?.value,
        handshake: handshake?.value,
        head: head?.value,
        idle: idle?.value,
        answer: answer?.value,
        stall: stall?.value,
        bytes_per_second: bytes_per_second?.value,
    })
}

fn read_log(log: &View<'_>) -> Option<LogSettings> {
    let level = log.word("level", |word| match word {
        "error" => Some(LogLevel::Error),
        "warn" => Some(LogLevel::Warn),
        "info" => Some(LogLevel::Info),
        "debug" => Some(LogLevel::Debug),
        "trace" => Some(LogLevel::Trace),
        _ => None,
    });
    let format = log.word("format", |word| match word {
        "text" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        _ => None,
    });
    Some(LogSettings { level: level?.value, format: format?.value })
}

fn read_access_log(view: &View<'_>) -> Option<AccessSettings> {
    let output = view.text("output", |path| {
        let absolute = PathBuf::from(path);
        let wrong = || Wrong::new("it is relative", "write stdout, or a path that begins with /");
        match path {
            "stdout" => Ok(AccessOutput::Stdout),
            _ if absolute.is_absolute() => Ok(AccessOutput::File(absolute)),
            _ => Err(wrong()),
        }
    });
    let fields = view.texts("fields", |word| {
        let known = AccessField::ALL.iter().find(|field| field.as_str() == word).copied();
        known.ok_or_else(|| {
            let meant = shape::meant(word, AccessField::WORDS.iter().copied());
            let all = || format!("write some of {}", AccessField::WORDS.join(", "));
            Wrong::new("there is none of that name", meant.map_or_else(all, |meant| format!("write {meant}")))
        })
    });
    let sample_percent = view.integer("samplePercent");
    let fields = if view.has("fields") {
        fields.into_iter().map(|field| field.value).collect()
    } else {
        AccessField::ALL.to_vec()
    };
    Some(AccessSettings { output: output?.value, fields, sample_percent: sample_percent?.value })
}

fn read_trace(view: &View<'_>) -> Option<TraceSettings> {
    let is_created = view.word("absent", |word| match word {
        "create" => Some(true),
        "leave" => Some(false),
        _ => None,
    });
    let sampled_percent = view.integer("sampledPercent");
    Some(TraceSettings { is_created: is_created?.value, sampled_percent: sampled_percent?.value })
}

fn read_kernel(kernel: &View<'_>, files: &Files) -> Option<KernelSettings> {
    let mode = kernel.word("mode", |word| match word {
        "auto" => Some(KernelMode::Auto),
        "required" => Some(KernelMode::Required),
        "off" => Some(KernelMode::Off),
        _ => None,
    });
    let interfaces = kernel.texts("interfaces", text::interface);
    let interfaces = if kernel.has("interfaces") {
        Interfaces::Matching(interfaces.into_iter().map(|pattern| pattern.value).collect())
    } else {
        Interfaces::DefaultRoute
    };
    let pods = kernel.texts("pods", text::interface).into_iter().map(|pattern| pattern.value).collect();
    let attach = kernel.word("attach", |word| match word {
        "auto" => Some(AttachMode::Auto),
        "native" => Some(AttachMode::Native),
        "generic" => Some(AttachMode::Generic),
        "tc" => Some(AttachMode::Tc),
        _ => None,
    });
    let bpffs = kernel.text("bpffs", |path| absolute(path, "/sys/fs/bpf"));
    let translation_ports = kernel.text("translationPorts", text::translation_ports);
    let seed = if kernel.has("seedFile") {
        kernel.text("seedFile", |path| read_seed(path, files)).map(|seed| SeedSource::Given(seed.value))
    } else {
        Some(SeedSource::Node)
    };
    let flows =
        if kernel.has("flows") { kernel.integer("flows").map(|flows| Some(flows.value)) } else { Some(None) };
    let change_window = kernel.duration("changeWindow");
    let fail_open_after = kernel.duration("failOpenAfter");
    let echo = kernel.word("echo", |word| match word {
        "program" => Some(true),
        "stack" => Some(false),
        _ => None,
    });
    let tunnel = kernel.table_or_defaults("tunnel").and_then(|tunnel| read_tunnel(&tunnel));
    let receive = perhaps(kernel, "receive", |view| read_receive(view, &interfaces));
    let events = match kernel.table("events") {
        Some(view) => view.integer("perSecond").map(|number| number.value),
        None => Some(0).filter(|_| !kernel.has("events")),
    };
    let connect = perhaps(kernel, "connect", read_connect);
    let announce = perhaps(kernel, "announce", |view| Some(read_announce(view)));
    Some(KernelSettings {
        mode: mode?.value,
        interfaces,
        pods,
        attach: attach?.value,
        bpffs: bpffs?.value,
        translation_ports: translation_ports?.value,
        seed: seed?,
        flows: flows?,
        change_window: change_window?.value,
        fail_open_after: fail_open_after?.value,
        echo: echo?.value,
        tunnel: tunnel?,
        receive: receive?,
        events: events?,
        connect: connect?,
        announce: announce?,
    })
}

/// A table that need not be there; none when something in it is wrong, which has then been reported.
#[expect(clippy::option_option, reason = "absent, wrong, and there are three")]
fn perhaps<T>(view: &View<'_>, key: &str, read: impl FnOnce(&View<'_>) -> Option<T>) -> Option<Option<T>> {
    match view.table(key) {
        Some(table) => read(&table).map(Some),
        None => Some(None).filter(|_| !view.has(key)),
    }
}

const TUNNEL_V4: OuterSource = OuterSource { bits: 16, is_v4: true, example: "172.16.0.0/16" };
const TUNNEL_V6: OuterSource = OuterSource { bits: 96, is_v4: false, example: "100::/96" };

fn read_tunnel(tunnel: &View<'_>) -> Option<Tunnel> {
    let v4 = tunnel.text("sourceV4", |text| text::outer_source(text, &TUNNEL_V4));
    let v6 = tunnel.text("sourceV6", |text| text::outer_source(text, &TUNNEL_V6));
    let port = tunnel.integer("port");
    Some(Tunnel { v4: v4?.value, v6: v6?.value, port: Port::new(port?.value) })
}

fn read_receive(view: &View<'_>, balanced: &Interfaces) -> Option<ReceiveSettings> {
    let peers = view.texts("peers", text::network);
    let interfaces = view.texts("interfaces", text::interface);
    let interfaces = if view.has("interfaces") {
        Interfaces::Matching(interfaces.into_iter().map(|pattern| pattern.value).collect())
    } else {
        balanced.clone()
    };
    let port = view.integer("port");
    let peers = peers.into_iter().map(|network| network.value).collect();
    Some(ReceiveSettings { peers, interfaces, port: port?.value })
}

fn read_announce(view: &View<'_>) -> AnnounceSettings {
    let networks = view.texts("networks", text::network);
    let interfaces = view.texts("interfaces", text::interface);
    AnnounceSettings {
        networks: networks.into_iter().map(|network| network.value).collect(),
        interfaces: interfaces.into_iter().map(|pattern| pattern.value).collect(),
    }
}

fn read_connect(view: &View<'_>) -> Option<ConnectSettings> {
    let cgroup = view.text("cgroup", |path| absolute(path, "/sys/fs/cgroup"));
    let sockets = view.integer("sockets");
    Some(ConnectSettings { cgroup: cgroup?.value, sockets: sockets?.value })
}

/// A path that means the same wherever the agent was started.
fn absolute(path: &str, example: &str) -> Result<PathBuf, Wrong> {
    let absolute = PathBuf::from(path);
    let wrong =
        || Wrong::new("it is relative", format!("write a path that begins with /, such as {example}"));
    if absolute.is_absolute() { Ok(absolute) } else { Err(wrong()) }
}

fn read_seed(path: &str, files: &Files) -> Result<Secret, Wrong> {
    const DIGITS: usize = 32;
    let content = files.read(path, 4_096)?;
    let remedy = "write 32 hexadecimal digits into it, such as `openssl rand -hex 16` prints";
    let digits = content.trim_ascii();
    if digits.len() != DIGITS {
        let message = format!("it holds {} bytes instead of {DIGITS} digits", digits.len());
        return Err(Wrong::new(message, remedy));
    }
    let nibbles: Option<Vec<u8>> = digits.iter().map(|digit| nibble(*digit)).collect();
    let nibbles = nibbles.ok_or_else(|| Wrong::new("it holds something else than digits", remedy))?;
    let bytes: Vec<u8> =
        nibbles.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, half| byte << 4 | half)).collect();
    Ok(Secret::new(&bytes))
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|nibble| u8::try_from(nibble).ok())
}

/// The CPUs this process may use, asked once: a thread that is later pinned would see only its own.
fn cpus() -> NonZeroUsize {
    static CPUS: OnceLock<NonZeroUsize> = OnceLock::new();
    *CPUS.get_or_init(|| std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
}
