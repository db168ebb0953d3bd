//! gRPC through the agent, with the client and the server by which implementations of it prove that they understand each
//! other (`go install google.golang.org/grpc/interop/client@v1.83.2`, and `server`). `SLUICE_GRPC_CLIENT` and
//! `SLUICE_GRPC_SERVER` name them.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing, and its tasks end with it"
)]

mod support;

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use gateway_userspace::{
    secret::Secret,
    snapshot::{
        Snapshot,
        listener::{Certificate, Protocol},
        service::UpstreamProtocol,
    },
};
use support::{
    authority::{Authority, Pair},
    built, eventually, free_addr,
    proxy::Proxy,
    wanted::{exact, rule, simple},
};

const NAME: &str = "grpc.internal";

/// What the client can prove without an account somewhere: every kind of stream, deadlines, cancellation, what stands
/// behind a body, statuses, and that nothing of it wears off.
const CASES: [&str; 17] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "orca_per_rpc",
    "rpc_soak",
    "channel_soak",
];

/// Both programs; none where they were not installed.
struct Suite {
    client: OsString,
    server: OsString,
    authority: Authority,
    folder: tempfile::TempDir,
}

impl Suite {
    fn find() -> Option<Self> {
        let client = built("SLUICE_GRPC_CLIENT", "google.golang.org/grpc/interop/client@v1.83.2")?;
        let server = built("SLUICE_GRPC_SERVER", "google.golang.org/grpc/interop/server@v1.83.2")?;
        let (authority, folder) = (Authority::new("ours"), tempfile::tempdir().unwrap());
        fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
        Some(Self { client, server, authority, folder })
    }

    fn file(&self, name: &str, text: &str) -> OsString {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.into()
    }

    /// A server, over TLS where it has a certificate.
    async fn serve(&self, certificate: Option<&Pair>) -> (Running, SocketAddr) {
        let addr = free_addr();
        let mut command = Command::new(&self.server);
        command.arg(format!("-port={}", addr.port()));
        if let Some(pair) = certificate {
            let chain = self.file("server.pem", &pair.chain);
            let key = self.file("server.key", &pair.key);
            command.arg("-use_tls").arg("-tls_cert_file").arg(chain).arg("-tls_key_file").arg(key);
        }
        let running = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let is_there = || std::net::TcpStream::connect(addr).is_ok();
        eventually("the server listens", Duration::from_secs(20), is_there).await;
        (running, addr)
    }

    /// What a client says that runs one case.
    async fn prove(&self, addr: SocketAddr, case: &'static str, secured: bool) -> Result<(), String> {
        let mut command = Command::new("timeout");
        command.arg("30").arg(&self.client).arg(format!("-test_case={case}"));
        command.args(["-server_host=127.0.0.1", &format!("-server_port={}", addr.port())]);
        if case == "orca_per_rpc" {
            let policy = r#"{"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}"#;
            command.arg(format!("-service_config_json={policy}"));
        }
        if case.ends_with("_soak") {
            command.args(["-soak_iterations=200", "-soak_num_threads=4", "-soak_overall_timeout_seconds=25"]);
        }
        if secured {
            let trust = self.folder.path().join("ca.pem");
            command.args(["-use_tls", "-use_test_ca", "-server_host_override", NAME, "-ca_file"]).arg(trust);
        }
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let last: Vec<&str> = said.lines().rev().take(4).collect();
        Err(format!("{case}: {}", last.join("\n")))
    }

    async fn prove_all(&self, addr: SocketAddr, secured: bool) {
        let mut failed = String::new();
        for case in CASES {
            if let Err(said) = self.prove(addr, case, secured).await {
                writeln!(failed, "{said}").unwrap();
            }
        }
        assert!(failed.is_empty(), "{failed}");
    }

    fn certificate(&self) -> Certificate {
        let pair = self.authority.server(NAME);
        Certificate {
            origin: "grpc.pem".to_owned(),
            chain_pem: pair.chain.into_bytes(),
            key_pem: Secret::new(pair.key.as_bytes()),
            ocsp: None,
            fetches_ocsp: false,
        }
    }
}

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn plain(addr: SocketAddr, server: SocketAddr) -> Snapshot {
    let mut snapshot = simple(addr, &[server]);
    snapshot.services[0].protocol = UpstreamProtocol::H2c;
    snapshot
}

#[tokio::test(flavor = "multi_thread")]
async fn in_plain_text_on_both_sides() {
    let Some(suite) = Suite::find() else { return };
    let (_server, server) = suite.serve(None).await;
    let addr = free_addr();
    let _proxy = Proxy::start(&plain(addr, server));
    suite.prove_all(addr, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_from_the_client() {
    let Some(suite) = Suite::find() else { return };
    let (_server, server) = suite.serve(None).await;
    let addr = free_addr();
    let mut snapshot = plain(addr, server);
    snapshot.listeners[0].protocol = Protocol::Https;
    snapshot.listeners[0].certificates = vec![suite.certificate()];
    let _proxy = Proxy::start(&snapshot);
    suite.prove_all(addr, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_on_both_sides() {
    let Some(suite) = Suite::find() else { return };
    let (_server, server) = suite.serve(Some(&suite.authority.server("server.internal"))).await;
    let addr = free_addr();
    let mut snapshot = plain(addr, server);
    snapshot.listeners[0].protocol = Protocol::Https;
    snapshot.listeners[0].certificates = vec![suite.certificate()];
    snapshot.services[0].protocol = UpstreamProtocol::H2;
    snapshot.services[0].tls = Some(suite.authority.towards("server.internal"));
    let _proxy = Proxy::start(&snapshot);
    suite.prove_all(addr, true).await;
}

/// What the agent says by itself is understood: no route, no endpoint, and a deadline of the route.
#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_agent_are_statuses_to_the_client() {
    let Some(suite) = Suite::find() else { return };
    let (_server, server) = suite.serve(None).await;
    for (endpoint, path, timeout, said) in [
        (server, "/elsewhere", None, "code = Unimplemented"),
        (free_addr(), "/grpc.testing.TestService/UnaryCall", None, "code = Unavailable"),
        (silent().await, "/grpc.testing.TestService/UnaryCall", Some(300), "code = DeadlineExceeded"),
    ] {
        let addr = free_addr();
        let mut snapshot = plain(addr, endpoint);
        let mut only = rule(exact(path), &[("api", 1)]);
        only.request_timeout = timeout.map(Duration::from_millis);
        snapshot.routes[0].rules = vec![only];
        let _proxy = Proxy::start(&snapshot);
        let error = suite.prove(addr, "large_unary", false).await.unwrap_err();
        assert!(error.contains(said), "{path}: {error}");
    }
}

/// An endpoint that accepts connections and says nothing.
async fn silent() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    addr
}
