//! What each program on the stage is told: the backends, and every proxy with the same job, one worker, kept connections
//! on both sides, TLS 1.3 with the same certificate, and HTTP/2 towards the backend of gRPC.

use std::{fmt::Write as _, path::Path};

use super::proxy::{BACKEND, GRPC_BACKEND, GRPC_PATH, RESPONSE};

/// Downstream connections that every proxy is told to bear.
pub const CONNECTIONS: u32 = 9_500;
/// Routes in the agent's table.
pub const ROUTES: u32 = 1_000;

/// What all nginx have in common: one worker, no access log, connections that stay.
const COMMON: &str = "worker_processes 1; pid PID; error_log stderr;
events { worker_connections 15000; }
http {
  access_log off; keepalive_requests 100000000; keepalive_time 1h; keepalive_timeout 1h; tcp_nodelay on;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
";

/// Answers with a fixed body, or with a file of `dir`.
pub fn backend(dir: &Path) -> String {
    let body = "x".repeat(RESPONSE);
    let dir = dir.display();
    format!(
        "{COMMON}  sendfile on; server {{ listen 127.0.0.1:{BACKEND} backlog=4096; root {dir};
    location / {{ default_type text/plain; return 200 {body}; }} location /file/ {{ }} }}\n}}\n"
    )
}

/// nginx as a proxy.
pub fn nginx(dir: &Path, plain: u16, secure: u16) -> String {
    let dir = dir.display();
    format!(
        "{COMMON}  upstream backend {{ server 127.0.0.1:{BACKEND}; keepalive 2048; keepalive_requests 100000000; keepalive_time 1h; }}
  upstream grpc {{ server 127.0.0.1:{GRPC_BACKEND}; keepalive 2048; keepalive_requests 100000000; keepalive_time 1h; }}
  ssl_certificate {dir}/proxy.pem; ssl_certificate_key {dir}/proxy.key; ssl_protocols TLSv1.3;
  server {{
    listen 127.0.0.1:{plain} backlog=4096; listen 127.0.0.1:{secure} ssl http2 backlog=4096;
    location / {{
      proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection \"\";
      proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }}
    location = {GRPC_PATH} {{ grpc_pass grpc://grpc; }}
  }}
}}
"
    )
}

/// Haproxy with one thread.
pub fn haproxy(dir: &Path, plain: u16, secure: u16) -> String {
    let dir = dir.display();
    format!(
        "global
  nbthread 1
  maxconn {CONNECTIONS}
  ssl-default-bind-options ssl-min-ver TLSv1.3
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout http-keep-alive 1h
  http-reuse always
  option forwardfor
frontend all
  bind 127.0.0.1:{plain} backlog 4096
  bind 127.0.0.1:{secure} backlog 4096 ssl crt {dir}/both.pem alpn h2,http/1.1
  use_backend grpc if {{ path {GRPC_PATH} }}
  default_backend backend
backend backend
  server one 127.0.0.1:{BACKEND}
backend grpc
  server one 127.0.0.1:{GRPC_BACKEND} proto h2
"
    )
}

/// Envoy; its one worker is an argument. JSON, which is YAML too.
pub fn envoy(dir: &Path, plain: u16, secure: u16) -> String {
    let dir = dir.display();
    let kind = |name: &str| format!("\"@type\":\"type.googleapis.com/envoy.extensions.{name}\"");
    let (manager, router) = (
        kind("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        kind("filters.http.router.v3.Router"),
    );
    let listener = |name: &str, port: u16, tls: &str| {
        format!(
            r#"{{"name":"{name}","address":{{"socket_address":{{"address":"127.0.0.1","port_value":{port}}}}},"tcp_backlog_size":4096,
"filter_chains":[{{{tls}"filters":[{{"name":"http","typed_config":{{{manager},"stat_prefix":"{name}","codec_type":"AUTO","use_remote_address":true,
"generate_request_id":false,"http_filters":[{{"name":"envoy.filters.http.router","typed_config":{{{router},"suppress_envoy_headers":true}}}}],
"route_config":{{"virtual_hosts":[{{"name":"all","domains":["*"],"routes":[
{{"match":{{"path":"{GRPC_PATH}"}},"route":{{"cluster":"grpc"}}}},{{"match":{{"prefix":"/"}},"route":{{"cluster":"backend"}}}}]}}]}}}}}}]}}]}}"#
        )
    };
    let secret = kind("transport_sockets.tls.v3.DownstreamTlsContext");
    let tls = format!(
        r#""transport_socket":{{"name":"tls","typed_config":{{{secret},"common_tls_context":{{"alpn_protocols":["h2","http/1.1"],
"tls_params":{{"tls_minimum_protocol_version":"TLSv1_3","tls_maximum_protocol_version":"TLSv1_3"}},
"tls_certificates":[{{"certificate_chain":{{"filename":"{dir}/proxy.pem"}},"private_key":{{"filename":"{dir}/proxy.key"}}}}]}}}}}},"#
    );
    let many = 100_000;
    let options = kind("upstreams.http.v3.HttpProtocolOptions");
    let cluster = |name: &str, port: u16, version: &str| {
        format!(
            r#"{{"name":"{name}","type":"STATIC","connect_timeout":"5s",
"typed_extension_protocol_options":{{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions":{{{options},"explicit_http_config":{{"{version}":{{}}}}}}}},
"circuit_breakers":{{"thresholds":[{{"max_connections":{many},"max_pending_requests":{many},"max_requests":{many}}}]}},
"load_assignment":{{"cluster_name":"{name}","endpoints":[{{"lb_endpoints":[{{"endpoint":{{"address":{{"socket_address":{{"address":"127.0.0.1","port_value":{port}}}}}}}}}]}}]}}}}"#
        )
    };
    format!(
        r#"{{"static_resources":{{"listeners":[{},{}],"clusters":[{},{}]}}}}"#,
        listener("plain", plain, ""),
        listener("secure", secure, &tls),
        cluster("backend", BACKEND, "http_protocol_options"),
        cluster("grpc", GRPC_BACKEND, "http2_protocol_options"),
    )
}

/// The agent: one worker, in userspace, with a table of many routes of which the last one is taken, and a line in a log for
/// each request.
pub fn sluice(plain: u16, secure: u16, log: &Path) -> String {
    let admin = plain + 1_000;
    let mut text = format!(
        "agent: {{ workers: 1, kernel: {{ mode: off }}, admin: {{ address: '127.0.0.1:{admin}' }}, accessLog: {{ output: '{}' }} }}
listeners:
  - {{ name: plain, address: 127.0.0.1, port: {plain}, protocol: HTTP }}
  - {{ name: secure, address: 127.0.0.1, port: {secure}, protocol: HTTPS, tls: {{ certificates: [{{ certificateFile: proxy.pem, keyFile: proxy.key }}] }} }}
services:
  - {{ name: backend, endpoints: [{{ address: 127.0.0.1, port: {BACKEND} }}], health: {{ tcp: {{}} }} }}
  - {{ name: grpc, protocol: h2c, endpoints: [{{ address: 127.0.0.1, port: {GRPC_BACKEND} }}], health: {{ tcp: {{}} }} }}
routes:
  - {{ name: all, listeners: [plain, secure], rules: [{{ backends: [{{ service: backend }}] }}] }}
  - {{ name: grpc, listeners: [plain, secure], rules: [{{ matches: [{{ path: {{ type: Exact, value: {GRPC_PATH} }} }}], backends: [{{ service: grpc }}] }}] }}
",
        log.display()
    );
    for idx in 2..ROUTES {
        // A text in memory takes everything.
        let _written = writeln!(
            text,
            "  - {{ name: r{idx}, listeners: [plain, secure], rules: [{{ matches: [{{ path: {{ value: /application/{idx} }} }}], backends: [{{ service: backend }}] }}] }}"
        );
    }
    text
}
